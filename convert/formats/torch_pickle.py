"""The pickle inside a PyTorch file: a machine that runs it without importing anything, and a writer.

The machine knows containers, numbers, strings, and a table of names with what stands for each (`pickle_names`).
Anything else is an error that names it.
"""

import collections
import math
import pickletools
import reprlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats.pickle_names import Attributes, Name, NumpyType, call, expect, plain_key, resolve

MAX_PICKLE, MAX_OPCODES = 100_000_000, 500_000
"""Most bytes and opcodes of a pickle; that of a GPT-2 has ten kilobytes, with moments 150,000 opcodes."""

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


Storage = Callable[[str, np.dtype, Any], np.ndarray | None]
"""Returns the elements of a storage for its key, type and stated count; None where there is none of this key."""

MOST_PLAIN = 10**7
"""Bytes of a pickle without tensors, at most."""


class PickleMachine:
    """A machine for the opcodes of a state dict's pickle: https://docs.python.org/3/library/pickletools.html."""

    def __init__(self, storage: Storage | None = None):
        self._find_storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: Any) -> Any:
        """Return what a program makes: bytes, or a reader, which is left behind the program's end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if opcode.name == "STOP":
                (result,) = self._stack
                return result
            if count == MAX_OPCODES:
                raise InputError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
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
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "SHORT_BINSTRING" | "BINSTRING":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({"DICT": dict, "LIST": list, "TUPLE": tuple, "SET": set}[name.removeprefix("EMPTY_")]())
            case "FROZENSET":
                stack.append(frozenset(map(plain_key, self._above_mark())))
            case "ADDITEMS":
                items = self._above_mark()
                expect(stack[-1], set).update(map(plain_key, items))
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = self._pop(int(name[-1]))
                stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._above_mark()
                expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._above_mark()
                expect(stack[-1], dict).update(zip(map(plain_key, items[::2]), items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_resolve(*argument.split(" ")))
            case "STACK_GLOBAL":
                stack.append(_resolve(*(expect(part, str) for part in self._pop(2))))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(_call(function, expect(arguments, tuple)))
            case "NEWOBJ":
                kind, arguments = self._pop(2)
                if not (isinstance(kind, Name) and kind.is_class and arguments == ()):
                    raise InputError(f"its pickle makes {reprlib.repr(kind)} by NEWOBJ, which no state dict needs")
                stack.append(Attributes())
            case "BINPERSID":
                stack.append(self._storage(expect(stack.pop(), tuple)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Attributes | NumpyType):
                    stack[-1].build(state)
                else:  # an OrderedDict's attributes: `_metadata` of a state dict
                    expect(stack[-1], collections.OrderedDict)
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

    def _storage(self, persistent_id: tuple) -> np.ndarray:
        if len(persistent_id) < 5:  # PyTorch before 1.6 has one for each module, too
            raise InputError(
                "its pickle holds a whole nn.Module, or an invalid storage: save its state_dict() in PyTorch instead"
            )
        kind, storage_type, key, _, count, *view = persistent_id  # the device, such as cuda:0, does not matter
        dtype = STORAGES.get(storage_type.removeprefix("torch.")) if isinstance(storage_type, str) else None
        found = None
        is_storage = isinstance(kind, str) and kind == "storage" and isinstance(key, str)
        if is_storage and dtype is not None and self._find_storage is not None:
            found = self._find_storage(key, dtype, count)
        if found is None:
            raise InputError(f"its pickle names an invalid storage: {reprlib.repr(persistent_id)}")
        if not view or view[0] is None:
            return found
        (_, begin, size), *_ = view  # of a storage that shows a part of another, before PyTorch 1.6
        if not (type(begin) is type(size) is int and 0 <= begin <= begin + size <= found.size):
            raise InputError(f"a view of storage {key} reaches beyond it")
        return found[begin : begin + size]


def _resolve(module: str, name: str) -> Name:
    return Name(f"torch.{name}") if module == "torch" and name in STORAGES else resolve(module, name)


def _call(function: Any, arguments: tuple) -> Any:
    match expect(function, str):  # of an array, a comparison would be as large as it says it is
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return expect(arguments[0], np.ndarray)
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
            return _tensor(*arguments[:4])
        case "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes, which are left out
            return _call(arguments[0], expect(arguments[2], tuple))
    return call(function, arguments)


def read_pickle(path: Path) -> Any:
    """Read a pickle of plain data: containers, numbers and strings.

    Raises:
        InputError: it is too large, broken, or holds anything else.
    """
    if path.stat().st_size > MOST_PLAIN:
        raise InputError(f"{path}: more than {MOST_PLAIN:,} bytes, too much for such a file")
    try:
        return PickleMachine().run(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # pickletools raises many kinds for bytes that are no pickle
        raise InputError(f"{path}: not a pickle that can be read ({type(error).__name__})") from None


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """Return a view of a storage, and refuse one that reaches beyond it."""
    expect(storage, np.ndarray)
    numbers = [offset, *expect(shape, tuple), *expect(strides, tuple)]
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(shape) != len(strides) or len(shape) > 8:
        parts = (reprlib.repr(part) for part in (shape, strides, offset))
        raise InputError("invalid tensor: shape {} and strides {} at {}".format(*parts))
    if math.prod(max(n, 1) for n in shape) >= 2**48:
        raise InputError(f"invalid tensor: shape {shape!r} is too large")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise InputError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size:,} elements")
    if storage.strides == (0,):  # zeros that stand for a storage which is not located yet
        return np.broadcast_to(storage[:1].reshape(()) if storage.size else np.zeros((), storage.dtype), shape)
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:] if 0 not in shape else storage[:0], shape, steps)


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
