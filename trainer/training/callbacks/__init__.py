"""The work around each step, one callback per module: clipping, ledger, losses, spikes, log, checkpoints, stop.

Input: the events of a training loop (`protocol`). Output: rows of the step log, checkpoints and, if requested, an early
end. A callback does not know which loop calls it.
"""
