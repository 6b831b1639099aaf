"""The paper's results (arXiv 2506.13044) as data: tables 3 to 7, 12 and 13. Settings have our configs' names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

DIRECTIONS = ("en-id", "id-en", "en-zh", "zh-en")  # the order of the paper's columns
FEW_SHOTS = 5
BLOOM = "BLOOM 1.1B"
LAST_UNI = "last_uni"  # four models, each judged on its own direction

SETTINGS: Mapping[str, str] = {  # in the order of the paper's rows
    "no_parallel": "No Parallel",
    "multilingual": "Multilingual",
    "parallel_non_adjacent": "Parallel Non-Adjacent",
    "parallel_first": "Parallel First",
    "parallel_distributed": "Parallel Distributed",
    "parallel_last_all": "Parallel Last (all)",
    LAST_UNI: "Parallel Last (uni)",
    "parallel_last_all_filtered": "Parallel Last (all), filtered",
    "uni_en_id": "Last (uni), English to Indonesian",
    "uni_id_en": "Last (uni), Indonesian to English",
    "uni_en_zh": "Last (uni), English to Chinese",
    "uni_zh_en": "Last (uni), Chinese to English",
}
UNI = {"uni_en_id": "en-id", "uni_id_en": "id-en", "uni_en_zh": "en-zh", "uni_zh_en": "zh-en"}

_Row = tuple[float, float, float, float]  # in the order of DIRECTIONS


@dataclass(frozen=True)
class PaperBleu:
    """BLEU of one setting on the test sets, by direction; `few` with five examples."""

    table: int
    zero: _Row
    few: _Row | None


BLEU: Mapping[str, PaperBleu] = {
    "no_parallel": PaperBleu(3, (2.49, 1.52, 0.80, 1.30), (2.60, 0.97, 0.79, 0.83)),
    "multilingual": PaperBleu(3, (2.38, 5.92, 0.81, 3.72), (2.49, 9.75, 1.73, 4.25)),
    "parallel_non_adjacent": PaperBleu(3, (1.98, 14.69, 1.01, 4.50), (3.31, 13.90, 3.76, 2.69)),
    "parallel_first": PaperBleu(3, (7.42, 5.57, 9.64, 2.71), (25.41, 21.02, 18.61, 7.09)),
    "parallel_distributed": PaperBleu(3, (21.95, 27.48, 12.08, 7.40), (31.80, 33.66, 23.21, 12.51)),
    "parallel_last_all": PaperBleu(3, (35.91, 35.36, 9.62, 10.73), (41.51, 39.08, 32.61, 15.20)),
    LAST_UNI: PaperBleu(3, (44.19, 41.91, 28.51, 16.10), (44.32, 41.60, 33.31, 16.87)),
    "uni_en_id": PaperBleu(5, (44.19, 0.07, 0.77, 0.21), (44.32, 0.14, 0.72, 0.11)),
    "uni_id_en": PaperBleu(5, (0.02, 41.91, 0.25, 0.03), (0.04, 41.60, 0.43, 0.01)),
    "uni_en_zh": PaperBleu(5, (0.09, 0.59, 28.51, 0.01), (0.04, 2.51, 33.31, 0.00)),
    "uni_zh_en": PaperBleu(5, (0.00, 2.73, 0.13, 16.10), (2.58, 2.71, 0.06, 16.87)),
    "parallel_last_all_filtered": PaperBleu(7, (36.20, 35.17, 24.20, 10.60), (40.50, 37.71, 32.28, 14.83)),
}
OTHER_MODELS: Mapping[str, PaperBleu] = {
    BLOOM: PaperBleu(3, (2.19, 18.39, 2.27, 4.58), (21.92, 27.29, 18.10, 10.72)),
    "NLLB 1.3B": PaperBleu(3, (44.64, 43.06, 27.58, 19.25), None),
}


def place_of(direction: str) -> tuple[int, str]:
    """Return the sort key of a direction: the paper's order, then others."""
    return DIRECTIONS.index(direction) if direction in DIRECTIONS else len(DIRECTIONS), direction


def bleu_of(scores: PaperBleu | None, direction: str, shots: int) -> float | None:
    """Return the paper's BLEU of a direction, zero-shot or with five examples; None if it reports none."""
    if scores is None or direction not in DIRECTIONS:
        return None
    row = {0: scores.zero, FEW_SHOTS: scores.few}.get(shots)
    return None if row is None else row[DIRECTIONS.index(direction)]


@dataclass(frozen=True)
class ReasoningTask:
    """A task of lm-eval, and the accuracy that the paper seems to report (inferred from its level)."""

    name: str
    label: str
    metric: str


