"""The headers of stored arrays, looked at before TensorStore allocates what they ask for: they may be hostile."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json, read_json

HEADERS = (".zarray", "zarr.json")
"""Names of the files that state an array's shape, type and chunks, in Zarr 2 and 3."""

MOST_BYTES = 2**20
"""Size of the largest header that is read."""

MOST_COMPRESSED = 2**15
"""How many times smaller zstd makes a file of zeros, at most; nothing else comes near."""


def check_arrays(item: Path) -> None:
    """Refuse arrays that can't be in the files of an item, and names that lead out of it.

    Raises:
        ValueError: the first thing that is wrong.
    """
    on_disk = 0
    for path in item.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):  # which leads elsewhere, or a reader waits
            raise ValueError(f"{path.relative_to(item).as_posix()} is no file")
        on_disk += path.stat().st_size
    _check_names(item / "_METADATA")
    total = 0
    for name, text in _headers(item):
        if len(text) > MOST_BYTES:
            raise ValueError(f"{name} is too large for a header")
        try:
            total += _n_bytes(parse_json(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name} is no header of an array ({error or type(error).__name__})") from None
        if total > MOST_COMPRESSED * on_disk:
            raise ValueError(f"{name} asks for {total:,} bytes, and all files together have {on_disk:,}")


def _headers(item: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and text of each header: of files, and of those in a database of TensorStore's."""
    for path in item.rglob("*"):
        if path.name in HEADERS:
            with path.open("rb") as file:
                yield path.relative_to(item).as_posix(), file.read(MOST_BYTES + 1)
    if (item / "manifest.ocdbt").exists():
        base = {"driver": "file", "path": f"{item.absolute()}/"}
        store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for key in store.list().result():
            name = key.decode("utf-8", "replace")
            if name.rpartition("/")[2] in HEADERS:
                yield name, store.read(key).result().value


def _n_bytes(header: dict[str, Any]) -> int:
    """Return the size of an array.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the header is none that is known, or its chunks do not fit.
    """
    if header["zarr_format"] not in (2, 3):
        raise ValueError("unknown version")
    if header["zarr_format"] == 3:
        if header["node_type"] == "group":
            return 0
        chunks, kind = header["chunk_grid"]["configuration"]["chunk_shape"], header["data_type"]
        inner = [codec["configuration"]["chunk_shape"] for codec in header["codecs"] if "shard" in codec["name"]]
    else:
        chunks, kind, inner = header["chunks"], header["dtype"], []
    shape = header["shape"]
    for sizes in (shape, chunks, *inner):
        if not all(type(size) is int and size >= 0 for size in sizes) or len(sizes) != len(shape):
            raise ValueError(f"sizes {sizes}"[:100])
        if any(size > max(1, whole) for size, whole in zip(sizes, shape, strict=True)):
            raise ValueError(f"chunks of {sizes} in an array of {shape}"[:100])
    if not isinstance(kind, str):
        raise ValueError("its type is not that of numbers")
    return math.prod(shape) * np.dtype(kind).itemsize


def _check_names(metadata: Path) -> None:
    """Refuse an array's name that is a path to elsewhere."""
    try:
        tree = read_json(metadata)["tree_metadata"]
    except InputError as error:
        raise ValueError(str(error)) from None
    for entry in tree.values():
        for key in entry["key_metadata"]:
            if "/" in str(key["key"]) or "\\" in str(key["key"]):
                raise ValueError(f"{str(key['key'])[:100]!r} is no name of an array")
