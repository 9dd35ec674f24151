"""Sources of text: a file, a folder, a data set of Hugging Face's, here or in a bucket."""

from pathlib import Path
from typing import Any, Literal

from jaxgpt.convert.errors import InputError
from jaxgpt.data import streams
from jaxgpt.data.documents import File, Kind, Reading, Source
from jaxgpt.data.streams import COMPRESSIONS, readable

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Formats of records by their suffixes."""

PLAIN = ("text", "texts", "bin")
"""Formats without records."""

SUFFIXES = (".txt", ".md", *FORMATS)
"""Files that are read in a folder; each name may have .gz or .zst after it."""


def find(
    source: str | Path | Source,
    *,
    text_field: str | None = None,
    skip_bad_records: bool = False,
    preferences: bool = False,
) -> Source:
    """Return the files of a source, which is looked up once; a `Source` is returned as it is.

    A source is a file, a folder, a .bin of nanoGPT or llm.c, a saved data set, hf:OWNER/NAME[:SPLIT], or a URL.

    Args:
        text_field: the field or column that holds the text of a record; by default `text`.
        skip_bad_records: leave out records that can't be read, and count them; by default they are an error.
        preferences: records have `chosen` and `rejected`, of which the first is the better answer to `prompt`.

    Raises:
        InputError: there is nothing to read.
    """
    if isinstance(source, Source):
        return source
    if not str(source):
        raise InputError("the name of the data is empty")
    text, reading = str(source), Reading(text_field, skip_bad_records, preferences)
    if text.startswith("hf:") and not text.startswith("hf:/"):
        from jaxgpt.data.hub import find_on_hub

        return find_on_hub(text, reading)
    path = streams.locate(source)
    with readable(path):
        if path.is_dir():
            return _folder(path, reading)
        if not (path.exists() if streams.is_remote(path) else path.is_file()):
            raise InputError(f"{path} is neither a file nor a folder")
    return Source(str(path), (_file(path, reading),))


def check_text_field(text_field: str | None, *sources: Source | None) -> None:
    """Refuse the name of a field where no source has records.

    Raises:
        InputError: names the first source.
    """
    found = [source for source in sources if source is not None]
    if text_field is None or any(file.format not in PLAIN for source in found for file in source.files):
        return
    raise InputError(f"text_field={text_field!r} names a field, but {found[0].name} has no records with fields")


def peek(source: str | Path | Source) -> Kind | Literal["tokens"]:
    """Return what a source holds, by its first record.

    Give a `Source` where you go on to read it: it is not looked up again, and remembers what it holds.

    Raises:
        InputError: there is nothing to read, or the first record is neither a text nor a conversation.
    """
    return find(source).kind


def _folder(path: Any, reading: Reading) -> Source:
    names = {child.name for child in path.iterdir()}
    if "train.bin" in names:  # nanoGPT's
        held_out = Source(str(path / "val.bin"), (_file(path / "val.bin", reading),)) if "val.bin" in names else None
        return Source(str(path), (_file(path / "train.bin", reading),), held_out)
    if "dataset_dict.json" in names or names >= {"dataset_info.json", "state.json"}:
        from jaxgpt.data.hub import find_saved

        return find_saved(path, reading)
    files = [_file(file, reading) for _, file in streams.files_below(path) if _is_read(file.name)]
    for file in files:
        if not streams.is_remote(path) and not file.path.is_file():
            raise InputError(f"{file.name} is no file that can be read (a pipe, a device, or a link to nothing)")
    if not files:
        raise InputError(f"{path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    return Source(str(path), tuple(files))


def _is_read(name: str) -> bool:
    return name.lower().removesuffix(".gz").removesuffix(".zst").endswith(SUFFIXES)


def _file(path: Any, reading: Reading) -> File:
    lower = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if lower.endswith(suffix)), "")
    suffix = "." + lower.removesuffix(compression).rsplit(".", 1)[-1]
    format = "bin" if suffix == ".bin" and not compression else FORMATS.get(suffix, "text")
    return File(str(path), format, compression, path, reading)
