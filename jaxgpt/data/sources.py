"""Sources of text: a file, a folder, a data set of Hugging Face's, here or in a bucket."""

from pathlib import Path
from typing import Any, Literal

from jaxgpt.convert.errors import InputError
from jaxgpt.data import streams
from jaxgpt.data.documents import File, Source
from jaxgpt.data.streams import COMPRESSIONS, readable

RECORD_SUFFIXES = (".jsonl", ".json", ".parquet")
SUFFIXES = (".txt", ".md", *RECORD_SUFFIXES)
"""Files that are read in a folder; each name may have .gz or .zst after it."""


def find(source: str | Path | Source) -> Source:
    """Return the files of a source, which is looked up once; a `Source` is returned as it is.

    A source is a file, a folder, nanoGPT's .bin, a saved data set, hf:OWNER/NAME[:SPLIT], or a URL.

    Raises:
        InputError: there is nothing to read.
    """
    if isinstance(source, Source):
        return source
    text = str(source)
    if text.startswith("hf:") and not text.startswith("hf:/"):
        from jaxgpt.data.hub import find_on_hub

        return find_on_hub(text)
    path = streams.locate(source)
    with readable(path):
        if path.is_dir():
            return _folder(path)
        if not (path.exists() if streams.is_remote(path) else path.is_file()):
            raise InputError(f"{path} is neither a file nor a folder")
    return Source(str(path), (_file(path),))


def peek(source: str | Path | Source) -> Literal["text", "chat", "tokens"]:
    """Return what a source holds, by its first record.

    Give a `Source` where you go on to read it: it is not looked up again, and remembers what it holds.

    Raises:
        InputError: there is nothing to read, or the first record is neither a text nor a conversation.
    """
    return find(source).kind


def _folder(path: Any) -> Source:
    names = {child.name for child in path.iterdir()}
    if "train.bin" in names:  # nanoGPT's
        held_out = Source(str(path / "val.bin"), (_file(path / "val.bin"),)) if "val.bin" in names else None
        return Source(str(path), (_file(path / "train.bin"),), held_out)
    if "dataset_dict.json" in names or names >= {"dataset_info.json", "state.json"}:
        from jaxgpt.data.hub import find_saved

        return find_saved(path)
    files = [_file(file, "/".join(parts)) for parts, file in streams.files_below(path) if _is_read(file.name)]
    if not files:
        raise InputError(f"{path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    return Source(str(path), tuple(files))


def _is_read(name: str) -> bool:
    return name.lower().removesuffix(".gz").removesuffix(".zst").endswith(SUFFIXES)


def _file(path: Any, name: str | None = None) -> File:
    lower = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if lower.endswith(suffix)), "")
    suffix = "." + lower.removesuffix(compression).rsplit(".", 1)[-1]
    known = suffix in RECORD_SUFFIXES or (suffix == ".bin" and not compression)
    return File(str(path), suffix[1:] if known else "text", compression, path)