@dataclass(frozen=True)
class ReasoningTable:
    """Zero-shot accuracies in percent, a column per task, and their mean as printed."""

    table: int
    language: str
    tasks: tuple[ReasoningTask, ...]
    scores: Mapping[str, tuple[float, ...]]  # setting or other model -> one a task, then the mean

    def score(self, setting: str, task: str) -> float | None:
        """Return the paper's accuracy, in percent."""
        row = self.scores.get(setting)
        return None if row is None else row[[one.name for one in self.tasks].index(task)]


REASONING = (
    ReasoningTable(
        4,
        "English",
        (
            ReasoningTask("arc_challenge", "ARC-C", "acc_norm"),
            ReasoningTask("arc_easy", "ARC-E", "acc_norm"),
            ReasoningTask("boolq", "BoolQ", "acc"),
            ReasoningTask("hellaswag", "HellaSwag", "acc_norm"),
            ReasoningTask("openbookqa", "OpenBookQA", "acc_norm"),
            ReasoningTask("piqa", "PIQA", "acc_norm"),
            ReasoningTask("sciq", "SciQ", "acc_norm"),
            ReasoningTask("winogrande", "WinoGrande", "acc"),
        ),
        {
            "no_parallel": (25.51, 45.08, 60.12, 46.30, 32.00, 68.66, 72.50, 53.35, 50.44),
            "multilingual": (27.30, 46.93, 57.31, 48.25, 32.40, 69.15, 74.00, 53.91, 51.16),
            "parallel_non_adjacent": (25.43, 46.21, 60.15, 47.67, 30.20, 68.23, 73.20, 54.06, 50.64),
            "parallel_first": (21.84, 30.56, 41.07, 25.73, 25.00, 52.88, 44.60, 50.28, 36.50),
            "parallel_distributed": (26.45, 47.05, 60.61, 46.49, 31.60, 68.88, 76.30, 53.28, 51.33),
            "parallel_last_all": (24.40, 41.79, 60.21, 42.21, 30.20, 66.10, 73.80, 53.91, 49.08),
            BLOOM: (25.60, 45.41, 59.11, 42.97, 29.40, 67.25, 74.60, 55.01, 49.92),
        },
    ),
    ReasoningTable(
        12,
        "Chinese",
        (
            ReasoningTask("xcopa_zh", "XCOPA", "acc"),
            ReasoningTask("xnli_zh", "XNLI", "acc"),
            ReasoningTask("xstorycloze_zh", "XStoryCloze", "acc"),
            ReasoningTask("xwinograd_zh", "XWinograd", "acc"),
        ),
        {
            "no_parallel": (52.20, 33.33, 48.64, 53.37, 46.88),
            "multilingual": (53.40, 34.10, 49.04, 59.13, 48.92),
            "parallel_non_adjacent": (51.00, 33.57, 49.37, 59.13, 48.27),
            "parallel_first": (48.40, 34.74, 48.38, 51.19, 45.68),
            "parallel_distributed": (52.00, 34.90, 49.17, 57.54, 48.40),
            "parallel_last_all": (54.40, 33.73, 52.15, 61.90, 50.55),
            BLOOM: (59.40, 36.67, 58.04, 69.05, 55.79),
        },
    ),
    ReasoningTable(
        13,
        "Indonesian",
        (
            ReasoningTask("xcopa_id", "XCOPA", "acc"),
            ReasoningTask("xstorycloze_id", "XStoryCloze", "acc"),
        ),
        {
            "no_parallel": (50.40, 49.44, 49.92),
            "multilingual": (52.60, 50.36, 51.48),
            "parallel_non_adjacent": (52.40, 50.43, 51.41),
            "parallel_first": (52.20, 49.90, 51.05),
            "parallel_distributed": (55.20, 52.88, 54.04),
            "parallel_last_all": (57.40, 54.73, 56.06),
            BLOOM: (64.60, 57.78, 61.19),
        },
    ),
)

_UNI_MEANS: Mapping[str, Mapping[str, float]] = {  # table 6
    "uni_en_id": {"English": 48.77, "Indonesian": 55.34, "Chinese": 45.87},
    "uni_id_en": {"English": 48.73, "Indonesian": 55.87, "Chinese": 45.47},
    "uni_en_zh": {"English": 49.80, "Indonesian": 49.96, "Chinese": 50.49},
    "uni_zh_en": {"English": 48.49, "Indonesian": 50.02, "Chinese": 50.45},
}


def reasoning_mean(setting: str, language: str) -> float | None:
    """Return the paper's mean accuracy over the tasks of a language, in percent (tables 4, 6, 12, 13)."""
    if setting in _UNI_MEANS:
        return _UNI_MEANS[setting][language]
    table = next(one for one in REASONING if one.language == language)
    row = table.scores.get(setting)
    return None if row is None else row[-1]


def mean(values: list[float | None]) -> float | None:
    """Return the plain mean; None if any value is missing or there are no values."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
