"""Text that a tokenizer loses: text that becomes the unknown token, and text without any token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataengine.characters import is_blank

UNKNOWN_TEXT = "the tokenizer knows none of its text"
UNENCODABLE = "the tokenizer has neither a token nor an unknown token for a part of it"

Encode = Callable[[Sequence[str]], list[list[int] | None]]  # None for a text that the library rejects


class LostText:
    """Find texts of which a tokenizer keeps nothing, and count vanished characters.

    For tokenizers that can lose text. Tokenizers with byte fallback cannot, and do not need this.

    A character vanishes if it is visible, survives the tokenizer's normalization and gives no id, not even the unknown
    one. `knows_characters` means: a text has a token if one of its characters has a token by itself.
    """

    def __init__(
        self,
        encode: Encode,
        decode: Callable[[Sequence[int]], str],
        normalize: Callable[[str], str] | None,
        unk_id: int | None,
        *,
        knows_characters: bool,
    ) -> None:
        self._encode, self._decode, self._normalize = encode, decode, normalize
        self._unk_id, self._knows_characters = unk_id, knows_characters
        self._empty: dict[int, bool] = {}  # id -> whether it is only white space
        self._known: dict[str, bool] = {}  # character -> whether it has a token
        self._vanishing: dict[str, bool] = {}  # character -> whether it gives no id

    def why_lost(self, texts: Sequence[str]) -> list[str | None]:
        """For each text the reason why it is unusable (no ids, or only the unknown one), or None."""
        return [self._why_lost(text) for text in texts]

    def _why_lost(self, text: str) -> str | None:
        if self._knows_characters and any(map(self._knows, text)):  # usually the first one decides
            return None
        (ids,) = self._encode([text])
        if ids is None:
            return UNENCODABLE
        return None if self._says_something(ids) else UNKNOWN_TEXT

    def _knows(self, character: str) -> bool:
        if (known := self._known.get(character)) is None:
            (ids,) = self._encode([character])
            known = self._known[character] = ids is not None and self._says_something(ids)
        return known

    def _says_something(self, ids: Sequence[int]) -> bool:
        return any(token != self._unk_id and not self._is_empty(token) for token in ids)

    def _is_empty(self, token: int) -> bool:
        """Whether an id is only white space, such as the one that some tokenizers add before a text."""
        if (empty := self._empty.get(token)) is None:
            empty = self._empty[token] = is_blank(self._decode([token]).replace("▁", " "))
        return empty

    def count_vanished(self, texts: Sequence[str]) -> int:
        """The number of characters that give no id at all."""
        vanished = 0
        for text in texts:
            plain = self._normalize(text) if self._normalize else text
            vanished += sum(plain.count(character) for character in set(plain) if self._vanishes(character))
        return vanished

    def _vanishes(self, character: str) -> bool:
        if (vanishes := self._vanishing.get(character)) is None:
            once, twice = self._encode([character, character * 2])
            vanishes = not is_blank(character) and once is not None and once == twice and self._unk_id not in once
            self._vanishing[character] = vanishes
        return vanishes
