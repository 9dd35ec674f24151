"""Texts that a user has: a file, or a folder of them."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from convert.errors import InputError

TEXT_SUFFIXES = (".txt", ".md")


def read_documents(source: Path) -> list[str]:
    """The text of a file of any name, or of each .txt and .md file in a folder, by name; empty ones are left out.

    Raises:
        InputError: there is no text, or it is not UTF-8.
    """
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.is_file() and file.suffix in TEXT_SUFFIXES)
        if not files:
            raise InputError(f"--data: {source} holds no {' or '.join(TEXT_SUFFIXES)} file")
    elif source.is_file():
        files = [source]
    else:
        raise InputError(f"--data: {source} is no file and no folder")
    documents = [text for file in files if (text := _read_text(file)).strip()]
    if not documents:
        raise InputError(f"--data: {source} is empty")
    return documents


def encode_documents(tokenizer: Any, documents: list[str]) -> Int[np.ndarray, " n"]:
    """Token ids of the documents one after the other, each followed by the tokenizer's end of text, if it has one."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray(ids + end, np.int32) for ids in encoded])


def _read_text(file: Path) -> str:
    content = file.read_bytes()
    try:
        if (zero := content.find(b"\0")) >= 0:
            raise InputError(f"--data: {file} is not text: there is a zero byte at {zero:,}")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"--data: {file} is not UTF-8 text: byte {content[error.start]:#x} at {error.start:,}"
        ) from None
