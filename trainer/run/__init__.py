"""The files and processes of one run: its folder and lock, its settings, its step log, its ranks, its signals.

The lowest package of the trainer: it does not import checkpoints, data, models or Composer, and needs torch only for
the rendezvous of the ranks.
"""
