"""What happens around each step, one callback in each module: clipping, ledger, losses, spikes, log, checkpoints, stop.

Composer's events come in; rows of the step log, checkpoints and an earlier end go out. A callback may not know how
the Trainer is built.
"""
