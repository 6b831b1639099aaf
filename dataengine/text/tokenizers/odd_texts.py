"""Texts on which tokenizers often differ, to compare two of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

_ODD_RANGES = (  # of code points
    (0x0000, 0x024F),  # control characters, NUL too; Latin
    (0x0300, 0x036F),  # combining marks
    (0x0370, 0x06FF),  # Greek to Arabic
    (0x0900, 0x0E7F),  # Devanagari to Thai
    (0x2000, 0x206F),  # spaces, joiners, directions
    (0x2581, 0x2583),  # SentencePiece's sign for a space, and its neighbours
    (0x3000, 0x30FF),  # kana
    (0x4E00, 0x9FFF),  # Chinese
    (0xAC00, 0xD7A3),  # hangul
    (0xE000, 0xFFFF),  # private use, compatibility forms, byte order mark, noncharacters
    (0x10000, 0x10FFFF),
)
_ODD_WORDS = (
    *(
        "the",
        "Translation",
        "don't",
        "WE'LL",
        "na\u00efve",
        "A\u030a",
        "\ufb01",
        "打开文件",
        "，",
        "Berkas",
        "ข้อความ",
        "नमस्ते",
    ),
    *(
        " ",
        "  ",
        "    ",
        " " * 17,
        "\t",
        "\n",
        "\r\n",
        "\n\n \n",
        "\u00a0",
        "\u3000",
        "\u200b",
        "▁",
        "▁▁ ",
        "\0",
        "\ufeff",
    ),
    *(
        "0",
        "7",
        "2024",
        "3.14159",
        "1,000,000",
        "٣٤",
        "²",
        "…",
        "--",
        "://",
        "#" * 9,
        "<",
        "</",
        "s>",
        "<0x0A>",
        "[INST]",
    ),
    *("👩‍👩‍👧‍👦", "🇮🇩", "👍🏽", "\u00e9\u0301\u0323", "𓀀", "\ufffd"),
)


def make_odd_texts(number: int, tokens: Sequence[str], seed: int = 0) -> list[str]:
    """Texts on which tokenizers often differ: odd characters, spaces and digits, long words, `tokens`."""
    rng = random.Random(seed)

    def part() -> str:
        kind = rng.random()
        if kind < 0.3:
            low, high = rng.choice(_ODD_RANGES)
            return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
        if kind < 0.6 and tokens:
            return rng.choice(tokens)
        return rng.choice(_ODD_WORDS) * (rng.randint(20, 200) if kind > 0.99 else 1)

    return ["".join(rng.choice(("", "", " ")) + part() for _ in range(rng.randint(0, 16))) for _ in range(number)]
