"""Remove what no experiment needs of a store."""

from __future__ import annotations

import argparse

from dataengine.build.prune import Unneeded, find_unneeded, remove_unneeded
from dataengine.commands.common import show
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from dataengine.tables import size_words

_YAML = (".yaml", ".yml")


def run(options: argparse.Namespace) -> None:
    """List what would be removed; with --yes, remove it."""
    store, configs = _read(options.config, options.overrides)
    unneeded = find_unneeded(store, configs)
    if options.yes:
        remove_unneeded(unneeded, store)
    show(describe(unneeded, removed=options.yes))


def _read(first: str, others: list[str]) -> tuple[Store, list[Config]]:
    """The store, and the configs that name it. Raises InputError if there are several stores, or none."""
    names = [word for word in (first, *others) if word.endswith(_YAML) and "=" not in word]
    overrides = [word for word in others if "=" in word]
    places = [word for word in (first, *others) if word not in (*names, *overrides)]
    configs = [load_config(name, overrides) for name in names]
    urls = list(dict.fromkeys([*places, *(config.store for config in configs)]))
    stores = {open_store(url).url: open_store(url) for url in urls}
    if len(stores) > 1:
        raise InputError(f"these are several stores: {', '.join(urls)}. Prune one at a time.")
    if overrides and not configs:
        raise InputError(f"settings ({' '.join(overrides)}) go with a config; {first} is a store")
    (store,) = stores.values()
    if not any(store.sizes(f"{folder}/") for folder in ("streams", "units", "experiments")):
        raise InputError(f"{store.url} is not a store: it has no streams, units or experiments. Correct the path.")
    return store, configs


def describe(unneeded: Unneeded, *, removed: bool) -> str:
    """What is removed, or would be."""
    units, keeps, streams = (unneeded.of(folder) for folder in ("units", "keeps", "streams"))
    kept = unneeded.kept
    words = "removed" if removed else "would remove"
    lines = [
        *(f"{words} {name}" for name in streams),
        f"{words} {len(streams):,} streams (kept {kept['streams']:,}), {len(units):,} tasks in units/ (kept "
        f"{kept['units']:,}), {len(keeps):,} files in keeps/ (kept {kept['keeps']:,}): {size_words(unneeded.bytes)}",
    ]
    if not unneeded.files:
        return f"nothing to remove (kept {kept['streams']:,} streams, {kept['units']:,} tasks in units/)"
    if not removed:
        if streams:
            lines.append("No manifest of the store names these streams. A run of an earlier plan may still need them.")
        lines.append("Nothing is removed yet. To remove it, give the same command with --yes.")
    return "\n".join(lines)
