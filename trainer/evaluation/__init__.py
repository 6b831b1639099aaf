"""Translate with checkpoints, score the translations, run reasoning tasks and choose a checkpoint.

Checkpoints and evaluation sets come in; results.json of each checkpoint and chosen.json go out. It may not know
training or the report.
"""
