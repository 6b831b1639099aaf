"""Compare a config with the one that a build or a run used: which settings differ, and what they decide."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from dataengine.config.aliases import VALUES, second_name
from dataengine.config.fields import Decision, Loc, decision_of, dotted
from dataengine.config.schema import Config
from dataengine.config.streams import PairStream
from dataengine.errors import InputError
from dataengine.schedule.fork import read_parent
from dataengine.schedule.manifest import Manifest
from dataengine.storage.store import Store
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer

OF_A_BUILD: tuple[Decision, ...] = ("bytes", "plan")
_NONE = object()


@dataclass(frozen=True)
class Difference:
    """A setting that has changed."""

    key: str  # dotted, such as stages.1.steps
    then: object  # as JSON has it
    now: object

    def as_written(self, value: object) -> object:
        """One of the values as documents write it."""
        words = VALUES.get(second_name(self.key).rpartition(".")[2], {})
        return next((word for word, stored in words.items() if stored == value), value)


def differences(then: BaseModel, now: BaseModel, *, of: Collection[Decision]) -> list[Difference]:
    """The differing settings of two sections of the same class, of those that decide what `of` names."""
    return [
        Difference(dotted(loc), _plain(was), _plain(is_now)) for loc, was, is_now in _compare((), then, now, None, of)
    ]


def _compare(
    loc: Loc, then: object, now: object, decision: Decision | None, of: Collection[Decision]
) -> Iterator[tuple[Loc, object, object]]:
    """Descend into both values while their shapes match. A field that does not state what it decides inherits it."""
    if isinstance(then, BaseModel) and type(then) is type(now):
        for name in type(then).model_fields:
            own = decision_of(type(then), name) or decision
            yield from _compare((*loc, name), getattr(then, name), getattr(now, name), own, of)
    elif isinstance(then, Mapping) and isinstance(now, Mapping) and _are_alike(then, now):
        for key in dict.fromkeys([*then, *now]):
            yield from _compare((*loc, key), then.get(key, _NONE), now.get(key, _NONE), decision, of)
    elif isinstance(then, tuple) and isinstance(now, tuple) and len(then) == len(now) and _are_sections(then):
        for number, pair in enumerate(zip(then, now, strict=True)):
            yield from _compare((*loc, number), *pair, decision, of)
    elif decision in of and (type(then) is not type(now) or then != now or _in_order(then) != _in_order(now)):
        yield loc, then, now


def _are_alike(then: Mapping[object, object], now: Mapping[object, object]) -> bool:
    """Whether mappings are compared key by key. The order of weights matters, the order of sections does not."""
    return list(then) == list(now) or _are_sections([*then.values(), *now.values()])


def _are_sections(values: Iterable[object]) -> bool:
    return any(isinstance(value, BaseModel) for value in values)


def _in_order(value: object) -> object:
    return list(value.items()) if isinstance(value, Mapping) else value


def _plain(value: object) -> object:
    """A setting as JSON values."""
    if value is _NONE:
        return None
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def build_differences(
    config: Config, built: Config, manifest: Manifest, tokenizer: Tokenizer | None = None
) -> list[Difference]:
    """The settings by which a build of `config` differs from the one that wrote `manifest` and its config `built`.

    Ignored: streams that no stage mixes, names of languages that no stream writes, and the paths of the tokenizer and
    of the parent's manifest. Their contents are compared, unless the tokenizer file is gone. `tokenizer`: the config's,
    if it is already loaded. Raises InputError if one of these files cannot be used.
    """
    found = differences(_as_built(built), _as_built(config), of=OF_A_BUILD)
    if tokenizer is None and Path(config.tokenizer).exists():
        tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    if tokenizer is not None and tokenizer.sha256 != manifest.tokenizer_sha256:
        found.append(Difference("tokenizer", manifest.tokenizer_sha256, tokenizer.sha256))
    elif tokenizer is not None and tokenizer.eos_id != manifest.eos_id:
        found = [difference for difference in found if difference.key != "eos_token"]
        found.append(Difference("tokenizer", manifest.eos_id, tokenizer.eos_id))
    if config.parent and built.parent and manifest.parent and config.parent.manifest != built.parent.manifest:
        parent = read_parent(config.parent)
        if parent is not None and parent.plan_id != manifest.parent["plan_id"]:
            found.append(Difference("parent.manifest", built.parent.manifest, config.parent.manifest))
    return found


def disagreements(
    config: Config, built: Config | None, manifest: Manifest, tokenizer: Tokenizer, run: str | None = None
) -> list[str]:
    """The differences between `config` and the config of a manifest, as messages with key, old and new value.

    Training compares with the build; evaluation, export and replay compare with the folder or URL `run`. `built` is the
    config beside the manifest. Without it, only what the manifest itself states is compared. Raises InputError like
    `build_differences`.
    """
    if built is None:
        stated = (("name", manifest.name, config.name), ("seq_len", manifest.seq_len, config.seq_len))
        found = [Difference(key, then, now) for key, then, now in stated if then != now]
    else:
        found = build_differences(config, built, manifest, tokenizer)
    if run is None:
        when, remedy = f"'{manifest.name}' was built", "Build with this config first: dataengine build CONFIG"
    else:
        when, remedy = f"{run} was trained", f"Give this run's own config, such as {run}/config.yaml, or another `out`."
    settings = [
        f"{second_name(one.key)} is {_short(one.as_written(one.now))} in the config, but was "
        f"{_short(one.as_written(one.then))} when {when}. {remedy}"
        for one in found
        if one.key != "tokenizer"
    ]
    mismatch = tokenizer_mismatch(config.tokenizer, tokenizer, manifest, rebuild=run is None)
    return [*settings, mismatch] if mismatch else settings


def _short(value: object) -> str:
    """A setting as one line, shortened if it is a whole section."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:100]} ... ({len(text):,} characters)"


