"""From a config to packed shards and a manifest: `build.build` is the whole of it, in order.

A checked config comes in; streams in a store, their summaries and the manifest of the experiment go out. The work
is cut into units (`units`), each a pure function of what its fingerprint covers, that executors run in any order
and on any machine. It may not know what trains on its streams.
"""
