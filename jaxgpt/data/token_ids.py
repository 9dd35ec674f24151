"""Files of token ids: nanoGPT's, which are nothing but ids, and llm.c's, which begin with a header."""

from typing import Any

import numpy as np

from jaxgpt.convert.errors import InputError
from jaxgpt.data.streams import open_bytes, readable

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
