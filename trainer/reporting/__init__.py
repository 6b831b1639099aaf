"""One page for many runs: tables, figures, significance, and the paper's values beside ours.

Input: run folders (`read`). Output: report.html, report.md and report.csv (`page`). The package only reads files: no
module here knows torch, the weights of checkpoints, or ranks.
"""
