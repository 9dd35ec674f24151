"""The names that a PyTorch file's pickle may use, and what stands for each of them. Nothing is imported or called."""

import collections
import re
import reprlib
import sys
from types import NoneType
from typing import Any

import numpy as np

from jaxgpt.convert.errors import InputError

DTYPES = frozenset(
    """float16 bfloat16 float32 float64 half float double uint8 int8 int16 int32 int64 short int long bool complex32
    complex64 complex128 uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz quint8 qint8
    qint32""".split()
)
"""Types of `torch`, which are read as their names."""

CALLED = frozenset(
    """collections.OrderedDict collections.Counter collections.defaultdict builtins.set builtins.frozenset
    builtins.bytearray builtins.complex _codecs.encode torch.Size torch.device torch.serialization._get_layout
    torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter
    torch._utils._rebuild_parameter_with_state torch._tensor._rebuild_from_type_v2 numpy.dtype
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray._reconstruct numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer builtins.bytes
    types.SimpleNamespace""".split()
)
"""Names that a pickle may call; each call is done here, on plain data."""

NAMED = frozenset(
    """builtins.dict builtins.list builtins.tuple builtins.int builtins.float builtins.str builtins.bool typing.Any
    torch.Tensor torch.nn.parameter.Parameter numpy.ndarray""".split()
)
"""Names that a pickle may have beside those, such as the type of a tensor or of a config's field."""

PYTHON_2 = {"builtins.unicode": "builtins.str", "builtins.long": "builtins.int"}
"""Names of Python 2, which protocol 2 has, by their names today."""

PATHS = frozenset(f"pathlib.{pure}{kind}Path" for pure in ("", "Pure") for kind in ("Posix", "Windows", ""))

FORBIDDEN = sys.stdlib_module_names | {"__builtin__", "copy_reg", "torch", "numpy"}
"""Packages of which a pickle may name nothing but the above. An instance of a class of any other package, or of the
training script itself, is read as its attributes."""


class Name(str):
    """A name in a pickle: a text, never what it names."""

    __slots__ = ()

    @property
    def is_class(self) -> bool:
        """True for a name that may be a class of the user's, such as that of a config."""
        return self == "argparse.Namespace" or self.partition(".")[0] not in FORBIDDEN | {"builtins"}


class Attributes(dict):
    """The attributes of an instance, by name, such as of a Namespace or a dataclass."""

    def build(self, state: Any) -> None:
        """Take up a state; one that has no names, such as a list, is left out."""
        for part in state if isinstance(state, tuple) else (state,):  # with `__slots__`: two dicts
            if isinstance(part, dict):
                self.update(part)


class NumpyType:
    """A type of NumPy's numbers or texts."""

    def __init__(self, code: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([biufc](1|2|4|8|16)|[SU]\d{1,4})", code):
            raise InputError(f"its pickle has an unsupported NumPy type: {reprlib.repr(code)}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Take up the order of its bytes."""
        order = expect(expect(state, tuple)[1], str)
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise InputError("its pickle has a NumPy type with fields, which is not supported")
        self.dtype = self.dtype.newbyteorder(order)

    def scalar(self, data: Any) -> Any:
        """Return the one value in the data."""
        if not isinstance(data, bytes) or len(data) != self.dtype.itemsize:
            raise InputError(f"its pickle has a NumPy scalar of {self.dtype} with another number of bytes")
        return np.frombuffer(data, self.dtype)[0].item()


def resolve(module: str, name: str) -> Name:
    """Return the name of a global of the pickle, and refuse one that no state dict needs.

    Raises:
        InputError: names it.
    """
    full = f"{module}.{name}"
    plain = full.replace("__builtin__.", "builtins.", 1) if module == "__builtin__" else full
    plain = PYTHON_2.get(plain, plain)
    if plain in CALLED | NAMED | PATHS or (module == "torch" and name in DTYPES) or Name(full).is_class:
        return Name(plain)
    if module.startswith("torch.nn."):
        raise InputError(f"its pickle names {full}, a whole nn.Module: save its state_dict() in PyTorch instead")
    raise InputError(f"its pickle names {full}, which no state dict needs: refused, and nothing was called")


def call(function: str, arguments: tuple) -> Any:
    """Return what a call in a pickle makes, as plain data.

    Raises:
        InputError: names what is called, if no state dict needs it.
    """
    match function:
        case "collections.OrderedDict":
            return collections.OrderedDict(*(_pairs(pairs) for pairs in arguments))
        case "collections.Counter":
            return dict(*(expect(counts, dict) for counts in arguments))
        case "collections.defaultdict":
            return {}
        case "builtins.set":
            return {plain_key(item) for items in arguments for item in expect(items, list)}
        case "builtins.frozenset":
            return frozenset(plain_key(item) for items in arguments for item in expect(items, list))
        case "builtins.bytearray":
            return bytearray(_encoded(*arguments) if arguments else b"")
        case "builtins.complex":
            return complex(*(expect(part, float) for part in arguments))
        case "_codecs.encode":
            return _encoded(*arguments)
        case "torch.Size":
            return tuple(expect(arguments[0], tuple | list)) if arguments else ()
        case "torch.device":
            return ":".join(str(expect(part, str | int)) for part in arguments)
        case "torch.serialization._get_layout":
            return expect(arguments[0], str)
        case "numpy.dtype":
            return NumpyType(arguments[0])
        case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar":
            return expect(arguments[0], NumpyType).scalar(arguments[1])
        case "builtins.bytes" if not arguments:
            return b""
        case "types.SimpleNamespace" | "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct":
            return Attributes()  # of an array, such as of a random generator's state, the values are left out
        case "numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer":
            return Attributes()
        case _ if function in PATHS:
            return "/".join(expect(part, str) for part in arguments)
    raise InputError(
        f"its pickle calls {str(function)[:200]}, which no state dict needs to call: refused, and nothing was called"
    )


def plain_key(key: Any) -> Any:
    """Return a key of a dict, or an element of a set, and refuse one that is a container.

    To hash a tuple takes as long as it is deep and wide, which a short pickle can make a million, or 2^34.
    """
    return expect(key, str | bytes | int | float | complex | NoneType)


def _pairs(pairs: Any) -> dict:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {plain_key(key): value for key, value in (expect(pair, tuple | list) for pair in expect(pairs, list))}


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that protocol 2 writes as a text."""
    if isinstance(text, bytes):
        return text
    if expect(encoding, str) not in ("latin1", "latin-1"):
        raise InputError(f"its pickle encodes a text as {reprlib.repr(encoding)}, which is not supported")
    return expect(text, str).encode("latin1")


def expect(value: Any, kind: Any) -> Any:
    """Return a value of a type, and refuse one of another."""
    if not isinstance(value, kind):
        wanted = getattr(kind, "__name__", str(kind))
        raise InputError(f"its pickle has a {type(value).__name__} where a {wanted} belongs")
    return value