def _as_built(config: Config) -> Config:
    """A config reduced to the streams that its stages mix, and to the names of the languages of their pairs."""
    streams = {name: config.streams[name] for stage in config.stages for name in stage.streams}
    codes = {code for stream in streams.values() if isinstance(stream, PairStream) for code in stream.codes}
    languages = {code: config.languages[code] for code in sorted(codes) if code in config.languages}
    return config.model_copy(update={"streams": streams, "languages": languages})


def read_built_config(store: Store, name: str) -> Config:
    """The config that an experiment was built with. Raises InputError if it is missing or damaged."""
    key = f"experiments/{name}/config.yaml"
    again = "Build again: dataengine build CONFIG"
    try:
        return Config.model_validate(yaml.safe_load(store.read(key)))
    except FileNotFoundError:
        raise InputError(f"no {store.url}/{key} beside the manifest. {again}") from None
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{store.url}/{key} cannot be used: {reason}. {again}") from None


def check_tokenizer(path: str, tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Raise InputError unless the manifest's streams were built with this tokenizer."""
    if mismatch := tokenizer_mismatch(path, tokenizer, manifest):
        raise InputError(mismatch)


def tokenizer_mismatch(path: str, tokenizer: Tokenizer, manifest: Manifest, *, rebuild: bool = True) -> str | None:
    """How a tokenizer differs from the one of a manifest, as a message; None if it is the same.

    `rebuild`: advise a new build, which does not help once a run is trained.
    """
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        return (
            f"tokenizer mismatch: the streams of manifest {manifest.plan_id[:12]} were tokenized with the tokenizer of "
            f"sha256 {manifest.tokenizer_sha256[:12]}, but {path} has {tokenizer.sha256[:12]}. "
            "Set `tokenizer` to the file that the build used"
            f"{', or build again: dataengine build CONFIG' if rebuild else '.'}"
        )
    if tokenizer.eos_id != manifest.eos_id:
        return (
            f"tokenizer mismatch: the documents of manifest {manifest.plan_id[:12]} end with token {manifest.eos_id}, "
            f"but the end of {path} is now {tokenizer.eos_id}. Restore `eos_token`, or tokenizer_config.json beside "
            f"the tokenizer{'; or build again: dataengine build CONFIG' if rebuild else '.'}"
        )
    return None
