"""Translate with checkpoints, score the translations, run reasoning tasks and choose a checkpoint.

Input: checkpoints and evaluation sets. Output: results.json per checkpoint, and chosen.json. No module here knows
training or the report.
"""
