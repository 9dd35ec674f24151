"""Peak numbers of accelerators, in one table, from their makers' pages."""

from dataclasses import dataclass
from typing import Any

GB, GIB = 10**9, 2**30


@dataclass(frozen=True)
class Chip:
    """A whole accelerator; JAX may count it as several devices, which is `cores`."""

    name: str
    """As in `--topology`."""
    kinds: tuple[str, ...]
    """Values of JAX's `device_kind`, or the words that it begins with."""
    flops: float
    """Dense bfloat16 FLOP/s; a multiplication and an addition count as two."""
    hbm: float
    """Bytes of memory."""
    usable_bytes: float
    """Bytes of memory that a program may use. TPU: the limit that the compiler (libtpu 0.0.42) names when it refuses a
    program that is too large. GPU: the 75 % that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION is set."""
    bandwidth: float
    """Bytes/s between the chip and its memory."""
    links: float
    """Bytes/s that the chip can send over all its links at once, and receive at the same time: half of the makers'
    bidirectional number."""
    source: str
    cores: int = 1
    slices: tuple[str, ...] = ()
    """Sizes of slices that can be compiled for without such a chip, as in `v5e:2x2`."""


def _gpu(name: str, kind: str, tflops: float, gb: int, gb_s: float, links_gb_s: float, source: str) -> Chip:
    url = f"https://www.nvidia.com/en-us/data-center/{source}/"
    return Chip(name, (kind,), tflops * 1e12, gb * GB, 0.75 * gb * GB, gb_s * GB, links_gb_s * GB, url)


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

TPU_PAGES = "https://cloud.google.com/tpu/docs/"

CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 30.75 * GIB, 1200 * GB, 300 * GB,
         f"{TPU_PAGES}v4; links: Jouppi et al. 2023 (arXiv:2304.01433), table 4", 1, CUBIC),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 15.75 * GIB, 819 * GB, 200 * GB,
         f"{TPU_PAGES}v5e", 1, FLAT),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 96 * GIB, 95.74 * GIB, 2765 * GB, 600 * GB,
         f"{TPU_PAGES}v5p", 1, CUBIC),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 31.25 * GIB, 1638 * GB, 400 * GB,
         f"{TPU_PAGES}v6e", 1, FLAT),
    Chip("tpu7x", ("TPU7x",), 2307e12, 192 * GIB, 189.5 * GIB, 7380 * GB, 600 * GB,
         f"{TPU_PAGES}tpu7x", 2),
    _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 312, 40, 1555, 300, "a100"),
    _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 312, 80, 2039, 300, "a100"),
    _gpu("h100", "NVIDIA H100 80GB", 989.4, 80, 3350, 450, "h100"),
    _gpu("h200", "NVIDIA H200", 989.4, 141, 4800, 450, "h200"),
    _gpu("b200", "NVIDIA B200", 2250, 180, 7700, 900, "dgx-b200"),
    _gpu("l4", "NVIDIA L4", 121, 24, 300, 32, "l4"),
    _gpu("l40s", "NVIDIA L40S", 362, 48, 864, 32, "l40s"),
)  # fmt: skip
"""Dense FLOP/s are half of the numbers "with sparsity" on NVIDIA's pages. L4 and L40S communicate over PCIe 4. The page
of v5p says 95 GB of memory, and the compiler allows more. libtpu 0.0.42 crashes when it compiles for tpu7x, which
therefore has no slices."""


def chip_of(device: Any) -> Chip | None:
    """Return the chip that a JAX device belongs to; None for one that is not in the table, such as a CPU."""
    kind = device.device_kind
    starts = {start: chip for chip in CHIPS for start in chip.kinds if f"{kind} ".startswith(f"{start} ")}
    return starts[max(starts, key=len)] if starts else None
