"""Safe writes: nothing is overwritten or left half-written, and a disk that is too full is refused first."""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxgpt.convert.errors import InputError, writing

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a URL; pathlib makes one slash of two."""


def local_path(path: str | Path) -> Path:
    """Return a path with its `~` expanded.

    Raises:
        InputError: no file can have such a name, which may be empty, or there is no such user.
    """
    if not str(path):  # which Python takes for the folder here
        raise InputError("the name of the file or folder is empty")
    if "\0" in str(path):
        raise InputError(f"{path}: a path can't contain a null byte")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such user, or no home folder") from None


def target_path(path: str | Path) -> Path:
    """Return a path to write to.

    Raises:
        InputError: it is a URL, or not text that everything that reads the path can take.
    """
    if found := URL.match(str(path)):
        url = f"{found[0]}/{str(path)[found.end() :].lstrip('/')}"
        raise InputError(
            f"{url} is a URL, and files are written on this machine only: name a folder here, and copy it afterwards"
        )
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is not UTF-8; choose another one") from None
    return local_path(path)


def check_free(path: Path, replaceable: tuple[str, ...], force: bool) -> None:
    """Refuse a path that is taken; with `force`, only if it holds other files than `replaceable` (none: a file)."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise _taken(path)
    if path.is_symlink() or path.is_dir() == (replaceable == ()):
        raise InputError(
            f"{path} is not a checkpoint of the form being written: it is not replaced, even with force=True; "
            "choose another name"
        )
    if path.is_file():
        return
    if others := [file.name for file in path.iterdir() if not any(file.match(name) for name in replaceable)]:
        raise InputError(
            f"{path} holds other files ({others[0]}): it is not replaced, even with force=True; choose another name"
        )


def check_space(path: Path, needed_bytes: int) -> None:
    """Refuse a write that the disk of `path` has no space for."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if (free := shutil.disk_usage(folder).free) < needed_bytes:
        raise InputError(
            f"{path}: the disk is too full: {needed_bytes / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        )


def parse_size(text: str) -> int:
    """Return the bytes of "5GB", "500MB" or "100KB" (powers of ten, as Hugging Face counts)."""
    for suffix, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if text.upper().endswith(suffix):
            with contextlib.suppress(ValueError, OverflowError):
                if (size := float(text[: -len(suffix)]) * factor) >= 1:
                    return int(size)
    raise InputError(f"{text!r} is not a size such as 5GB, 500MB or 100KB")


def with_progress(title: str, names: Iterable[str], arrays: Mapping[str, Any], dtype: Any = None) -> Iterator[str]:
    """Yield the names with a progress bar of their arrays' bytes, which only a terminal shows."""
    names = list(names)
    sizes = {name: math.prod(arrays[name].shape) * np.dtype(dtype or arrays[name].dtype).itemsize for name in names}
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc=title, disable=None, leave=False) as bar:
        for i, name in enumerate(names, 1):
            bar.set_postfix_str(f"tensor {i}/{len(names)}", refresh=False)
            yield name
            bar.update(sizes[name])


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a new JSON file and flush it to the disk."""
    with writing(path), path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(fields, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Provide a path in a new folder beside `path`; what is not renamed is removed afterwards, also after an error.

    A kill leaves the folder there. The next one who writes to `path` removes it: the lock on it went with its process.

    Raises:
        OSError: what is written within does not fit on the disk; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    folder, lock = _locked_folder(path)
    try:
        with writing(path):
            yield folder / path.name
    finally:
        for _ in range(50):  # Orbax's threads may go on writing for a moment after it has failed
            remove(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)
        os.close(lock)


def _stem(path: Path) -> str:
    """Return how names of temporary folders for `path` begin; it may itself be as long as a name can be."""
    return f".{path.name.encode()[:200].decode(errors='ignore')}."


def _locked_folder(path: Path) -> tuple[Path, int]:
    """Make a temporary folder for `path`, and return it with the descriptor that locks it."""
    while True:
        folder = path.parent / f"{_stem(path)}{uuid.uuid4().hex[:8]}.tmp"
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):  # taken for an abandoned one
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders for `path` whose processes have ended."""
    name = re.compile(re.escape(_stem(path)) + r"[0-9a-f]{8}\.tmp")
    for folder in path.parent.iterdir():
        if not name.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):  # somebody else's, no folder, or in use
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def publish(temporary: Path, path: Path, *, replaces: bool) -> None:
    """Rename the finished `temporary` to `path`; what was there, if it may go, is there until then.

    Args:
        replaces: whether what is there may go; it is removed after the new one has its place.

    Raises:
        InputError: something is there, such as what another process wrote meanwhile, and is not to be replaced.
    """
    if replaces and path.exists() and _exchange(temporary, path):
        remove(temporary, ignore_errors=True)
    else:
        _rename(temporary, path, replaces)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(temporary: Path, path: Path, replaces: bool) -> None:
    old = path.with_name(f"{_stem(path)}{uuid.uuid4().hex[:8]}.old")
    if replaces and path.exists():
        path.rename(old)
    try:
        if temporary.is_dir() or replaces:
            temporary.rename(path)  # of a folder only where there is none, or an empty one
        else:
            _rename_file_to_nothing(temporary, path)
    except (FileExistsError, NotADirectoryError):
        raise _taken(path) from None
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise _taken(path) from None
        raise
    remove(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths at once, and return True where the system can do that, as Linux."""
    import ctypes  # late: few need it

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _rename_file_to_nothing(temporary: Path, path: Path) -> None:
    """Rename a file; unlike `rename`, never over another one."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.rename(path)
    else:
        temporary.unlink()


def _taken(path: Path) -> InputError:
    return InputError(f"{path} exists already: choose another name, or replace it with force=True")


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)
