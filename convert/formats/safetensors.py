"""The safetensors format: an 8-byte length, a JSON header, raw tensors. Mapped to read, streamed to write.

https://huggingface.co/docs/safetensors. The library's own reader copies every tensor and has no bfloat16 in NumPy.
Here a tensor is a view of the mapped file, which can be sliced and re-laid without being read.
"""

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.convert.disk import with_progress
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER = 100_000_000
"""Bytes of a header in the reference implementation, at most."""

LARGEST_HEADER = 20_000_000
"""Bytes of a header that is read, at most; that of GPT-2 XL has 60,000."""

MAX_TENSORS, MAX_VALUES = 50_000, 1_000_000
"""Tensors and JSON values of a header, at most; GPT-2 XL has 580 tensors, which are five thousand values."""


def read(path: Path) -> dict[str, np.ndarray]:
    """Return read-only views of the memory-mapped file, by name, without reading tensor data.

    Raises:
        InputError: the file is truncated, or its header is inconsistent.
    """
    size = path.stat().st_size
    if size < 8:
        raise InputError(f"{path}: {size} bytes are too few for a safetensors file")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise InputError(f"{path}: not a safetensors file (its header would be {length:,} bytes)")
    if 8 + length > size:
        raise InputError(f"{path}: truncated, its header of {length:,} bytes does not fit into {size:,}")
    if length > LARGEST_HEADER:
        raise InputError(f"{path}: its header of {length:,} bytes is longer than that of any GPT-2")
    header = _parse(path, data[8 : 8 + length])
    views, end = {}, 0
    for name, dtype, shape, begin, stop in sorted(header, key=lambda entry: (entry[3], entry[4])):
        if begin != end:
            raise InputError(f"{path}: the data of {name!r} does not begin where the tensor before it ends")
        if stop - begin != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{path}: {name!r} {shape} of {dtype} does not take {stop - begin:,} bytes")
        if 8 + length + stop > size:
            last = max(entry[4] for entry in header)
            raise InputError(
                f"{path}: truncated, {8 + length + last - size:,} of {8 + length + last:,} bytes are missing"
            )
        views[name] = np.ndarray(shape, dtype, buffer=data, offset=8 + length + begin)
        end = stop
    if 8 + length + end != size:
        raise InputError(f"{path}: {size - 8 - length - end:,} bytes follow the last tensor")
    return {name: views[name] for name, *_ in header}


def write(path: Path, tensors: Mapping[str, Any], dtype: np.dtype | None = None) -> None:
    """Write tensors to a new file, one at a time in memory; `dtype` casts them."""
    dtype_names = {kind: name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    order = sorted(tensors, key=lambda name: (-np.dtype(dtype or tensors[name].dtype).itemsize, name))
    for name in order:
        kind = np.dtype(dtype or tensors[name].dtype)
        begin, end = end, end + math.prod(tensors[name].shape) * kind.itemsize
        header[name] = {"dtype": dtype_names[kind], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in with_progress("writing", order, tensors, dtype):
            array = np.asarray(tensors[name])
            # row-major whatever the strides: safetensors 0.8 writes a strided array's bytes in memory order (#825)
            array = np.ascontiguousarray(array, dtype=dtype or array.dtype)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _parse(path: Path, text: bytes) -> list[tuple[str, np.dtype, tuple[int, ...], int, int]]:
    try:
        header = parse_json(text, has_unique_names=True, max_values=MAX_VALUES)
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise InputError(f"it names more than {MAX_TENSORS:,} tensors")
        return [_entry(name, fields) for name, fields in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: the safetensors header is broken ({type(error).__name__}: {error})") from None


def _entry(name: str, fields: dict[str, Any]) -> tuple[str, np.dtype, tuple[int, ...], int, int]:
    dtype, shape, (begin, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{name!r}: unsupported dtype {dtype!r}")
    numbers = [*shape, begin, stop]
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or stop < begin or len(shape) > 8:
        raise ValueError(f"{name!r}: invalid shape {shape!r} or offsets {begin!r}:{stop!r}")
    if math.prod(max(n, 1) for n in shape) >= 2**48:  # beside a 0, no size of the data bounds the others
        raise ValueError(f"{name!r}: invalid shape {shape!r}")
    return name, DTYPES[dtype], tuple(shape), begin, stop
