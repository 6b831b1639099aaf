"""Settings of the cleaning rules for pairs and documents, with their defaults and sources."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class PairRules(BaseModel):
    """Which sentence pairs are dropped; None or false turns a rule off.

    Sources: OpusFilter 3.3, OpusCleaner 0.7, bicleaner-hardrules 2.10; defaults chosen on software messages and manuals
    in English, Chinese and Indonesian, so that few clean pairs go. In shares of letters, one of Han, kana or Hangul
    counts as three. No rule tells simplified from traditional Chinese: `unicodedata` does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_characters: Annotated[int, Field(ge=0)] | None = 1  # a side
    max_characters: Annotated[int, Field(ge=1)] | None = 2000
    drop_broken_characters: bool = True  # control and private-use characters, U+FFFD, lone surrogates
    min_letter_share: Share | None = 0.4  # letters and marks among the characters that are not white space, a side
    drop_identical_sides: bool = True  # but for case, white space and punctuation
    min_script_share: Share | None = 0.5  # of letters in the scripts of the side's language, if that is a known one
    max_length_ratio: Annotated[float, Field(ge=1)] | None = 3.0  # longer to shorter side, in UTF-8 bytes
    length_slack: Annotated[int, Field(ge=0)] = 20  # UTF-8 bytes that the longer side may have on top
    max_missing_digits: Annotated[int, Field(ge=0)] | None = 2  # of one side that the other may lack; 一九八七 is 1987
    drop_link_mismatch: bool = True  # other hosts of URLs, or other e-mail addresses, on the two sides
    drop_markup: bool = True  # HTML tags, comments and entities, whole or cut off
    max_repeated_share: Share | None = 0.5  # of a side's runs of four characters that occurred in it before
    # Off: of software messages they drop more good pairs than bad ones (docs/reference/rules.md). OpusFilter's values
    # are 6, 0.5 and 0.9.
    max_terminal_penalty: Annotated[int, Field(ge=0)] | None = None  # unequal numbers of . ? ! and many on a side
    min_digit_overlap: Share | None = None  # of both sides' digits, those that the other side has too
    max_copied_share: Share | None = None  # of the shorter side, in one piece that the longer side has too


class DocumentRules(BaseModel):
    """Which documents are dropped; None or false turns a rule off.

    Sources: Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et al. 2024),
    counted in characters instead of words where the language may have no spaces. Defaults are milder than theirs. In
    shares of letters, one of Han, kana or Hangul counts as three.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_characters: Annotated[int, Field(ge=0)] | None = 10
    max_characters: Annotated[int, Field(ge=1)] | None = 1_000_000
    max_broken_share: Share | None = 0.001  # control and private-use characters, U+FFFD, lone surrogates
    min_letter_share: Share | None = 0.5  # letters and marks among the characters that are not white space
    max_symbol_share: Share | None = 0.15  # symbols, `#` and the ellipsis, of the same
    min_script_share: Share | None = 0.5  # of letters in the scripts of the language, if that is a known one
    # Mean characters, as of English words: wider where a language has shorter or longer ones (`word_length_bounds`).
    min_word_length: Annotated[float, Field(ge=0)] | None = 3.0  # languages with spaces only
    max_word_length: Annotated[float, Field(gt=0)] | None = 12.0
    max_ellipsis_lines: Share | None = 0.3  # lines that end with an ellipsis, if two or more do
    max_repeated_lines: Share | None = 0.3  # characters in lines that stood in the document before
    drop_curly_braces: bool = False  # C4: a sign of code
    drop_lorem_ipsum: bool = False  # C4: a sign of a page without content
