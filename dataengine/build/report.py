"""build_report.json of an experiment: what its build read, left out and wrote."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import orjson

from dataengine.errors import DamagedError
from dataengine.json_files import decode
from dataengine.schedule.slots import Stage
from dataengine.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class StreamReport:
    """A stream of the build."""

    name: str
    """Name of the stream in the config."""
    folder: str
    """Folder of the stream, relative to the store."""
    records: int
    """Records read. records = kept + rejected + dropped."""
    rejected: dict[str, int]
    """Unusable records by reason."""
    dropped: dict[str, int]
    """Records dropped by cleaning, by reason."""
    kept: int
    """Records kept."""
    tokens: int
    """Tokens in all samples and in the remainder."""
    samples: int
    """Samples of the stream."""
    remainder_tokens: int
    """Tokens after the last whole sample."""
    rejects: str | dict[str, str] | None = None
    """The rejects.jsonl of the stream, relative to the store; null without unusable records. Earlier versions name a
    file for each source."""
    unknown_tokens: int = 0
    """Unknown tokens in the kept records."""
    vanished_characters: int = 0
    """Characters of the kept records for which the tokenizer has no token."""
    notes: tuple[str, ...] = ()
    """Warnings of the build about the records and their languages."""
    counted_tokens: int | None = None
    """With `loss_on: target`, the tokens that count as labels, of all samples and the remainder; null if all count."""
    templates: dict[str, int] = field(default_factory=dict)
    """Pairs written in each template; empty for that of the paper alone."""

    @property
    def unusable(self) -> int:
        """All rejected records."""
        return sum(self.rejected.values())


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """The report of the build that made the plan `plan_id`."""

    plan_id: str
    """SHA-256 of the manifest that the build published."""
    seconds: float = 0.0
    """Duration of the build."""
    streams: tuple[StreamReport, ...] = ()
    """The streams that the stages use."""
    stages: tuple[Stage, ...] = ()
    """The stages of the manifest."""

    @property
    def content(self) -> bytes:
        """The file."""
        stages = [stage.described for stage in self.stages]
        return orjson.dumps({**asdict(self), "stages": stages}, option=orjson.OPT_INDENT_2)


def report_key(name: str) -> str:
    """The key of the report of the experiment `name` in the store."""
    return f"experiments/{name}/build_report.json"


def read_report(store: Store, name: str) -> BuildReport:
    """The report of the experiment `name`. Raises FileNotFoundError if there is none, DamagedError if it is damaged."""
    content = store.read(report_key(name))
    try:
        return decode(BuildReport, content)
    except ValueError as error:
        raise DamagedError(
            f"{store.url}/{report_key(name)} is damaged: {error}. Remove the folder experiments/{name} and build again."
        ) from None
