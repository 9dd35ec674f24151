"""Writing so that nothing is lost: never over what is there, never half, never onto a disk that is too full."""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.errors import InputError


def check_free(path: Path, replaceable: tuple[str, ...], force: bool) -> None:
    """Refuses a path that is taken; with `force`, only one that holds something else than what we may replace."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise InputError(f"{path} exists already: choose another name, or --force to replace it")
    if not path.is_dir() or path.is_symlink():
        raise InputError(f"{path} is not a folder: it is not replaced, even with --force")
    if others := [file.name for file in path.iterdir() if not any(file.match(name) for name in replaceable)]:
        raise InputError(f"{path} holds other things ({others[0]}): it is not replaced, even with --force")


def check_space(path: Path, needed: int) -> None:
    """Refuses to begin what the disk of `path` has no room for; `needed` is in bytes."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"{path}: the disk is too full: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        )


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500MB" or "100KB" (powers of ten, as Hugging Face counts)."""
    for suffix, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if text.upper().endswith(suffix):
            with contextlib.suppress(ValueError):
                if (size := float(text[: -len(suffix)]) * factor) >= 1:
                    return int(size)
    raise InputError(f"{text!r} is not a size such as 5GB, 500MB or 100KB")


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Writes a new file, down to the disk."""
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(fields, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """A path beside `path` that is gone afterwards, whatever happens, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
    finally:
        for _ in range(50):  # Orbax's threads may go on writing for a moment after it has failed
            leftovers = list(path.parent.glob(f"{temporary.name}*"))
            if not leftovers:
                break
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)
            time.sleep(0.1)


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished folder into place; one that was there is removed after, not before."""
    old = path.with_name(f"{temporary.name}.old")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    if old.exists():
        shutil.rmtree(old)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
