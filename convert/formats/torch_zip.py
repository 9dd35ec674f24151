"""PyTorch's zip format (`torch.save` since 1.6): a pickle of containers, and storages as uncompressed members.

The pickle is run by a machine of our own that knows containers, numbers, strings, and four callables of PyTorch's; it
imports nothing and calls nothing else. Tensors are views of the mapped file. Written the same way, without torch.
"""

import collections
import math
import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.disk import track
from convert.errors import InputError

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""`torch.FloatStorage` and so on, whose elements a storage holds."""

MAX_PICKLE, MAX_MEMBERS = 100_000_000, 100_000
"""Bytes and zip members; a GPT-2's pickle has some ten kilobytes and a member for each tensor."""


def read(path: Path) -> Any:
    """The object in the file, with NumPy views of the mapped file for tensors; no tensor data is read.

    Raises:
        InputError: the file is damaged, or its pickle names anything but plain containers and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) > MAX_MEMBERS or len(members) != len(archive.infolist()):
                raise InputError(f"{path}: too many members, or one stands twice")
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
                raise InputError(f"{path}: its pickle has {members[pickles[0]].file_size:,} bytes")
            order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
            if order != b"little":
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
    try:
        return _Machine(data, storages).run(program)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # whatever a hostile pickle makes of the machine is the file's fault
        raise InputError(f"{path}: a damaged pickle ({type(error).__name__}: {error})") from None


class _Machine:
    """Runs the opcodes of a state dict's pickle: https://docs.python.org/3/library/pickletools.html."""

    def __init__(self, data: mmap.mmap, storages: Mapping[str, zipfile.ZipInfo]):
        self._data, self._storages = data, storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                (result,) = self._stack
                return result
            self._step(opcode.name, argument)
        raise InputError("its pickle does not end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = self._pop(int(name[-1]))
                stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._above_mark()
                _plain(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._above_mark()
                _plain(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_callable(*argument.split(" ")))
            case "STACK_GLOBAL":
                stack.append(_callable(*self._pop(2)))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(self._call(function, _plain(arguments, tuple)))
            case "BINPERSID":
                stack.append(self._storage(_plain(stack.pop(), tuple)))
            case "BUILD":  # an OrderedDict's attributes: `_metadata` of a state dict
                stack.pop()
                _plain(stack[-1], collections.OrderedDict)
            case _:
                raise InputError(f"its pickle does what no state dict needs: {name}")

    def _pop(self, n: int) -> list[Any]:
        if len(self._stack) - n < (self._marks[-1] if self._marks else 0):
            raise InputError("its pickle takes more from the stack than is there")
        items = self._stack[len(self._stack) - n :]
        del self._stack[len(self._stack) - n :]
        return items

    def _above_mark(self) -> list[Any]:
        begin = self._marks.pop()
        items = self._stack[begin:]
        del self._stack[begin:]
        return items

    def _call(self, function: Any, arguments: tuple) -> Any:
        if function is collections.OrderedDict:
            return collections.OrderedDict(*(dict(_plain(pairs, list)) for pairs in arguments))
        if function == "torch._utils._rebuild_parameter":
            return _plain(arguments[0], np.ndarray)
        if function == "torch._utils._rebuild_tensor_v2":
            return _tensor(*arguments[:4])
        raise InputError(f"its pickle calls {function!r}")

    def _storage(self, persistent_id: tuple) -> np.ndarray:
        kind, storage_type, key, _, count = persistent_id  # the device it lay on, such as cuda:0, is of no interest
        dtype = STORAGES.get(str(storage_type).removeprefix("torch."))
        if kind != "storage" or dtype is None or not isinstance(key, str) or key not in self._storages:
            raise InputError(f"its pickle asks for a strange storage: {persistent_id!r}"[:300])
        info = self._storages[key]
        begin = info.header_offset
        local = self._data[begin : begin + 30]
        if local[:4] != b"PK\3\4":
            raise InputError(f"member {info.filename} has no header")
        begin += 30 + sum(struct.unpack("<HH", local[26:30]))
        if type(count) is not int or not 0 <= count * dtype.itemsize <= info.file_size:
            raise InputError(f"storage {key} has {info.file_size:,} bytes, which are not {count!r} of {dtype}")
        if begin + info.file_size > len(self._data):
            raise InputError(f"storage {key} lies beyond the end of the file: truncated")
        return np.frombuffer(self._data, dtype, count, begin) if count else np.empty(0, dtype)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """A view of a storage, if all of it lies within."""
    _plain(storage, np.ndarray)
    numbers = [offset, *_plain(shape, tuple), *_plain(strides, tuple)]
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(shape) != len(strides) or len(shape) > 8:
        raise InputError(f"a tensor of shape {shape!r} and strides {strides!r} at {offset!r}")
    if math.prod(max(n, 1) for n in shape) >= 2**48:
        raise InputError(f"a tensor of shape {shape!r}")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise InputError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size:,} elements")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:] if 0 not in shape else storage[:0], shape, steps)


def _callable(module: str, name: str) -> Any:
    """What stands for a global of the pickle; nothing is imported."""
    full = f"{module}.{name}"
    if full == "collections.OrderedDict":
        return collections.OrderedDict
    known = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
    if full in known or (module == "torch" and name in STORAGES):
        return full
    raise InputError(f"its pickle names {full}, which is no part of a state dict: refused, and nothing was called")


def _plain(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def write(path: Path, tree: Any, dtype: np.dtype | None = None) -> None:
    """Writes nested dicts, strings, numbers and arrays so that `torch.load(path, weights_only=True)` reads them.

    An array that stands twice is one storage with two names, as PyTorch's tied tensors are.
    """
    arrays: dict[int, tuple[int, Any]] = {}
    program = b"\x80\x02" + _pickle(tree, arrays, dtype) + b"."
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        named = {str(key): array for key, array in arrays.values()}
        for key in track("writing", named, named, dtype):
            array = named[key]
            values = np.asarray(array)
            values = np.ascontiguousarray(values, dtype=dtype or values.dtype)
            with archive.open(zipfile.ZipInfo(f"archive/data/{key}"), "w", force_zip64=True) as member:
                member.write(values.reshape(-1).view(np.uint8).data)
        archive.writestr("archive/version", "3\n")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _pickle(value: Any, arrays: dict[int, tuple[int, Any]], dtype: np.dtype | None) -> bytes:
    """The opcodes, of protocol 2, that make a value."""
    if isinstance(value, dict):
        pairs = b"".join(_pickle(k, arrays, dtype) + _pickle(v, arrays, dtype) for k, v in value.items())
        return b"ccollections\nOrderedDict\n)R(" + pairs + b"u"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    key, _ = arrays.setdefault(id(value), (len(arrays), value))
    kind = {d: name for name, d in STORAGES.items()}[np.dtype(dtype or value.dtype)]
    strides = [math.prod(value.shape[i + 1 :]) for i in range(len(value.shape))]

    def integers(numbers) -> bytes:
        return b"(" + b"".join(_pickle(n, arrays, dtype) for n in numbers) + b"t"

    count = math.prod(value.shape)
    storage = b"(" + _pickle("storage", arrays, dtype) + f"ctorch\n{kind}\n".encode()
    storage += _pickle(str(key), arrays, dtype) + _pickle("cpu", arrays, dtype) + _pickle(count, arrays, dtype) + b"tQ"
    rest = integers(value.shape) + integers(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J\0\0\0\0" + rest + b"tR"
