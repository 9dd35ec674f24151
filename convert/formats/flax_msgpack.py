"""The format of Flax's `serialization.to_bytes`, such as transformers' `flax_model.msgpack`: nested dicts of arrays.

https://github.com/msgpack/msgpack/blob/master/spec.md. An array is an extension of type 1, which holds its shape, the
name of its type, and its bytes in row-major order. Arrays are views of the mapped file; nothing else is in such a file
of parameters, and anything else is refused.
"""

import math
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxgpt.convert.errors import InputError

DTYPES = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
MAX_DEPTH, MAX_ENTRIES, MAX_TEXT = 16, 100_000, 1_000
"""Most dicts in each other, entries in all, and bytes of a name; a GPT-2 has 6, some hundreds, and about ten."""

ARRAY = 1
"""Flax's type of extension for an array."""


def read(path: Path) -> dict[str, np.ndarray]:
    """Return read-only views of the memory-mapped file, by their dotted names, without reading tensor data.

    Raises:
        InputError: the file is truncated, or holds anything but dicts and arrays.
    """
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(data)
    try:
        reader.tree("", 0)
        if reader.at != len(data):
            raise InputError(f"{len(data) - reader.at:,} bytes follow the last array")
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a file of Flax's parameters, or a damaged one: {error}") from None
    return reader.arrays


class _Reader:
    """Reads msgpack from a place in a mapped file on."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.end = data, 0, len(data)
        self.arrays: dict[str, np.ndarray] = {}
        self._n_entries = 0

    def tree(self, name: str, depth: int) -> None:
        """Read a dict or an array."""
        kind = self._byte()
        if kind in EXTENSIONS:
            self._array(name, self._number(EXTENSIONS[kind]))
        elif kind in FIXED_EXTENSIONS:
            self._array(name, FIXED_EXTENSIONS[kind])
        elif 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
            n = kind & 0xF if kind <= 0x8F else self._number(2 if kind == 0xDE else 4)
            self._n_entries += n
            if depth >= MAX_DEPTH or self._n_entries > MAX_ENTRIES:
                raise InputError(f"more than {MAX_DEPTH} dicts in each other, or {MAX_ENTRIES:,} entries")
            for key in (self._text() for _ in range(n)):
                self.tree(f"{name}.{key}" if name else key, depth + 1)
        else:
            raise InputError(f"{name or 'it'} is neither a dict nor an array (byte {kind:#04x})")

    def _array(self, name: str, size: int) -> None:
        if self._byte() != ARRAY:
            raise InputError(f"{name} is an extension of another type than an array")
        end = self._past(size)
        n_axes = self._header("a list", 0x90, {0xDC: 2, 0xDD: 4})
        if n_axes != 3:
            raise InputError(f"{name} has {n_axes} parts instead of three: a shape, a type and bytes")
        n_axes = self._header("a shape", 0x90, {0xDC: 2, 0xDD: 4})
        if n_axes > 8:
            raise InputError(f"{name} has {n_axes} axes")
        shape = tuple(self._integer() for _ in range(n_axes))
        dtype = self._text()
        n_bytes = self._header("bytes", None, {0xC4: 1, 0xC5: 2, 0xC6: 4})
        if dtype not in DTYPES:
            raise InputError(f"{name} is of an unsupported type, {dtype!r}")
        if math.prod(max(n, 1) for n in shape) >= 2**48 or math.prod(shape) * DTYPES[dtype].itemsize != n_bytes:
            raise InputError(f"{name} {shape} of {dtype} does not take {n_bytes:,} bytes")
        if self._past(n_bytes) != end:
            raise InputError(f"{name} is not as long as it says")
        if name in self.arrays:
            raise InputError(f"{name} appears twice")
        self.arrays[name] = np.ndarray(shape, DTYPES[dtype], buffer=self.data, offset=self.at)
        self.at = end

    def _byte(self) -> int:
        return self._number(1)

    def _number(self, n_bytes: int) -> int:
        begin, self.at = self.at, self._past(n_bytes)
        return int.from_bytes(self.data[begin : self.at], "big")

    def _past(self, n_bytes: int) -> int:
        """Return the place so many bytes on, and refuse one beyond the end."""
        if self.at + n_bytes > self.end:
            raise InputError(f"truncated, {self.at + n_bytes - self.end:,} bytes are missing")
        return self.at + n_bytes

    def _header(self, what: str, small: int | None, sizes: dict[int, int], n_small: int = 16) -> int:
        """Read how long a list, a text or bytes are: in the first byte itself, or in some bytes after it."""
        kind = self._byte()
        if small is not None and small <= kind < small + n_small:
            return kind - small
        if kind not in sizes:
            raise InputError(f"byte {kind:#04x} where {what} belongs")
        return self._number(sizes[kind])

    def _text(self) -> str:
        size = self._header("a name", 0xA0, {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1}, 32)
        if size > MAX_TEXT:
            raise InputError(f"a name of {size:,} bytes")
        begin, self.at = self.at, self._past(size)
        return self.data[begin : self.at].decode()

    def _integer(self) -> int:
        return self._header("a size", 0x00, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}, 128)


EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
"""Bytes of the length that follows the first byte of an extension."""

FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
"""Extensions of a fixed length."""
