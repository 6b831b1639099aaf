"""The samples of a manifest, in its order, on every rank: a thin dataset over mapped and hashed shards.

A manifest and a store come in; arrays of token ids for each step go out, after any restart and on any number of
ranks. It may not know the model or the training loop.
"""
