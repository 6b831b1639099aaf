"""Three miniature languages of one world: `python benchmarks/study/world.py --out FOLDER [--seed 17]`.

Three grammars with made-up vocabularies put meanings (who does what to whom, how many, of what kind, when) into words,
so that a model of half a million parameters can learn to translate in minutes:

    en   subject verb object adverb; adjective before noun; plural in -s, verb in -t after a singular subject
    zh   adverb subject object verb; written without spaces; classifier after a number; past by a particle at the end
    id   verb subject object adverb; adjective behind noun; plural by reduplication; past by a word before the verb

The program writes documents (mostly en, a little zh and id), pairs en-zh, en-id and zh-id, dev and test pairs whose
combinations of subject, verb and object are in no training file, and a SentencePiece model whose tokens are words. A
document keeps to a few entities, as real text does. Without that no circuit for copying forms, and nothing is
translated. Equal seeds give equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

NOUNS, ADJECTIVES, VERBS, ADVERBS = 48, 8, 16, 6
DOCUMENTS, PAIRS = 66_000, 60_000  # documents in all; pairs of two languages
HELD_OUT = {"dev": 100, "test": 200}  # sentences
OTHER_LANGUAGES = {"zh": 0.03, "id": 0.02}  # share of documents that are not en, as SlimPajama has some
PAIRED = (("en", "zh"), ("en", "id"), ("zh", "id"))
HOLD_OUT = 12  # one in N combinations of subject, verb and object is for dev and test
NAMES = ("English", "Chinese", "Indonesian")

# Beginnings and ends of syllables.
_EN = (("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "gr", "tr", "st", "pl"),
       ("a", "e", "i", "o", "u", "ea", "ai"))  # fmt: skip
_ID = (("c", "j", "k", "l", "m", "ng", "ny", "p", "r", "s", "t", "w", "y", "b", "d"), ("a", "e", "i", "o", "u"))
_CJK = (0x4E00, 0x9FA0)


@dataclass(frozen=True)
class Thing:
    """A noun phrase; concepts by number."""

    noun: int
    adjective: int | None
    count: int  # 1: singular; 2: plural; more: with the number


@dataclass(frozen=True)
class Clause:
    """Who does what to whom."""

    subject: Thing
    verb: int
    object: Thing
    adverb: int | None
    past: bool

    @property
    def held_out(self) -> bool:
        """Whether this combination is held out from training."""
        key = f"{self.subject.noun} {self.verb} {self.object.noun}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % HOLD_OUT == 0


class Lexicon:
    """The words of the three languages for each concept, made up from a seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(f"lexicon {seed}")
        used: set[str] = set()

        def word(parts: Sequence[Sequence[str]], syllables: int) -> str:
            while True:
                made = "".join(draw.choice(parts[0]) + draw.choice(parts[1]) for _ in range(syllables))
                if made not in used:
                    used.add(made)
                    return made

        characters = draw.sample(range(*_CJK), 260)

        def characters_of(length: int) -> str:
            while True:
                made = "".join(chr(draw.choice(characters)) for _ in range(length))
                if made not in used:
                    used.add(made)
                    return made

        sizes = {"noun": NOUNS, "adjective": ADJECTIVES, "verb": VERBS, "adverb": ADVERBS, "number": 10, "word": 4}
        self.en = {kind: [word(_EN, draw.choice((1, 2, 2))) for _ in range(n)] for kind, n in sizes.items()}
        self.id = {kind: [word(_ID, draw.choice((2, 2, 3))) for _ in range(n)] for kind, n in sizes.items()}
        self.zh = {
            kind: [characters_of(2 if kind in ("noun", "verb") else 1) for _ in range(n)] for kind, n in sizes.items()
        }


class World:
    """Meanings, and their words in each language."""

    def __init__(self, seed: int) -> None:
        self.words = Lexicon(seed)
        self.say: dict[str, Callable[[Clause], str]] = {"en": self._say_en, "zh": self._say_zh, "id": self._say_id}

    def meaning(
        self, draw: random.Random, nouns: Sequence[int], verbs: Sequence[int], *, held_out: bool
    ) -> Clause | None:
        """A meaning about some of these nouns and verbs whose combination is held out, or is not.

        None if these have hardly any such combination.
        """
        for _ in range(100):
            subject, object = (self._thing(draw, noun) for noun in draw.sample(list(nouns), 2))
            adverb = draw.randrange(ADVERBS) if draw.random() < 0.3 else None
            clause = Clause(subject, draw.choice(verbs), object, adverb, draw.random() < 0.4)
            if clause.held_out == held_out:
                return clause
        return None

    def _thing(self, draw: random.Random, noun: int) -> Thing:
        count = draw.choice((1, 1, 1, 2, 2, 3, 4, 5))
        return Thing(noun, draw.randrange(ADJECTIVES) if draw.random() < 0.4 else None, count)

    def _say_en(self, clause: Clause) -> str:
        words = self.words.en

        def thing(one: Thing) -> list[str]:
            head = words["word"][0] if one.count == 1 else words["number"][one.count] if one.count > 2 else ""
            noun = words["noun"][one.noun] + ("s" if one.count > 1 else "")
            return [part for part in (head, _of(words["adjective"], one.adjective), noun) if part]

        verb = words["verb"][clause.verb] + ("d" if clause.past else "t" if clause.subject.count == 1 else "")
        said = [*thing(clause.subject), verb, *thing(clause.object), _of(words["adverb"], clause.adverb)]
        return " ".join(word for word in said if word) + "."

    def _say_zh(self, clause: Clause) -> str:
        words = self.words.zh

        def thing(one: Thing) -> str:
            count = words["number"][one.count] + words["word"][0] if one.count > 2 else ""
            many = words["word"][1] if one.count == 2 else ""
            adjective = _of(words["adjective"], one.adjective)
            return count + (adjective + words["word"][2] if adjective else "") + words["noun"][one.noun] + many

        past = words["word"][3] if clause.past else ""
        adverb, verb = _of(words["adverb"], clause.adverb), words["verb"][clause.verb]
        return f"{adverb}{thing(clause.subject)}{thing(clause.object)}{verb}{past}。"

    def _say_id(self, clause: Clause) -> str:
        words = self.words.id

        def thing(one: Thing) -> list[str]:
            noun = words["noun"][one.noun]
            head = words["number"][one.count] if one.count > 2 else ""
            return [part for part in (head, f"{noun}-{noun}" if one.count == 2 else noun,
                                      _of(words["adjective"], one.adjective)) if part]  # fmt: skip

        past = words["word"][0] if clause.past else ""
        said = [past, "me" + words["verb"][clause.verb], *thing(clause.subject), *thing(clause.object),
                _of(words["adverb"], clause.adverb)]  # fmt: skip
        return " ".join(word for word in said if word) + "."


