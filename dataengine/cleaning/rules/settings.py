"""Settings of the cleaning rules for pairs and documents, with their defaults and sources."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class PairRules(BaseModel):
    """Rules that drop sentence pairs. null turns off a rule that has a number; false turns off one that is true.

    The rules come from OpusFilter 3.3, OpusCleaner 0.7 and bicleaner-hardrules 2.10. The defaults were chosen on
    software messages and manuals in English, Chinese and Indonesian, so that they drop few clean pairs. In shares of
    letters, a Han character, kana or Hangul syllable counts as three letters. No rule distinguishes simplified from
    traditional Chinese, because `unicodedata` does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_characters: Annotated[int, Field(ge=0)] | None = 1
    """Drop pairs with a side that has fewer characters."""
    max_characters: Annotated[int, Field(ge=1)] | None = 2000
    """Drop pairs with a side that has more characters."""
    drop_broken_characters: bool = True
    """Drop pairs with control or private-use characters, U+FFFD or lone surrogates."""
    min_letter_share: Share | None = 0.4
    """Drop pairs with a side that has a smaller share of letters among its characters, white space not counted."""
    drop_identical_sides: bool = True
    """Drop pairs whose sides differ only in case, white space and punctuation."""
    min_script_share: Share | None = 0.5
    """Drop pairs with a side that has a smaller share of its letters in the scripts of its language. Sides in unknown
    languages pass."""
    max_length_ratio: Annotated[float, Field(ge=1)] | None = 3.0
    """Drop pairs whose longer side has more than this many times the UTF-8 bytes of the shorter one, plus
    `length_slack`."""
    length_slack: Annotated[int, Field(ge=0)] = 20
    """UTF-8 bytes that the longer side may have beyond `max_length_ratio`. Raise it to keep more very short pairs."""
    max_missing_digits: Annotated[int, Field(ge=0)] | None = 2
    """Drop pairs if one side lacks more than N digits of the other, or each side lacks some of the other's. Chinese
    numerals count: 一九八七 matches 1987."""
    drop_link_mismatch: bool = True
    """Drop pairs whose sides have different hosts in URLs, or different e-mail addresses."""
    drop_markup: bool = True
    """Drop pairs with HTML tags, comments or entities, whole or cut off."""
    max_repeated_share: Share | None = 0.5
    """Drop pairs with a side of which a larger share repeats itself, in runs of four characters."""
    # Off: of software messages they drop more good pairs than bad ones (docs/reference/rules.md).
    max_terminal_penalty: Annotated[int, Field(ge=0)] | None = None
    """Drop pairs with a higher penalty for many or unequal numbers of the marks . ? and ! on the two sides. OpusFilter
    uses 6. Default: off."""
    min_digit_overlap: Share | None = None
    """Drop pairs whose sides share a smaller part of their digits. OpusFilter uses 0.5. Default: off."""
    max_copied_share: Share | None = None
    """Drop pairs if the longer side contains a larger share of the shorter one, in one piece. OpusFilter uses 0.9.
    Default: off."""


class DocumentRules(BaseModel):
    """Rules that drop documents. null turns off a rule that has a number; false turns off one that is true.

    The rules come from Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et
    al. 2024). They count characters instead of words where a language may have no spaces, and their defaults are
    milder. In shares of letters, a Han character, kana or Hangul syllable counts as three letters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_characters: Annotated[int, Field(ge=0)] | None = 10
    """Drop documents with fewer characters."""
    max_characters: Annotated[int, Field(ge=1)] | None = 1_000_000
    """Drop documents with more characters."""
    max_broken_share: Share | None = 0.001
    """Drop documents with a larger share of control or private-use characters, U+FFFD and lone surrogates."""
    min_letter_share: Share | None = 0.5
    """Drop documents with a smaller share of letters among their characters, white space not counted."""
    max_symbol_share: Share | None = 0.15
    """Drop documents with a larger share of symbols, `#`, `<`, `>` and ellipses, white space not counted."""
    min_script_share: Share | None = 0.5
    """Drop documents with a smaller share of their letters in the scripts of their language. Documents in unknown
    languages pass."""
    # The bounds are wider in languages whose words are shorter or longer than English ones (`word_length_bounds`).
    min_word_length: Annotated[float, Field(ge=0)] | None = 3.0
    """Drop documents whose words have fewer characters on average. Only in languages with spaces; the bound is lower in
    languages with short words."""
    max_word_length: Annotated[float, Field(gt=0)] | None = 12.0
    """Drop documents whose words have more characters on average. Only in languages with spaces; the bound is higher in
    languages with long words."""
    max_ellipsis_lines: Share | None = 0.3
    """Drop documents with a larger share of lines that end with an ellipsis, if at least two lines do."""
    max_repeated_lines: Share | None = 0.3
    """Drop documents with a larger share of their characters in lines that repeat an earlier line."""
    drop_curly_braces: bool = False
    """Drop documents with curly braces, which C4 takes as a sign of code."""
    drop_lorem_ipsum: bool = False
    """Drop documents with the words lorem ipsum, which C4 takes as a sign of a page without content."""
