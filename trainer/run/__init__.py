"""The files and processes of one run: its folder and lock, its settings, its step log, its ranks, its signals.

It is the lowest room of the trainer: it may not know checkpoints, data, models or Composer, and needs torch only
to let ranks meet.
"""
