"""From a config to packed shards and a manifest. Begin at `build.build`: it shows the steps in order.

Input: a checked config. Output: streams in a store, their summaries, and the manifest of the experiment. The work is
split into units (`units`). Each is a pure function of what its fingerprint covers, so executors run them in any order
and on any machine. Nothing here knows what trains on the streams.
"""
