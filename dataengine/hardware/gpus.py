"""GPUs: memory, and dense bf16 operations per second.

Operations are those of the vendors' data sheets and white papers as far as they state them: without sparsity, with sums
in fp32. For GPUs that were made for one cloud or country (A10G, A800, H800, H20) they are as reported. None was
measured.

Memory is the `total_memory` that PyTorch reads from the driver, as its out-of-memory errors state it. That is less than
the product's name says in GiB, and differs a little between drivers. GDDR loses a sixteenth where error correction is
on. The lower figure counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dataengine.errors import InputError, did_you_mean

_FREE = 0.1  # share of a GPU's memory left for the CUDA context, NCCL and fragmentation


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, a short one or the driver's, and its memory in bytes."""

    name: str
    memory: int

    @property
    def room(self) -> int:
        """Bytes available to a step."""
        return int(self.memory * (1 - _FREE))

    @property
    def peak(self) -> float | None:
        """Dense bf16 operations per second; None if unknown, or without units for bf16."""
        return peak_flops(self.name)


# Short name; words of the driver's name, the first row that has all of its words there counts; GiB; teraFLOP/s.
_TABLE: tuple[tuple[str, str, float, int | None], ...] = (
    ("gb300", "GB300", 276.5, 2500),
    ("gb200", "GB200", 184.3, 2500),
    ("b300", "B300", 267.6, 2250),
    ("b200", "B200", 178.3, 2250),
    ("gh200", "GH200", 94.5, 989),
    ("h200-nvl", "H200 NVL", 139.8, 836),
    ("h200", "H200", 139.8, 989),
    ("h100-nvl", "H100 NVL", 93.0, 835),
    ("h100-pcie", "H100 PCIe", 79.1, 756),
    ("h100-80", "H100", 79.1, 989),
    ("h800", "H800", 79.1, 989),
    ("h20", "H20", 95.0, 148),
    ("a100-80", "A100 80GB", 79.1, 312),
    ("a100-40", "A100", 39.4, 312),
    ("a800", "A800", 79.1, 312),
    ("a40", "A40", 44.3, 150),
    ("a30", "A30", 23.5, 165),
    ("a10g", "A10G", 22.0, 70),
    ("a10", "A10", 22.0, 125),
    ("l40s", "L40S", 44.4, 362),
    ("l40", "L40", 44.4, 181),
    ("l4", "L4", 22.0, 121),
    ("rtx-pro-6000-max-q", "RTX PRO 6000 Blackwell Max Q", 94.9, 439),
    ("rtx-pro-6000", "RTX PRO 6000 Blackwell", 94.9, 504),
    ("rtx-6000-ada", "RTX 6000 Ada", 44.4, 364),
    ("rtx-a6000", "RTX A6000", 44.4, 155),
    ("rtx-5090", "RTX 5090", 31.3, 209),
    ("rtx-4090", "RTX 4090", 23.6, 165),
    ("rtx-3090", "RTX 3090", 23.6, 71),
    ("v100-32", "V100 32GB", 31.7, None),  # its tensor cores know fp16 only
    ("v100-16", "V100", 15.7, None),
    ("mi300x", "MI300X", 191.6, 1307),
)
_OTHERS = {"mig", "laptop", "d", "ti"}  # a part or a sibling of the GPU of this name: RTX 4090 D, RTX 3090 Ti


def find_gpu(name: str) -> Gpu:
    """Return the GPU of a short name. Raises InputError for an unknown one."""
    for short, _, gib, _ in _TABLE:
        if short == name.lower():
            return Gpu(short, int(gib * 2**30))
    known = [row[0] for row in _TABLE]
    alike = [short for short in known if short.startswith(name.lower())]
    near = f" (which of {', '.join(alike)}?)" if alike else did_you_mean(name.lower(), known)
    raise InputError(f"unknown GPU '{name}'{near}. Known: {', '.join(known)}")


def peak_flops(name: str) -> float | None:
    """Return the dense bf16 operations per second of a GPU, by its short name or the driver's; None if unknown."""
    words = _words(name)
    found = (row for row in _TABLE if row[0] == name or (_words(row[1]) <= words and not words & _OTHERS))
    teraflops = next((row[3] for row in found), None)
    return teraflops and teraflops * 1e12


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z0-9]+", name.lower()))
