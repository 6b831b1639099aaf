"""Built streams as files: MDS shards, their index, their summary and the way back to the sources.

Arrays of token ids come in (`writer`) and go out (`reader`), byte for byte those of streaming.MDSWriter. Every
file has a size and hashes (`types`). It may not know schedules, configs, streaming or torch.
"""
