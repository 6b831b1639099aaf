"""Which records are kept and why the others are not: rules, language, duplicates, evaluation sets, scores.

Columns of texts come in; a keep mask or a reason per record goes out. Nothing here knows where texts come from, in
which parts they are read or what is made of them; only `comet` may import torch.
"""
