"""Sharded checkpoints that are complete or ignored: found, fetched, read, kept and brought to a bucket.

A run folder comes in; `Checkpoint`s with a marker that names every file and hash go out. Only `load`
imports torch; it may not know how a model is trained.
"""
