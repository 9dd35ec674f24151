"""A dialect of the user's own, in a TOML file: the same table as a built-in one, checked before it is used.

title = "the GPT of my course"
rows = [
    ["tok_emb.embedding", "embed.weight", "V D -> V D"],
    ["blocks.{i}.attn.c_attn.bias", ["h.{i}.q.bias", "h.{i}.k.bias", "h.{i}.v.bias"], "C (N H) -> C N H"],
    ["blocks.{i}.attn.c_proj.kernel", "h.{i}.heads.{j}.out.weight", "N D H -> N H D"],
    …
]
buffers = [["layers.{i}.mask", "T T"]]
fixed = {activation_function = "gelu", layer_norm_epsilon = 1e-5, n_head = 6}
"""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import HEAD, HEAD_BIAS, Dialect, Row
from jaxgpt.convert.dialects.jaxgpt import OF_GPT2
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import axes_of

MOST_BYTES, MOST_LETTERS = 1_000_000, 300
"""Bytes of a file, and letters of a name in it."""

SIDE = re.compile(r"(?:[VTDNHFC1]|\([VTDNHFC](?: [VTDNHFC])+\))(?: (?:[VTDNHFC1]|\([VTDNHFC](?: [VTDNHFC])+\)))*")
"""One side of a layout, such as `D (C N H)`."""

FIXABLE = {field.name for field in fields(GPTConfig)} - {
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_inner",
    "bias",
    "carried",
}
"""Fields of the config that a file can state: those that the tensors don't."""


def read_dialect(path: Path) -> Dialect:
    """Read a dialect from a TOML file.

    Raises:
        InputError: it is not such a file, or a row of it is undecided, unknown or twice there.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"more than {MOST_BYTES:,} bytes")
        return _dialect(path.stem, tomllib.loads(text.decode()))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a dialect that can be read: {error}") from None


def _dialect(name: str, table: dict[str, Any]) -> Dialect:
    if unknown := table.keys() - {"title", "prefix", "rows", "buffers", "fixed", "writes_tied_head"}:
        raise InputError(f"unknown keys: {', '.join(sorted(unknown))}")
    title, prefix = (table.get(key, "") for key in ("title", "prefix"))
    if not isinstance(title, str) or not isinstance(prefix, str):
        raise InputError("title and prefix must be strings")
    rows = tuple(_row(row) for row in _list(table.get("rows"), "rows"))
    ours = [row.ours for row in rows]
    needed = {row.ours for row in OF_GPT2 if row.ours != HEAD and not row.ours.endswith(".bias")}
    if missing := needed - set(ours):
        raise InputError(f"no row for {', '.join(sorted(missing))}")
    biases = {row.ours for row in OF_GPT2 if row.ours.endswith(".bias") and row.ours != HEAD_BIAS}
    if biases & {*ours} and (missing := biases - {*ours}):
        raise InputError(
            f'no row for {", ".join(sorted(missing))}: a table has rows for all biases or for none; mark as "may lack" '
            "those that your files lack, which are zero then"
        )
    theirs = [name for row in rows for name in row.names]
    for names in (ours, theirs):
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"twice in rows: {', '.join(sorted(twice))}")
    if HEAD not in ours:  # a tied head, which no tensor of theirs is
        rows = (*rows, next(row for row in OF_GPT2 if row.ours == HEAD))
    buffers = tuple(_buffer(buffer) for buffer in _list(table.get("buffers", []), "buffers"))
    return Dialect(
        name=name,
        title=title or name,
        rows=tuple(sorted(rows, key=lambda row: [one.ours for one in OF_GPT2].index(row.ours))),
        buffers=buffers,
        prefix=prefix,
        fixed=_fixed(table.get("fixed", {})),
        writes_tied_head=table.get("writes_tied_head") is True,
    )


def _row(row: Any) -> Row:
    if not isinstance(row, list) or len(row) not in (3, 4) or row[3:] not in ([], ["may lack"]):
        raise InputError(f'a row is [ours, theirs, layout] or [ours, theirs, layout, "may lack"], not {str(row)[:200]}')
    ours, theirs, layout = row[:3]
    known = {one.ours: one for one in OF_GPT2}
    if ours not in known:
        raise InputError(
            f"{str(ours)[:MOST_LETTERS]!r} is not a parameter name of jaxgpt; these are {', '.join(known)}"
        )
    names = theirs if isinstance(theirs, list) else [theirs]
    if not names or not all(isinstance(name, str) and 0 < len(name) <= MOST_LETTERS for name in names):
        raise InputError(
            f"{ours}: the second entry of its row, its name in the files, must be a string, or a list of strings"
        )
    if undecided := [text for text in (*names, layout) if isinstance(text, str) and "?" in text]:
        raise InputError(f"{ours}: {undecided[0]!r} is undecided: replace it")
    if not all(("{i}" in name) == ("{i}" in ours) for name in names):
        raise InputError(f"{ours}: {{i}}, the number of the block, must be in both names or in none")
    sides = layout.split(" -> ") if isinstance(layout, str) else []
    if len(sides) != 2 or not all(SIDE.fullmatch(side) for side in sides):
        raise InputError(f"{ours}: {str(layout)[:MOST_LETTERS]!r} is not a layout such as 'F D -> D F'")
    if sides[1] != known[ours].right:
        raise InputError(f"{ours}: its layout must end in '-> {known[ours].right}', not '-> {sides[1]}'")
    if sorted(re.findall("[A-Z]", sides[0])) != sorted(re.findall("[A-Z]", sides[1])):
        raise InputError(f"{ours}: both sides of {layout!r} must have the same letters")
    by_head = {"{j}" in name for name in names}
    if len(by_head) > 1 or (True in by_head and "N" not in sides[1]):
        raise InputError(
            f"{ours}: {{j}}, the number of a head, must be in all names of the row or in none; where it is "
            "in them, the layout must have the letter N (heads)"
        )
    several = {(True, False): "C", (False, True): "N", (True, True): "(C N)"}
    first = several.get((isinstance(theirs, list), True in by_head))
    if first is not None and axes_of(sides[0])[0] != first:
        raise InputError(
            f"{ours}: with several tensors the layout must begin with {first}, which counts them, but it is {layout!r}"
        )
    if isinstance(theirs, list) and len(theirs) != 3:
        raise InputError(f"{ours}: query, key and value are three tensors, not {len(theirs)}")
    return Row(ours, tuple(theirs) if isinstance(theirs, list) else theirs, layout, may_lack=len(row) == 4)


def _buffer(buffer: Any) -> tuple[str, str]:
    match buffer:
        case [str(name), str(shape)] if len(name) <= MOST_LETTERS and SIDE.fullmatch(shape):
            return name, shape
    raise InputError(f'a buffer is [name, shape], as in ["layers.{{i}}.mask", "T T"], not {str(buffer)[:200]}')


def _fixed(table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InputError("fixed must be a table of config fields")
    if unknown := table.keys() - FIXABLE:
        raise InputError(f"fixed: {', '.join(sorted(unknown))}: not among {', '.join(sorted(FIXABLE))}")
    if undecided := [name for name, value in table.items() if isinstance(value, str) and "?" in value]:
        raise InputError(
            f"fixed: {', '.join(undecided)} is undecided: replace it, or remove the line and give the flag"
        )
    return {"layer_norm_epsilon": 1e-5} | table


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > 1000:
        raise InputError(f"{name} must be a list")
    return value
