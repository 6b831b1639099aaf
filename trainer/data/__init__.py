"""The samples of a manifest, in its order, on every rank: a thin dataset over mapped and hashed shards.

Takes a manifest and a store; yields arrays of token ids for each step, after any restart and on any number of ranks.
The package does not know the model or the training loop.
"""
