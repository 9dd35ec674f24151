"""The pickle inside a PyTorch file: a machine that runs it without importing anything, and a writer.

The machine knows containers, numbers, strings, and four callables of PyTorch's. Anything else is an error
that names it.
"""

import collections
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.convert.errors import InputError

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
"""Types of the elements of `torch.FloatStorage` and so on."""


MOST_PLAIN = 10**7
"""Bytes of a pickle without tensors, at most."""


class PickleMachine:
    """A machine for the opcodes of a state dict's pickle: https://docs.python.org/3/library/pickletools.html."""

    def __init__(self, data: mmap.mmap | None, storages: Mapping[str, zipfile.ZipInfo]):
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
        raise InputError("its pickle has no end")

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
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._above_mark()
                _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_resolve_global(*argument.split(" ")))
            case "STACK_GLOBAL":
                stack.append(_resolve_global(*self._pop(2)))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(self._call(function, _expect(arguments, tuple)))
            case "BINPERSID":
                stack.append(self._storage(_expect(stack.pop(), tuple)))
            case "BUILD":  # an OrderedDict's attributes: `_metadata` of a state dict
                stack.pop()
                _expect(stack[-1], collections.OrderedDict)
            case _:
                raise InputError(f"its pickle uses {name}, which no state dict needs")

    def _pop(self, n: int) -> list[Any]:
        if len(self._stack) - n < (self._marks[-1] if self._marks else 0):
            raise InputError("its pickle takes more from the stack than it holds")
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
            return collections.OrderedDict(*(dict(_expect(pairs, list)) for pairs in arguments))
        if function == "torch._utils._rebuild_parameter":
            return _expect(arguments[0], np.ndarray)
        if function == "torch._utils._rebuild_tensor_v2":
            return _tensor(*arguments[:4])
        raise InputError(f"its pickle calls {function!r}, which no state dict needs")

    def _storage(self, persistent_id: tuple) -> np.ndarray:
        kind, storage_type, key, _, count = persistent_id  # the device, such as cuda:0, does not matter
        dtype = STORAGES.get(str(storage_type).removeprefix("torch."))
        if kind != "storage" or dtype is None or not isinstance(key, str) or key not in self._storages:
            raise InputError(f"its pickle names an invalid storage: {persistent_id!r}"[:300])
        assert self._data is not None
        info = self._storages[key]
        begin = info.header_offset
        local = self._data[begin : begin + 30]
        if local[:4] != b"PK\3\4":
            raise InputError(f"member {info.filename} has no header")
        begin += 30 + sum(struct.unpack("<HH", local[26:30]))
        if type(count) is not int or not 0 <= count * dtype.itemsize <= info.file_size:
            raise InputError(f"storage {key} has {info.file_size:,} bytes, which are not {count!r} of {dtype}")
        if begin + info.file_size > len(self._data):
            raise InputError(f"storage {key} is beyond the end of the file: truncated")
        return np.frombuffer(self._data, dtype, count, begin) if count else np.empty(0, dtype)


def read_pickle(path: Path) -> Any:
    """Read a pickle of plain data: containers, numbers and strings.

    Raises:
        InputError: it is too large, broken, or holds anything else.
    """
    if path.stat().st_size > MOST_PLAIN:
        raise InputError(f"{path}: more than {MOST_PLAIN:,} bytes")
    try:
        return PickleMachine(None, {}).run(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # pickletools raises many kinds for bytes that are no pickle
        raise InputError(f"{path}: not a pickle that can be read ({type(error).__name__})") from None


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """Return a view of a storage, and refuse one that reaches beyond it."""
    _expect(storage, np.ndarray)
    numbers = [offset, *_expect(shape, tuple), *_expect(strides, tuple)]
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(shape) != len(strides) or len(shape) > 8:
        raise InputError(f"invalid tensor: shape {shape!r} and strides {strides!r} at {offset!r}")
    if math.prod(max(n, 1) for n in shape) >= 2**48:
        raise InputError(f"invalid tensor: shape {shape!r} is too large")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise InputError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size:,} elements")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:] if 0 not in shape else storage[:0], shape, steps)


def _resolve_global(module: str, name: str) -> Any:
    """Return a stand-in for a global of the pickle, without importing it."""
    full = f"{module}.{name}"
    if full == "collections.OrderedDict":
        return collections.OrderedDict
    known = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
    if full in known or (module == "torch" and name in STORAGES):
        return full
    raise InputError(f"its pickle names {full}, which no state dict needs: refused, and nothing was called")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def pickle_of(value: Any, arrays: dict[int, tuple[int, Any]], dtype: np.dtype | None) -> bytes:
    """Return the opcodes, of protocol 2, that make a value; `arrays` collects storages by the identity of arrays."""
    if isinstance(value, dict):
        pairs = b"".join(pickle_of(k, arrays, dtype) + pickle_of(v, arrays, dtype) for k, v in value.items())
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
        return b"(" + b"".join(pickle_of(n, arrays, dtype) for n in numbers) + b"t"

    n_elements = math.prod(value.shape)
    storage = b"(" + pickle_of("storage", arrays, dtype) + f"ctorch\n{kind}\n".encode()
    storage += b"".join(pickle_of(part, arrays, dtype) for part in (str(key), "cpu", n_elements)) + b"tQ"
    rest = integers(value.shape) + integers(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J\0\0\0\0" + rest + b"tR"
