"""Files as streams of bytes, here or in a bucket, compressed or not, read by and by."""

import contextlib
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError, about, what_failed
from jaxgpt.convert.json_input import open_file

SCHEMES = {"gs": "jaxgpt[gcs]", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
"""Beginnings of URLs that can be read, and the package that each needs."""

COMPRESSIONS = (".gz", ".zst")
CHUNK = 2**20
THIRD_PARTIES = ("pyarrow", "datasets", "backports.zstd", "compression")
"""Packages that have exceptions of their own for files that they can't read."""

Advance = Callable[[int], Any]
"""A function that is told how many bytes of a file have been read."""


def locate(source: str | Path) -> Any:
    """Return a local path, or etils' path of a URL, which has the same methods.

    Raises:
        InputError: the URL is of a kind that can't be read.
    """
    text = re.sub(r"^(\w+):/(?=[^/])", r"\1://", str(source))  # pathlib makes one slash of two
    if "://" not in text:
        return local_path(text)
    scheme = text.split("://")[0]
    if scheme not in SCHEMES:
        raise InputError(f"{text}: {scheme}:// can't be read; expected a path or one of {urls()}")
    if not text.split("://")[1].strip("/"):
        raise InputError(f"{text}: the name of the bucket is missing; expected {scheme}://BUCKET/FILE")
    # or gcsfs asks first, over another protocol, what kind the bucket is: without credentials that may hang
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from etils import epath

    return epath.Path(text)


def urls() -> str:
    """Return the beginnings of URLs that can be read, as a list for a sentence."""
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


@contextlib.contextmanager
def readable(path: Any) -> Iterator[None]:
    """Turn any error in reading a file into one message that names the file."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        scheme = str(path).split("://")[0]
        what = f"{path} can't be read without a package that is not here ({error})"
        raise InputError(f"{what}: pip install '{SCHEMES.get(scheme, scheme)}'") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {_cause(error)}") from None
    except Exception as error:
        if not is_remote(path) and not type(error).__module__.startswith(THIRD_PARTIES):
            raise  # a mistake of ours; what a bucket's package raises is anybody's guess
        raise InputError(f"{path} can't be read: {_cause(error)}") from None


def is_remote(path: Any) -> bool:
    """Return whether a path is a URL."""
    return "://" in str(path)


def open_bytes(path: Any) -> Any:
    """Open a file as it is stored; here a regular one, as a pipe or a device might never have an end.

    Raises:
        InputError: it is none.
    """
    if is_remote(path):
        return path.open("rb")
    with about(f"{path} can't be read"):
        return open_file(path)


@contextlib.contextmanager
def open_stream(path: Any, compression: str = "", advance: Advance | None = None) -> Iterator[BinaryIO]:
    """Open a file as a stream of decompressed bytes; `advance` is told how many were read before decompression."""
    with contextlib.ExitStack() as stack:
        file: Any = io.BufferedReader(_Told(path, stack.enter_context(open_bytes(path)), advance), CHUNK)
        if compression == ".gz":
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif compression == ".zst":
            file = stack.enter_context(_zstd().ZstdFile(file))
        yield file


@contextlib.contextmanager
def open_seekable(path: Any, compression: str = "") -> Iterator[BinaryIO]:
    """Open a file that can be read from any position; a compressed one is decompressed onto the disk first."""
    if not compression:
        with open_bytes(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy, open_stream(path, compression) as file:
        shutil.copyfileobj(file, copy, CHUNK)
        copy.seek(0)
        yield copy


def sha256_of(path: Any, advance: Advance) -> str:
    """Return the SHA-256 of a file's bytes as they are stored."""
    digest = hashlib.sha256()
    with readable(path), open_stream(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def stamp(path: Any) -> tuple[int, float]:
    """Return a file's size and the time of its last change, which show that it changes while it is read."""
    with readable(path):
        if is_remote(path):
            stat = path.stat()
            return stat.length, stat.mtime
        local = os.stat(path)
        return local.st_size, local.st_mtime_ns


def files_below(folder: Any) -> list[tuple[tuple[str, ...], Any]]:
    """List all files in a folder and its subfolders, in order, each with the parts of its relative path."""
    found: list[tuple[tuple[str, ...], Any]] = []
    if not is_remote(folder):
        for root, _, names in os.walk(folder, onerror=_refuse):  # which does not follow links to folders
            base = Path(root).relative_to(folder).parts
            found += [((*base, name), Path(root, name)) for name in names]
        return sorted(found)
    folders: list[tuple[tuple[str, ...], Any]] = [((), folder)]
    while folders:
        base, path = folders.pop()
        for child in path.iterdir():
            if child.name == path.name and str(child) == str(path):
                continue  # a bucket's mark that the folder exists
            (folders if child.is_dir() else found).append(((*base, child.name), child))
    return sorted(found, key=lambda item: item[0])


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{what_failed(error)}: every file of a data folder must be readable")


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _cause(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text.strip().splitlines()[0]}" if text.strip() else type(error).__name__


class _Told(io.RawIOBase):
    """A stream that tells how many bytes were read from it, and ends with an error where its file grows meanwhile."""

    def __init__(self, path: Any, file: BinaryIO, advance: Advance | None):
        self._path, self._file, self._advance = path, file, advance
        self._left = None if is_remote(path) else os.fstat(file.fileno()).st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise InputError(f"{self._path} changed while being read: try again")
        if self._advance is not None:
            self._advance(len(data))
        return len(data)
