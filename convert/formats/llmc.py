"""llm.c's checkpoint: a header of 256 int32, then every parameter tensor in a fixed order, blocks stacked.

https://github.com/karpathy/llm.c, `gpt2_build_from_checkpoint`.
"""

import math
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError

MAGIC = 20240326
DTYPES = {3: np.dtype("<f4"), 5: np.dtype(ml_dtypes.bfloat16)}
"""Type of the numbers, by version."""

TENSORS = (
    ("wte", "V D"), ("wpe", "T D"), ("ln1w", "L D"), ("ln1b", "L D"), ("qkvw", "L 3D D"), ("qkvb", "L 3D"),
    ("attprojw", "L D D"), ("attprojb", "L D"), ("ln2w", "L D"), ("ln2b", "L D"), ("fcw", "L F D"), ("fcb", "L F"),
    ("fcprojw", "L D F"), ("fcprojb", "L D"), ("lnfw", "D"), ("lnfb", "D"),
)  # fmt: skip
"""Tensors in the file's order; one with L is split into one tensor for each block."""


def is_llmc(path: Path) -> bool:
    """Tell whether a file begins with llm.c's magic number."""
    with path.open("rb") as file:
        return file.read(4) == struct.pack("<i", MAGIC)


def read(path: Path) -> tuple[dict[str, np.ndarray], GPTConfig]:
    """Return views of the mapped file by name, and the header's config; padded rows are kept as padding."""
    size = path.stat().st_size
    if size < 1024:
        raise InputError(f"{path}: truncated, {size} bytes are less than llm.c's header")
    header = np.fromfile(path, "<i4", 256).tolist()
    version, T, n_tokens, L, N, D, V = header[1:8]
    if version not in DTYPES:
        raise InputError(f"{path}: llm.c version {version} is not supported, only 3 (float32) and 5 (bfloat16)")
    config = GPTConfig(
        vocab_size=V, n_padding=V - n_tokens, n_positions=T, n_embd=D, n_layer=L, n_head=N, n_inner=4 * D,
        eos_token_id=50256 if V > 50256 else None, bos_token_id=50256 if V > 50256 else None,
    )  # fmt: skip
    dims = config.dims | {"3D": 3 * D}
    shapes = {name: tuple(dims[d] for d in side.split()) for name, side in TENSORS}
    expected = 1024 + DTYPES[version].itemsize * sum(map(math.prod, shapes.values()))
    if size != expected:
        raise InputError(f"{path}: {size:,} bytes, but its header describes {expected:,}")
    data, begin = np.memmap(path, DTYPES[version], "r", 1024), 0
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        array = np.asarray(data[begin : begin + math.prod(shape)]).reshape(shape)
        begin += array.size
        if dict(TENSORS)[name].startswith("L "):
            tensors |= {f"{name}.{i}": array[i] for i in range(L)}
        else:
            tensors[name] = array
    return tensors, config
