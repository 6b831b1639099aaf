"""From a config to packed shards and a manifest. Begin at `build.build`: it shows the steps in order.

Input: a checked config. Output: streams in a store, their summaries, and the manifest of the experiment. The work is
split into units (`units`). Each is a pure function of what its fingerprint covers, so executors run them in any order
and on any machine. Nothing here knows what trains on the streams.

`dataengine.build` is the name of this package and of a function of the Python API, so the package can be called:
`dataengine.build(config)` is `build.manifests.build_manifest(config)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataengine.config.schema import Config
    from dataengine.schedule.manifest import Manifest


class _CallablePackage(ModuleType):
    def __call__(self, config: Config, *, workers: int | None = None) -> Manifest:
        from dataengine.build.manifests import build_manifest

        return build_manifest(config, workers=workers)


sys.modules[__name__].__class__ = _CallablePackage
