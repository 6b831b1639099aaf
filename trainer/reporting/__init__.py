"""One page on many runs: tables, figures, significance and the paper's values beside ours.

Run folders come in (`read`); report.html, report.md and report.csv go out (`page`). It reads files alone: it may
not know torch, checkpoints' weights or the ranks.
"""
