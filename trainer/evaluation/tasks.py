"""A set in one direction with one number of examples, ready to be translated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from dataengine.records.evaluation_sets import EvaluationSet
from trainer.evaluation.prompts import Prompts


@dataclass(frozen=True)
class Task:
    """A set in one direction with one number of examples, ready to be translated."""

    set_name: str
    texts: EvaluationSet
    shots: int
    prompts: Prompts
    shown: str  # a prompt with {source} in place of the sentence
    name: str  # of its files
    batches: list[list[int]]  # numbers of prompts that are translated together
    completed_by: str  # SHA-256 of all that decides the completions, but for the checkpoint

    def fingerprint(self, checkpoint: str) -> str:
        """Of the completions of the checkpoint of an identity."""
        return content_sha256([self.completed_by, checkpoint])


def content_sha256(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content)).hexdigest()
