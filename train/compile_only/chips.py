"""What accelerators can do at most: one table, from their makers' pages."""

from dataclasses import dataclass
from typing import Any

GB, GIB = 10**9, 2**30


@dataclass(frozen=True)
class Chip:
    """An accelerator, as a whole; `cores` of JAX's devices share one."""

    name: str
    """As in `--topology`."""
    kinds: tuple[str, ...]
    """What JAX calls its devices (`device_kind`), or the words that it begins with."""
    flops: float
    """Dense bfloat16 FLOP/s, multiply and add counted as two."""
    hbm: float
    """Bytes of memory."""
    usable_bytes: float
    """Of them, what a program is given. TPU: by the compiler (libtpu 0.0.42) when it refuses a program that is too
    large. GPU: the three quarters that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
    bandwidth: float
    """Bytes/s from and to that memory."""
    links: float
    """Bytes/s that it can send to other chips over all its links at once, and receive as many: half of what the makers
    call bidirectional."""
    source: str
    cores: int = 1
    slices: tuple[str, ...] = ()
    """Those that can be compiled for without one, as in `v5e:2x2`."""


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
"""Dense FLOP/s are half of what NVIDIA's pages give "with sparsity"; L4 and L40S talk over PCIe 4. The page of v5p says
95 GB of memory, of which the compiler gives more. libtpu 0.0.42 ends the process where it should compile for tpu7x."""


def chip_of(device: Any) -> Chip | None:
    """The chip that one of JAX's devices is, or is part of; None for one that is not in the table, such as a CPU."""
    kind = device.device_kind
    starts = {start: chip for chip in CHIPS for start in chip.kinds if f"{kind} ".startswith(f"{start} ")}
    return starts[max(starts, key=len)] if starts else None
