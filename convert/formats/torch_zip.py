"""PyTorch's zip format (`torch.save` since 1.6): a pickle of containers, and storages as uncompressed members.

Tensors are views of the mapped file; `convert.formats.torch_pickle` reads and writes the pickle, without torch.
"""

import contextlib
import mmap
import os
import reprlib
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.disk import with_progress
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats.torch_pickle import MAX_PICKLE, PickleMachine, Storage, pickle_of

MAX_MEMBERS = 100_000
MAX_END, MAX_DIRECTORY = 70_000, 20_000_000
"""Bytes in which the end of a zip file is, and of its directory, which names its members."""
"""Most members of the zip; a GPT-2 has one for each tensor."""


def _check_directory(path: Path) -> None:
    """Refuse a directory of too many members by its size, before the library reads it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - MAX_END))
        end = file.read(MAX_END)
    at = end.rfind(b"PK\5\6")
    n_bytes = int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0
    if (at64 := end.rfind(b"PK\6\6")) >= 0:  # of large files
        n_bytes = max(n_bytes % (2**32 - 1), int.from_bytes(end[at64 + 40 : at64 + 48], "little"))
    if n_bytes > MAX_DIRECTORY:
        raise InputError(f"{path}: too many members, or a duplicate one")


def read(path: Path) -> Any:
    """Return the object in the file; its tensors are NumPy views of the mapped file, and no data of theirs is read.

    Raises:
        InputError: the file is damaged, or its pickle names anything but containers and tensors.
    """
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) > MAX_MEMBERS or len(members) != len(archive.infolist()):
                raise InputError(f"{path}: too many members, or a duplicate one")
            pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise InputError(f"{path}: a zip file, but not one that torch.save writes (no data.pkl)")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}constants.pkl" in members:
                raise InputError(f"{path}: a TorchScript program, not a checkpoint; save its state_dict() instead")
            for info in members.values():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise InputError(f"{path}: {info.filename} is compressed, which torch.save never does")
            if members[pickles[0]].file_size > MAX_PICKLE:
                raise InputError(f"{path}: its pickle is too large ({members[pickles[0]].file_size:,} bytes)")
            byteorder = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
            if byteorder != b"little":
                raise InputError(f"{path}: saved on a big-endian machine, which is not supported")
            program = archive.read(pickles[0])
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a damaged zip file ({error})") from None
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages = {name.removeprefix(f"{root}data/"): m for name, m in members.items() if name.startswith(f"{root}data/")}
    with whose_pickle(path):
        return PickleMachine(_storages(data, storages)).run(program)


@contextlib.contextmanager
def whose_pickle(path: Path) -> Iterator[None]:
    """Name the file in whatever a pickle raises in the machine, which for a hostile one may be anything."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        raise InputError(f"{path}: a damaged pickle ({type(error).__name__}: {error})") from None


def _storages(data: mmap.mmap, members: Mapping[str, zipfile.ZipInfo]) -> Storage:
    """Return the function that finds a storage among the members of a mapped zip."""

    def find(key: str, dtype: np.dtype, count: Any) -> np.ndarray | None:
        if key not in members:
            return None
        info = members[key]
        begin = info.header_offset
        local = data[begin : begin + 30]
        if local[:4] != b"PK\3\4":
            raise InputError(f"member {info.filename} has no header")
        begin += 30 + sum(struct.unpack("<HH", local[26:30]))
        if type(count) is not int or not 0 <= count * dtype.itemsize <= info.file_size:
            raise InputError(
                f"storage {key} has {info.file_size:,} bytes, and not {reprlib.repr(count)} numbers of {dtype}"
            )
        if begin + info.file_size > len(data):
            raise InputError(f"storage {key} is beyond the end of the file: truncated")
        return np.frombuffer(data, dtype, count, begin) if count else np.empty(0, dtype)

    return find


def write(path: Path, tree: Any, dtype: np.dtype | None = None) -> None:
    """Write nested dicts, strings, numbers and arrays so that `torch.load(path, weights_only=True)` reads them.

    An array that appears twice is one storage with two names, like PyTorch's tied tensors.
    """
    arrays: dict[int, tuple[int, Any]] = {}
    program = b"\x80\x02" + pickle_of(tree, arrays, dtype) + b"."
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        named = {str(key): array for key, array in arrays.values()}
        for key in with_progress("writing", named, named, dtype):
            array = named[key]
            values = np.asarray(array)
            values = np.ascontiguousarray(values, dtype=dtype or values.dtype)
            with archive.open(zipfile.ZipInfo(f"archive/data/{key}"), "w", force_zip64=True) as member:
                member.write(values.reshape(-1).view(np.uint8).data)
        archive.writestr("archive/version", "3\n")
    with path.open("rb") as file:
        os.fsync(file.fileno())
