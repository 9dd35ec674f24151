"""A dialect says how a family of checkpoints names and lays out its tensors: one table, used in both directions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convert.config import GPTConfig
from convert.errors import InputError
from convert.layout import Shape, relayout, shape_of, swap

Tensors = Mapping[str, Any]
"""Names to arrays: NumPy views of a memory-mapped file, or anything with `shape`, `dtype` and `__array__`."""

MAX_LISTED = 1000
"""Problems shown of one checkpoint: more than any GPT-2 has tensors, fewer than a hostile file may claim."""

EMBEDDING, HEAD = "tok_emb.embedding", "lm_head.kernel"


@dataclass(frozen=True)
class Row:
    """One kind of parameter: our name, their name, and the layout `"theirs -> ours"`; `{i}` stands for the block."""

    ours: str
    theirs: str
    layout: str

    def at(self, i: int) -> "Row":
        return Row(self.ours.replace("{i}", str(i)), self.theirs.replace("{i}", str(i)), self.layout)


@dataclass(frozen=True)
class Dialect:
    """The table of a family of checkpoints."""

    name: str
    title: str
    rows: tuple[Row, ...]
    buffers: tuple[tuple[str, str], ...] = ()
    """(name, shape) of tensors that are no parameters: dropped when both fit."""
    prefix: str = ""
    """Written before every name but the head's; optional when reading."""

    def expand(self, config: GPTConfig) -> Iterator[Row]:
        """One row for each parameter of this model, in the order of the network."""
        blocks = [row for row in self.rows if "{i}" in row.ours]
        for row in self.rows:
            if row is blocks[0]:
                yield from (block.at(i) for i in range(config.n_layer) for block in blocks)
            elif row not in blocks and not (row.ours == HEAD and config.tie_word_embeddings):
                yield row

    def to_ours(self, tensors: Tensors, config: GPTConfig) -> tuple[dict[str, Any], GPTConfig]:
        """Our parameters from their tensors, and the config with what only the tensors can tell: a tied head.

        Raises:
            InputError: lists every tensor that is missing, left over or of another shape than the config says.
        """
        tensors = self.bare_names(tensors)
        tensors, config = self._settle_head(tensors, config)
        rows, dims = list(self.expand(config)), config.dims
        buffers = self.buffers_in(tensors, config)
        problems = [f"missing: {row.theirs} {shape_of(_left(row), dims)}" for row in rows if row.theirs not in tensors]
        expected = {row.theirs for row in rows} | buffers.keys()
        problems += [f"not known: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected]
        for row in rows:
            if row.theirs in tensors:
                array, shape = tensors[row.theirs], shape_of(_left(row), dims)
                if tuple(array.shape) != shape:
                    problems.append(f"shape: {row.theirs} is {tuple(array.shape)}, the config says {shape}")
                elif np.dtype(array.dtype).name not in ("float16", "bfloat16", "float32", "float64"):
                    problems.append(f"dtype: {row.theirs} is {array.dtype}, not a floating-point type")
        if problems:
            raise InputError(_listing(f"not a whole {self.title} checkpoint", problems))
        return {row.ours: relayout(tensors[row.theirs], row.layout, dims) for row in rows}, config

    def to_theirs(self, params: Tensors, config: GPTConfig) -> dict[str, Any]:
        """Their tensors, with the prefix, from our parameters; strict like `to_ours`."""
        rows, dims = list(self.expand(config)), config.dims
        ours = {row.ours: shape_of(_right(row), dims) for row in rows}
        problems = [f"missing: {name} {shape}" for name, shape in ours.items() if name not in params]
        problems += [f"not known: {name} {tuple(params[name].shape)}" for name in params if name not in ours]
        problems += [
            f"shape: {name} is {tuple(params[name].shape)}, the config says {shape}"
            for name, shape in ours.items()
            if name in params and tuple(params[name].shape) != shape
        ]
        if problems:
            raise InputError(_listing("the parameters do not fit the config", problems))
        return {
            ("" if row.ours == HEAD else self.prefix) + row.theirs: relayout(params[row.ours], swap(row.layout), dims)
            for row in rows
        }

    def bare_names(self, tensors: Tensors) -> dict[str, Any]:
        """The tensors under the table's names: a prefix that all but the head carry is stripped, once."""
        head = self.their_name(HEAD)
        if self.prefix and (prefixed := [name for name in tensors if name.startswith(self.prefix)]):
            bare = [name for name in tensors if not name.startswith(self.prefix) and name != head]
            if bare:
                raise InputError(
                    f"some names begin with {self.prefix!r} ({prefixed[0]}) and some do not ({bare[0]}): "
                    "two models in one file?"
                )
            return {name.removeprefix(self.prefix): array for name, array in tensors.items()}
        return dict(tensors)

    def buffers_in(self, tensors: Tensors, config: GPTConfig) -> dict[str, Shape]:
        """Names of the tensors that are no parameters, by full name and shape; a bias may be named alike."""
        named = {
            pattern.replace("{i}", str(i)): shape_of(side, config.dims)
            for pattern, side in self.buffers
            for i in range(config.n_layer)
        }
        return {name: s for name, s in named.items() if name in tensors and tuple(tensors[name].shape) == s}

    def their_name(self, ours: str) -> str:
        return next(row.theirs for row in self.rows if row.ours == ours)

    def _settle_head(self, tensors: dict[str, Any], config: GPTConfig) -> tuple[dict[str, Any], GPTConfig]:
        """Tied or not: decided by the tensors that are there and, where both are and are equal, by the config."""
        embedding, head = self.their_name(EMBEDDING), self.their_name(HEAD)
        if head == HEAD or head not in tensors or not config.tie_word_embeddings:  # our own files state it
            return tensors, config
        rest = {name: array for name, array in tensors.items() if name != head}
        if embedding not in tensors:  # a file with the head alone holds the one matrix under its other name
            return {embedding: tensors[head], **rest}, config
        if same(tensors[embedding], tensors[head]):
            return rest, config
        return tensors, replace(config, tie_word_embeddings=False)


def same(a: Any, b: Any) -> bool:
    """Whether two arrays are bitwise equal, NaNs and signed zeros included."""
    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        return False
    return bool(np.array_equal(_bits(np.asarray(a)), _bits(np.asarray(b))))


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize in (1, 2, 4, 8) else array


def _left(row: Row) -> str:
    return row.layout.split(" -> ")[0]


def _right(row: Row) -> str:
    return row.layout.split(" -> ")[1]


def _listing(title: str, problems: list[str]) -> str:
    shown = problems[:MAX_LISTED] + [f"… and {len(problems) - MAX_LISTED:,} more"] * (len(problems) > MAX_LISTED)
    return "\n  ".join([f"{title}, {len(problems)} problem{'s' * (len(problems) > 1)}:", *shown])
