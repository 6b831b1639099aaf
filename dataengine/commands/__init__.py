"""What each subcommand of `dataengine` does: plan, inspect, score, contamination, estimate, verify, export.

A config or a manifest comes in; printed tables, a report or written files go out. Commands call `build` and the
rooms below it and decide nothing about bytes, order or schedule. No other package may import them, but the
trainer.
"""
