"""Sharded checkpoints, complete or ignored: find, fetch, read, keep and upload them.

Takes a run folder; returns `Checkpoint`s, whose marker names every file and hash. Only `load` imports torch. The
package does not know how a model is trained.
"""
