"""Built streams as files: MDS shards, their index, their summary and the way back to the sources.

Arrays of token ids come in (`writer`), byte for byte as from streaming.MDSWriter, and go out (`reader`). Every
file has a size and hashes (`types`). It may not know schedules, configs, streaming or torch.
"""