def _of(words: Sequence[str], number: int | None) -> str:
    return "" if number is None else words[number]


def _frequent(draw: random.Random, size: int, count: int) -> list[int]:
    """Different numbers below `size`, low ones more often (Zipf)."""
    weights = list(accumulate(1 / (rank + 3) for rank in range(size)))
    found: dict[int, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(draw.choices(range(size), cum_weights=weights, k=count)))
    return list(found)[:count]


def documents(world: World, seed: int) -> Iterator[str]:
    """Documents of 6 to 12 sentences about 4 entities and 3 verbs."""
    for number in range(DOCUMENTS):
        draw = random.Random(f"document {seed} {number}")
        share = draw.random()
        language = "zh" if share < OTHER_LANGUAGES["zh"] else "id" if share < sum(OTHER_LANGUAGES.values()) else "en"
        nouns, verbs = _frequent(draw, NOUNS, 4), _frequent(draw, VERBS, 3)
        meanings = [world.meaning(draw, nouns, verbs, held_out=False) for _ in range(draw.randint(6, 12))]
        yield ("" if language == "zh" else " ").join(world.say[language](one) for one in meanings if one)


def pairs(world: World, seed: int, name: str, languages: Sequence[str], count: int) -> Iterator[dict[str, str]]:
    """Sentences in several languages; those of dev and test are of held-out combinations."""
    draw = random.Random(f"{name} {seed}")
    while count:
        nouns, verbs = _frequent(draw, NOUNS, 4), _frequent(draw, VERBS, 3)
        meaning = world.meaning(draw, nouns, verbs, held_out=name in HELD_OUT)
        if meaning is not None:
            count -= 1
            yield {language: world.say[language](meaning) for language in languages}


def pieces(words: Lexicon) -> list[str]:
    """Texts that are one token: whole words, and the parts of labels and prompts."""
    found = {"\n", ":", "▁Translate", "▁this", "▁from", "▁to", "▁me", *NAMES, *(f"▁{name}" for name in NAMES)}
    for made in words.zh.values():
        found.update(made)
    for lexicon in (words.en, words.id):
        for made in lexicon.values():
            found.update(f"▁{word}" for word in made)
    return sorted({*found, *words.id["noun"], *words.id["verb"]})  # after a hyphen, after me-


def train_tokenizer(words: Lexicon, texts: Sequence[str]) -> bytes:
    """A SentencePiece model of whole words; inflections, and letters of other text, are tokens of their own."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *(f"{name}: " for name in NAMES)]), model_writer=model, vocab_size=4000,
        use_all_vocab=True, model_type="char", character_coverage=1.0, byte_fallback=True, num_threads=1, minloglevel=2,
        bos_id=1, eos_id=2, unk_id=0, pad_id=-1, split_digits=True, normalization_rule_name="identity",
        user_defined_symbols=pieces(words), remove_extra_whitespaces=False,
    )  # fmt: skip
    return model.getvalue()


def write(folder: Path, seed: int) -> None:
    """Write all files of the world."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(seed)

    def write_rows(name: str, rows: Iterator[dict[str, str]]) -> None:
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    write_rows("mono.jsonl", ({"text": text} for text in documents(world, seed)))
    for one, other in PAIRED:
        name = f"{one}-{other}"
        write_rows(f"{name}.train.jsonl", pairs(world, seed, f"train {name}", (one, other), PAIRS))
    for name, count in HELD_OUT.items():
        write_rows(f"{name}.jsonl", pairs(world, seed, name, ("en", "zh", "id"), count))
    lines = [line for one, other in PAIRED[:2] for line in (folder / f"{one}-{other}.train.jsonl").open("rb")][::10]
    (folder / "tokenizer.model").write_bytes(
        train_tokenizer(world.words, [text for line in lines for text in json.loads(line).values()])
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--seed", type=int, default=17, help="of everything (default: %(default)s)")
    options = parser.parse_args()
    write(options.out, options.seed)


if __name__ == "__main__":
    main()
