"""Digests of a checkpoint's files, made when it is written and compared when it is read: a flipped bit is found."""

import errno
import json
import mmap
import os
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from jaxgpt.convert.disk import write_json
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json, read_file, read_json

NAME = "digests.json"
"""The file in a checkpoint's folder."""

COMPLETE = "_CHECKPOINT_METADATA"
"""The file of JSON that Orbax writes into the folder of every checkpoint."""

WRITTEN_LATER = {NAME, COMPLETE, "commit_success.txt"}
"""Files that Orbax writes once more after the digests are made. Nothing is read from the last one."""

PIECE_BYTES = 2**26
"""Bytes of which a digest is made at once, so that several threads share a large file."""

BUFFER_BYTES = 2**20
"""Bytes that are read at once."""

SECONDS_TO_WAIT = 60
"""How long Orbax may take to write its small file."""

MOST_BYTES = 2**26
"""Size of the largest file of digests that is read."""

ALGORITHM = "xxh3_64"
"""The algorithm of digests that are written: a tenth of the cost of a CRC-32."""

ANNOUNCEMENT = {"digests": NAME}
"""The mark in Orbax's own file of a checkpoint that has digests: their loss is noticed."""


def write_digests(folder: Path, step: int | None = None) -> None:
    """Write the digests of all files of a checkpoint beside them.

    Args:
        step: the one that the folder is named after; a checkpoint in another's place is noticed.
    """
    files = _files(folder)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    pieces = [(name, begin) for name, size in sizes.items() for begin in range(0, size, PIECE_BYTES)]

    def digest(piece: tuple[str, int]) -> str:
        name, begin = piece
        return _digest_mapped(files[name], begin, min(PIECE_BYTES, sizes[name] - begin))

    digests: dict[str, list[str]] = {name: [] for name in files}
    for (name, _), found in zip(pieces, _in_threads(digest, pieces), strict=True):
        digests[name].append(found)
    listed = {name: {"bytes": sizes[name], ALGORITHM: digests[name]} for name in files}
    lasting = _wait_for_fields(folder / COMPLETE)
    write_json(folder / NAME, {"step": step, COMPLETE: lasting, "piece_bytes": PIECE_BYTES, "files": listed})


def find_damage(
    folder: Path, items: Collection[str] | None = None, step: int | None = None, share: tuple[int, int] = (0, 1)
) -> str:
    """Return what differs from the digests: a few words that name the file; nothing for one of an earlier version.

    No path is opened because the digests name it: files are looked for in the folder.

    Args:
        items: the parts that are read; all by default.
        step: the one that the checkpoint is expected to be of, if any.
        share: which of how many processes this is; each compares a part of the bytes.
    """
    try:
        if not (folder / COMPLETE).is_file():
            return f"{COMPLETE} is missing"
        if not (folder / NAME).exists():
            return f"{NAME} is missing" if _announces(folder / COMPLETE) else ""
        return _find_damage(folder, items, step, share)
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{NAME} is damaged"


def _find_damage(folder: Path, items: Collection[str] | None, step: int | None, share: tuple[int, int]) -> str:
    text = read_file(folder / NAME, MOST_BYTES).decode()
    told = parse_json(text)
    if text != json.dumps(told, indent=2) + "\n":  # every bit counts
        return f"{NAME} is damaged"
    if step is not None and told["step"] != step:
        return f"its contents are those of step {told['step']}"
    if _lasting_fields(folder / COMPLETE) != told[COMPLETE]:
        return f"{COMPLETE} is not what was written"
    size_of_piece, there = told["piece_bytes"], _files(folder)
    if not isinstance(size_of_piece, int) or size_of_piece < BUFFER_BYTES:
        return f"{NAME} is damaged"
    expected: dict[tuple[str, int], tuple[str, str]] = {}
    for name, file in told["files"].items():
        if items is not None and name.partition("/")[0] not in items:
            continue
        if name not in there:
            return f"{name} is missing"
        if (size := there[name].stat().st_size) != file["bytes"]:
            return f"{name} has {size:,} bytes instead of {file['bytes']:,}"
        [algorithm] = file.keys() & DIGESTS
        begins = range(0, size, size_of_piece)
        for begin, written in zip(begins, file[algorithm], strict=True):
            expected[name, begin] = (algorithm, written)
    pieces = list(expected)[share[0] :: share[1]]

    def digest(piece: tuple[str, int]) -> str:
        name, begin = piece
        return _digest(there[name], begin, size_of_piece, expected[piece][0])

    for piece, found in zip(pieces, _in_threads(digest, pieces), strict=True):
        if found != expected[piece][1]:
            return f"{piece[0]} is not what was written"
    return ""


def _wait_for_fields(file: Path) -> dict[str, Any]:
    """Return what Orbax's file says in the end: a thread of Orbax may still be writing it, and truncates it first.

    The announcement comes together with all other fields that last.

    Raises:
        OSError: it does not come.
    """
    for _ in range(SECONDS_TO_WAIT * 100):
        if _is_announced(fields := _lasting_fields(file)):
            return fields
        time.sleep(0.01)
    raise OSError(errno.EIO, "Orbax did not finish writing it", str(file))


def _announces(file: Path) -> bool:
    """Tell whether Orbax's file says that there are digests; those of earlier versions do not."""
    return _is_announced(_lasting_fields(file))


def _is_announced(fields: dict[str, Any]) -> bool:
    told = fields.get("custom_metadata")
    return isinstance(told, dict) and told.items() >= ANNOUNCEMENT.items()


def _lasting_fields(file: Path) -> dict[str, Any]:
    """Return what Orbax's file says but the time of its end; nothing where it is no JSON."""
    try:
        fields = read_json(file, max_bytes=MOST_BYTES)
    except InputError:
        return {}
    return {name: value for name, value in fields.items() if name != "commit_timestamp_nsecs"}


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a checkpoint whose bytes are compared, by their names in it."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name not in WRITTEN_LATER}


class _Crc32:
    """The digest of earlier checkpoints, with the interface of those in hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


DIGESTS: dict[str, Callable[[], Any]] = {ALGORITHM: xxhash.xxh3_64, "crc32": _Crc32}
"""All that are read, by their names in the file."""


def _digest(file: Path, begin: int, size: int, algorithm: str) -> str:
    """Return the digest of so many bytes of a file, or of those up to its end."""
    digest, buffer = DIGESTS[algorithm](), memoryview(bytearray(BUFFER_BYTES))
    with file.open("rb", buffering=0) as source:
        source.seek(begin)
        while size and (n := source.readinto(buffer[:size])):
            digest.update(buffer[:n])
            size -= n
    return digest.hexdigest()


def _digest_mapped(file: Path, begin: int, size: int) -> str:
    """Return the digest of a part of a file that was just written: where it is in memory, it is not copied.

    What others gave us is not mapped: a file that is truncated meanwhile would end the process.
    """
    with file.open("rb", buffering=0) as source:
        try:
            mapped = mmap.mmap(source.fileno(), size, access=mmap.ACCESS_READ, offset=begin)
        except (OSError, ValueError):  # some file systems map nothing
            return _digest(file, begin, size, ALGORITHM)
        with mapped:
            return xxhash.xxh3_64_hexdigest(mapped)


def _in_threads(function: Callable[[tuple[str, int]], str], pieces: Iterable[tuple[str, int]]) -> list[str]:
    """Return the digests of some pieces, several at once: none of them holds the interpreter."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, pieces))
