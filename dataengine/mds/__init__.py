"""Built streams as files: MDS shards, their index, their summary, and the provenance of samples.

`writer` writes arrays of token ids, byte for byte as streaming.MDSWriter does; `reader` reads them. Every file has a
size and hashes (`types`). This package must not import schedules, configs, streaming or torch.
"""
