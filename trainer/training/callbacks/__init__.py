"""The work around each step, one callback per module: clipping, ledger, losses, spikes, log, checkpoints, stop.

Input: Composer's events. Output: rows of the step log, checkpoints and, if requested, an early end. A callback does
not know how the Trainer is built.
"""
