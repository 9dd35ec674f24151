"""The cache of tokens on disk: a folder for each text and tokenizer, written once and then mapped into memory."""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxgpt.convert.disk import local_path, write_json
from jaxgpt.convert.errors import InputError

VERSION = 2
"""Changes where the same files get other tokens, or an entry has other files."""

DAY = 24 * 60 * 60
DTYPES = {"tokens": "", "ends": "<i8", "records": "<i8", "counts": "|u1", "turns": "<i8", "turn_ends": "<i8"}
"""Type of each file of an entry; that of the tokens depends on the vocabulary."""


def default_cache() -> Path:
    """Return the folder where tokens are kept by default."""
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxgpt" / "tokens"


@contextlib.contextmanager
def writable(cache: Path) -> Iterator[None]:
    """Turn an error of a full or read-only disk into a message that says what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"tokens can't be kept in {cache} ({error.strerror or error}): name another folder with cache=FOLDER"
        ) from None


class Writer:
    """The files of an entry while they are written."""

    def __init__(self, cache: Path, key: str, dtype: str):
        self.folder, self._cache, self.dtype = cache / f".{key}.{uuid.uuid4().hex[:8]}.tmp", cache, dtype
        self._files: dict[str, BinaryIO] = {}
        self.lengths: dict[str, int] = {}
        with writable(cache):
            self.folder.mkdir(parents=True)

    def append(self, name: str, values: Any) -> None:
        """Add numbers to the end of a file."""
        array = np.asarray(values, DTYPES[name] or self.dtype)
        with writable(self._cache):
            if name not in self._files:
                self._files[name] = (self.folder / f"{name}.bin").open("xb", buffering=2**20)
                self.lengths[name] = 0
            self._files[name].write(array.tobytes())
        self.lengths[name] += len(array)

    def finish(self, meta: dict[str, Any], path: Path) -> None:
        """Write the description, and move the entry into its place, unless another process was quicker."""
        with writable(self._cache):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            write_json(self.folder / "meta.json", meta | {"dtype": self.dtype, "lengths": self.lengths})
            if path.exists() and load(path) is None:
                path.rename(self.folder.with_suffix(".old"))  # damaged
            try:
                self.folder.rename(path)
            except OSError:
                if load(path) is None:
                    raise

    def close(self) -> None:
        """Remove what is left of an entry that did not get into its place."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        for path in (self.folder, self.folder.with_suffix(".old")):
            _remove(path)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return an entry's description and its arrays, mapped into memory; None where it is missing or damaged."""
    try:
        meta = json.loads((path / "meta.json").read_text("utf-8"))
        if meta["version"] != VERSION:
            return None
        arrays = {name: _map(path / f"{name}.bin", DTYPES[name] or meta["dtype"]) for name in meta["lengths"]}
        if any(len(array) != meta["lengths"][name] for name, array in arrays.items()) or len(arrays["tokens"]) == 0:
            return None
        _check_remarks(meta)
        if meta["kind"] == "chat" and not {"counts", "turns", "turn_ends"} <= set(arrays):
            return None
        return (meta, arrays) if arrays["ends"][-1] == len(arrays["tokens"]) else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def find_or_write(cache: Path, key: str, dtype: str, write: Callable[[Writer], dict[str, Any]]) -> Any:
    """Return the entry of a key; `write` fills it if it is missing."""
    path = cache / key
    for _ in range(3):  # what has just been written may be gone at once, if another process empties the cache
        if (found := load(path)) is not None:
            return found
        _sweep(cache)
        writer = Writer(cache, key, dtype)
        try:
            meta = write(writer)
            writer.finish({"version": VERSION} | meta, path)
        finally:
            writer.close()
    raise InputError(f"tokens written to {cache} are missing afterwards: name another folder with cache=FOLDER")


def _check_remarks(meta: dict[str, Any]) -> None:
    """Raise a ValueError where what an entry says of unread fields and bad records is damaged."""
    unread, first = meta["unread"], meta["first_bad"]
    counts = {**unread, "": meta["n_bad"]}.values()
    is_place = isinstance(first, list) and [type(item) for item in first] == [int, int, str]
    if not all(type(n) is int and n >= 0 for n in counts) or not (is_place or (first is None and not meta["n_bad"])):
        raise ValueError("remarks")
    files = [first[0] if first is not None else 0, 0 if meta["as_text"] is None else meta["as_text"]]
    if not all(type(i) is int and 0 <= i < len(meta["files"]) for i in files):
        raise ValueError("remarks")


def _map(path: Path, dtype: str) -> np.ndarray:
    if dtype not in ("<u2", "<u4", "<i8", "|u1"):
        raise ValueError(dtype)
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _sweep(cache: Path) -> None:
    """Remove what killed writers left more than a day ago."""
    for path in cache.glob(".*.*.*") if cache.is_dir() else ():
        with contextlib.suppress(OSError):
            newest = max(file.stat().st_mtime for file in (path, *path.glob("*")))
            if path.suffix in (".tmp", ".old") and newest < time.time() - DAY:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
