"""What a run needs of GPUs, and what GPUs have: parameters, memory, operations, hours.

Input: the sections `model` and `train`, a manifest's sizes, a number of ranks. Output: figures. Pure arithmetic: no
device is asked, and nothing here may import torch. `fitting` has the rule of `train.microbatch_size: auto`.
"""
