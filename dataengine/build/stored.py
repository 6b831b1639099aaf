"""The streams of a config that a store already has. Nothing is written, and no source is hashed."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataengine.build.prepare import load_token_format, plan_stream, read_source_hashes
from dataengine.build.publish import read_built_stream
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.types import Stream
from dataengine.storage.store import Store
from dataengine.text.tokenizers.base import Tokenizer

_NOTHING = "nothing is built there, or its source_hashes.json is gone"


@dataclass(frozen=True)
class StoredStreams:
    """Streams by name, and for each other stream in use the reason why the store does not have it.

    `tokenizer` is None if it cannot be loaded or if nothing was ever built in the store.
    """

    tokenizer: Tokenizer | None = None
    streams: dict[str, Stream] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def find_stored_streams(config: Config, store: Store) -> StoredStreams:
    """The streams that a build of `config` would reuse: those of the same fingerprint.

    A source is recognized by its path and version, as the build recognizes it. A source that no build of this store
    has read in this version makes its stream missing. Raises InputError if a stream in the store is damaged.
    """
    hashes = read_source_hashes(store)
    if not hashes:
        return StoredStreams(missing=dict.fromkeys(config.streams_in_use, _NOTHING))
    try:
        tokenizer, form = load_token_format(config)
    except InputError as error:
        return StoredStreams(missing=dict.fromkeys(config.streams_in_use, str(error)))
    found = StoredStreams(tokenizer)
    for name in config.streams_in_use:
        try:
            plan, _ = plan_stream(config, name, tokenizer, form, hashes, hash_new=False)
        except InputError as error:
            found.missing[name] = str(error)
            continue
        if store.size(f"{plan.folder}/index.json") is None:
            found.missing[name] = "not built with these settings"
        else:
            found.streams[name] = read_built_stream(plan, store, new=False).stream
    return found
