"""Turn documents and sentence pairs into packed token streams, and a training schedule into exact batches.

The names below are the Python API. Each is imported when it is first used, so `import dataengine` takes no time.

    config = dataengine.load_config("yamls/mini/uni_en_zh.yaml")
    manifest = dataengine.build(config)
    for batch in manifest.batches(start=100):
        print(batch.step, batch.tokens.shape, dataengine.decode(batch.tokens[0], config.tokenizer))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataengine.build.manifests import build_manifest as build
    from dataengine.build.manifests import read_manifest
    from dataengine.commands.plan import plan
    from dataengine.config.load import load_config
    from dataengine.config.schema import Config
    from dataengine.errors import InputError
    from dataengine.schedule.audit import audit
    from dataengine.schedule.log_csv import next_digest
    from dataengine.schedule.manifest import Manifest
    from dataengine.schedule.reader import Batch
    from dataengine.text.tokenizers.decode import decode

__all__ = [
    "Batch",
    "Config",
    "InputError",
    "Manifest",
    "audit",
    "build",
    "decode",
    "load_config",
    "next_digest",
    "plan",
    "read_manifest",
]

_MODULES = {
    "Batch": "schedule.reader",
    "Config": "config.schema",
    "InputError": "errors",
    "Manifest": "schedule.manifest",
    "audit": "schedule.audit",
    "decode": "text.tokenizers.decode",
    "load_config": "config.load",
    "next_digest": "schedule.log_csv",
    "plan": "commands.plan",
    "read_manifest": "build.manifests",
}


def __getattr__(name: str) -> object:
    if name == "build":
        return import_module("dataengine.build")  # a package that can be called
    if name not in _MODULES:
        raise AttributeError(f"module 'dataengine' has no attribute '{name}'")
    return getattr(import_module(f"dataengine.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
