"""PyTorch's format before 1.6: five pickles one after the other, and then the storages.

The pickles are a magic number, a version, facts about the machine, the object, and the keys of the storages. Each
storage is the count of its elements, in 8 bytes, and the elements. Tensors are views of the mapped file.
"""

import mmap
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats.torch_pickle import MAX_PICKLE, PickleMachine, Storage
from jaxgpt.convert.formats.torch_zip import whose_pickle

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MAGIC_BYTES = MAGIC.to_bytes(10, "little")


def is_legacy(magic: bytes) -> bool:
    """Tell whether a file begins like one of PyTorch before 1.6."""
    return magic[:1] == b"\x80" and MAGIC_BYTES in magic[:32]


def read(path: Path) -> Any:
    """Return the object in the file; its tensors are NumPy views of the mapped file, and no data of theirs is read.

    Raises:
        InputError: the file is damaged, or its pickle names anything but containers and tensors.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with whose_pickle(path):
        magic, at = _run(data, 0)
        version, at = _run(data, at)
        machine, begin = _run(data, at)
        if (magic, version) != (MAGIC, VERSION):
            raise InputError(
                f"version {reprlib.repr(version)} of the format that PyTorch had before 1.6; only version {VERSION} "
                "of it can be read"
            )
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise InputError("saved on a big-endian machine, which is not supported")
        stated: dict[str, tuple[np.dtype, int]] = {}
        _, at = _run(data, begin, _recorder(stated, len(data)))  # only to learn how long each storage is
        keys, at = _run(data, at)
        storages = _locate(data, at, keys, stated)
        return _run(data, begin, lambda key, dtype, count: storages.get(key))[0]


class _Reader:
    """A part of a mapped file as a pickle's program; nothing beyond is read, whatever length the program states."""

    def __init__(self, data: mmap.mmap, begin: int, end: int):
        self._data, self._at, self._end = data, begin, min(end, len(data))

    def tell(self) -> int:
        return self._at

    def read(self, n: int) -> bytes:
        begin, self._at = self._at, min(self._at + n, self._end)
        return self._data[begin : self._at]

    def readline(self) -> bytes:
        found = self._data.find(b"\n", self._at, self._end)
        return self.read((found + 1 or self._end) - self._at)


def _run(data: mmap.mmap, begin: int, storage: Storage | None = None) -> tuple[Any, int]:
    """Return what the pickle that begins here makes, and where it ends."""
    reader = _Reader(data, begin, begin + MAX_PICKLE)
    return PickleMachine(storage).run(reader), reader.tell()


def _recorder(stated: dict[str, tuple[np.dtype, int]], n_bytes: int) -> Storage:
    """Return a function that notes the types and counts of storages, and gives zeros that take no memory."""

    def find(key: str, dtype: np.dtype, count: Any) -> np.ndarray:
        if type(count) is not int or not 0 <= count * dtype.itemsize <= n_bytes:
            raise InputError(
                f"truncated: storage {key} has {reprlib.repr(count)} numbers of {dtype}, more than the file's "
                f"{n_bytes:,} bytes hold"
            )
        if stated.setdefault(key, (dtype, count)) != (dtype, count):
            raise InputError(f"storage {key} is of two sizes")
        return np.broadcast_to(np.zeros(1, dtype), (count,))

    return find


def _locate(data: mmap.mmap, at: int, keys: Any, stated: Mapping[str, tuple[np.dtype, int]]) -> dict[str, np.ndarray]:
    """Return the storages, as views, in the order in which they follow the pickles."""
    if not isinstance(keys, list) or len(keys) != len(stated) or {*map(str, keys)} != stated.keys():
        raise InputError("the keys of its storages are not those that its tensors name")
    storages = {}
    for key in keys:
        dtype, count = stated[key]
        begin, end = at + 8, at + 8 + count * dtype.itemsize
        if end > len(data):
            raise InputError(f"storage {key} is beyond the end of the file: truncated")
        if int.from_bytes(data[at:begin], "little") != count:
            raise InputError(f"storage {key} has another size in the file than in the pickle")
        storages[key] = np.frombuffer(data, dtype, count, begin) if count else np.empty(0, dtype)
        at = end
    if at != len(data):
        raise InputError(f"{len(data) - at:,} bytes follow the last storage")
    return storages
