"""build_report.json of an experiment: what its build read, left out and wrote."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson

from dataengine.errors import DamagedError
from dataengine.json_files import decode
from dataengine.schedule.slots import Stage
from dataengine.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class StreamReport:
    """A stream and what went into it; the counts are those of `publish.BuiltStream`."""

    name: str
    folder: str  # its key in the store
    records: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    kept: int
    tokens: int
    samples: int
    remainder_tokens: int
    rejects: str | dict[str, str] | None = None  # key of a file; of earlier versions, those of each source
    unknown_tokens: int = 0
    vanished_characters: int = 0
    notes: tuple[str, ...] = ()

    @property
    def unusable(self) -> int:
        """All rejected records."""
        return sum(self.rejected.values())


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """The report of the build that made the plan `plan_id`."""

    plan_id: str
    seconds: float = 0.0
    streams: tuple[StreamReport, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def content(self) -> bytes:
        """The file."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)


def report_key(name: str) -> str:
    """Where the report of the experiment `name` lies in the store."""
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
