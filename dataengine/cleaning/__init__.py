"""Which records to keep, and the reason for each drop: rules, language, duplicates, evaluation sets, scores.

Input: columns of texts. Output: a keep mask, or a reason per record. Nothing here knows where texts come from, in which
parts they are read, or how they are used. Only `comet` may import torch.
"""
