"""Files of token ids: nanoGPT's, which are nothing but ids, and llm.c's, which begin with a header."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxgpt.convert.errors import InputError
from jaxgpt.data.streams import open_bytes, readable, stamp

HEADER = 256 * 4
"""Bytes of llm.c's header: 256 int32, of which the first are a magic number, a version and how many ids follow."""

FORMATS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Version and type of the ids by the magic number of llm.c's data, for the tokenizers of GPT-2 and of Llama 3."""

OTHERS = {20240326: "a model", 20240327: "the state of a run", 20240522: "a multiple-choice evaluation"}
"""The content of llm.c's files with other magic numbers."""


def token_format(name: str, path: Any, size: int) -> tuple[str, int]:
    """Return the type of the token ids in a file, and the byte at which they begin.

    Raises:
        InputError: it is no file of token ids, or not of the size that its header states.
    """
    with readable(path), open_bytes(path) as file:
        head = file.read(HEADER)
    magic, version, n_tokens = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
    if magic in OTHERS:
        raise InputError(f"{name} holds {OTHERS[magic]} of llm.c, according to its header, and no data to learn from")
    if magic not in FORMATS:
        if not size or size % 2:
            n_bytes = f"{size:,} bytes, an odd number" if size else "0 bytes"
            raise InputError(f"{name} has {n_bytes}; a .bin holds token ids of two bytes each")
        return "<u2", 0
    known, dtype = FORMATS[magic]
    if version != known:
        raise InputError(f"{name} is data of llm.c of version {version}; only version {known} can be read")
    n_bytes = HEADER + n_tokens * np.dtype(dtype).itemsize
    if n_tokens < 1 or n_bytes != size:
        raise InputError(
            f"{name} is data of llm.c: its header states {n_tokens:,} token ids, which makes {n_bytes:,} bytes, but it "
            f"has {size:,}"
        )
    return dtype, HEADER


class TokenFile:
    """Token ids in a file of the user's, which must stay as it is: every look at a part of it makes sure.

    It is read and not mapped into memory: a mapped file that becomes shorter ends the process in the middle of a look.

    Args:
        dtype: the type of the ids, as of `token_format`.
        begin: the byte at which they begin.
        stamp: the file's stamp when it was opened, as of `jaxgpt.data.streams.stamp`.
    """

    def __init__(self, path: Path, dtype: str, begin: int, stamp: tuple[int, float]):
        self.path, self.dtype, self._begin, self._stamp = path, np.dtype(dtype), begin, stamp

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def __len__(self) -> int:
        return (int(self._stamp[0]) - self._begin) // self.dtype.itemsize

    def __getitem__(self, index: slice) -> Int[np.ndarray, " n"]:
        """Return a copy of a part.

        Raises:
            ValueError: the slice has a step.
            OSError: the file is not what it was when it was opened.
        """
        first, end, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"a part of a file of token ids has no step, but {index} has one")
        found = np.empty(max(end - first, 0), self.dtype)
        with self.path.open("rb") as file:
            file.seek(self._begin + first * self.dtype.itemsize)
            n_bytes = file.readinto(found.data)
        if n_bytes != found.nbytes or stamp(self.path) != self._stamp:
            raise OSError(errno.ESTALE, "it has changed since it was opened", str(self.path))
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Int[np.ndarray, " n"]:
        return np.asarray(self[:], dtype)
