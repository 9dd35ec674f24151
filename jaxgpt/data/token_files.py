"""The cache of tokens on disk: a folder for each text and tokenizer, written once and then mapped into memory.

Nothing in it is trusted: an entry of another user is not used, and the digests of its files are compared when it is
used, where a file is another one than when that was last done.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxgpt.convert.disk import local_path, write_json
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import read_json

log = logging.getLogger(__name__)

VERSION = 3
"""Changes where the same files get other tokens, or an entry has other files."""

META, SEEN = "meta.json", "seen.json"
"""The description of an entry; and which files its digests were last compared with."""

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
        self._digests: dict[str, Any] = {}
        with writable(cache):
            self.folder.mkdir(parents=True)
            self.owner = self.folder.stat().st_uid  # as the file system says, which may know one user only

    def append(self, name: str, values: Any) -> None:
        """Add numbers to the end of a file."""
        array = np.asarray(values, DTYPES[name] or self.dtype)
        with writable(self._cache):
            if name not in self._files:
                self._files[name] = (self.folder / f"{name}.bin").open("xb", buffering=2**20)
                self.lengths[name], self._digests[name] = 0, hashlib.sha256()
            self._files[name].write(array.tobytes())
            self._digests[name].update(array.tobytes())
        self.lengths[name] += len(array)

    def finish(self, meta: dict[str, Any], path: Path) -> None:
        """Write the description, and move the entry into its place, unless another process was quicker."""
        with writable(self._cache):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
            meta = meta | {"dtype": self.dtype, "lengths": self.lengths, "sha256": digests}
            meta |= {"key": path.name}
            write_json(self.folder / META, meta | {"digest": _digest_of(meta)})
            write_json(self.folder / SEEN, {name: _identity(self.folder / f"{name}.bin") for name in digests})
            if os.path.lexists(path) and load(path, self.owner) is None:
                with contextlib.suppress(FileNotFoundError):  # another process has found the damage, too
                    path.rename(self.folder.with_suffix(".old"))
            try:
                self.folder.rename(path)
            except OSError:
                if load(path, self.owner) is None:
                    raise

    def close(self) -> None:
        """Remove what is left of an entry that did not get into its place."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        for path in (self.folder, self.folder.with_suffix(".old")):
            _remove(path)


def load(path: Path, owner: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return an entry's description and its arrays, mapped into memory; None where it is missing or damaged.

    Args:
        owner: the user whose entry it must be.
    """
    try:
        meta = read_json(path / META)
        digest = meta.pop("digest")
        if meta["version"] != VERSION or digest != _digest_of(meta) or meta["key"] != path.name:
            return None
        if any(file.lstat().st_uid != owner for file in (path, path / META)):
            return None
        _compare_digests(path, meta["sha256"], owner)
        arrays = {name: _map(path / f"{name}.bin", DTYPES[name] or meta["dtype"]) for name in meta["lengths"]}
        if any(len(array) != meta["lengths"][name] for name, array in arrays.items()) or len(arrays["tokens"]) == 0:
            return None
        _check_remarks(meta)
        if meta["kind"] != "text" and not {"counts", "turns", "turn_ends"} <= set(arrays):
            return None
        return (meta, arrays) if arrays["ends"][-1] == len(arrays["tokens"]) else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def find_or_write(cache: Path, key: str, dtype: str, write: Callable[[Writer], dict[str, Any]]) -> Any:
    """Return the entry of a key; `write` fills it if it is missing, damaged or another user's."""
    path, owner = cache / key, os.geteuid()
    with contextlib.suppress(OSError):
        if path.lstat().st_uid != owner:
            path = cache / f"{key}-{owner}"
    for _ in range(3):  # what has just been written may be gone at once, if another process empties the cache
        if (found := load(path, owner)) is not None:
            return found
        if os.path.lexists(path):
            log.warning("%s is damaged: the text is tokenised again", path)
        _sweep(cache)
        writer = Writer(cache, key, dtype)
        try:
            meta = write(writer)
            writer.finish({"version": VERSION} | meta, path)
            owner = writer.owner
        finally:
            writer.close()
    raise InputError(f"tokens written to {cache} are missing afterwards: name another folder with cache=FOLDER")


def _digest_of(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _identity(path: Path) -> list[int]:
    """Return numbers of a file of ours that change when its content does, or when it is replaced."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    return [found.st_uid, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _compare_digests(folder: Path, digests: dict[str, str], owner: int) -> None:
    """Read the files that are others than when their digests were last compared, and raise an error if one differs."""
    now = {name: _identity(folder / f"{name}.bin") for name in digests}
    if any(identity[0] != owner for identity in now.values()):
        raise ValueError("another user's")
    seen: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        seen = read_json(folder / SEEN)
    if changed := [name for name in now if now[name] != seen.get(name)]:
        for name in changed:
            with (folder / f"{name}.bin").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digests[name]:
                    raise ValueError("damaged")
        temporary = folder / f"{SEEN}.{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):  # then it is done again
            write_json(temporary, now)
            temporary.replace(folder / SEEN)


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
