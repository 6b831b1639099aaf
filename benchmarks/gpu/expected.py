"""The expected figures, each with its source. None was measured on a GPU so far."""

from __future__ import annotations

BY_READING = "estimate from reading the code and the data sheet, not measured"
ON_CPU = "the same run on CPU with torch 2.7.0, fp32"

# Part A: yamls/mini/uni_en_zh.yaml after 40 steps.
DIGEST = "91702128e89ceb7bacf72871364aa52a90e6ca82c944829dc00685739b255e4f"
LOSS = 6.8820  # nats per token, of step 40
LOSS_WITHIN = 0.01  # share; on CUDA a step is bf16
APART = 0.01  # nats, the most between a run and its resume: CUDA's atomic additions have no fixed order

# Part C: model FLOPs utilization of the 1.1B model. On an H100 (989e12 operations per second in its data sheet) these
# are 57,000 and 72,000 tokens per second.
MFU = {"eager": 0.42, "compile": 0.53, "cudnn": 0.42}
SHARE = 0.67  # of the expected speed that must be reached: eager at least 28 % MFU, the low end of `dataengine plan`
SPEEDUP = 1.15  # of compile over eager, at least: torchtitan reports 1.16 for layers that are compiled one by one
LOSS_OF_MODES = 0.005  # share: losses with compile and with another attention kernel, beside eager's

# Part D: docs/internals/benchmarks.md and tests/trainer/model/test_microbatch.py state figures of the same method.
PEAK_WITHIN = 0.05  # share
KNOWN_GB = 67.9  # 1.1B, microbatch 16, 8 ranks, with torch 2.7.0
KNOWN_WITHIN = 0.01

# Part F: reading of the loss, the gradient norm and the checks at the borders of a step.
SYNCS = 9
