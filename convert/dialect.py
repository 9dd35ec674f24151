"""Dialects: how a family of checkpoints names and lays out its tensors, as one table for both directions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import Shape, shape_of

Tensors = Mapping[str, Any]
"""Names to arrays: NumPy views of a memory-mapped file, or anything with `shape`, `dtype` and `__array__`."""

EMBEDDING, HEAD = "tok_emb.embedding", "lm_head.kernel"


@dataclass(frozen=True)
class Row:
    """One kind of parameter: our name, their name, and the layout `"theirs -> ours"`; `{i}` is the block's number.

    If several of their tensors make one of ours, `theirs` is a tuple, and the layout's first letter counts them.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: str
    may_lack: bool = False
    """A checkpoint may lack it, as biases of some layers only; it is zero there."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of their tensors."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def left(self) -> str:
        """Layout of each of their tensors."""
        left = self.layout.split(" -> ")[0]
        return left if isinstance(self.theirs, str) else left.split(" ", 1)[1]

    @property
    def right(self) -> str:
        """Layout of our parameter."""
        return self.layout.split(" -> ")[1]

    def at(self, i: int) -> "Row":
        """Return the row of block i."""
        names = tuple(name.replace("{i}", str(i)) for name in self.names)
        theirs = names[0] if isinstance(self.theirs, str) else names
        return Row(self.ours.replace("{i}", str(i)), theirs, self.layout, self.may_lack)


@dataclass(frozen=True)
class Dialect:
    """A family of checkpoints: its table and its properties."""

    name: str
    title: str
    rows: tuple[Row, ...]
    buffers: tuple[tuple[str, str], ...] = ()
    """(name, shape) of tensors that are not parameters; they are dropped when both match. T is any number here, the
    same in one shape: a mask is often of another context than the positions, and no reader takes it from a file."""
    prefix: str = ""
    """Prefix of every name but the head's; optional when reading."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Config fields that are known for a checkpoint of this family without a config."""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    """Config fields that are as in this family's own code unless it is told otherwise: its files do not state them."""
    writes_tied_head: bool = False
    """A tied head is written twice, as in the state dict of a module that shares one parameter."""

    def expand(self, config: GPTConfig) -> Iterator[Row]:
        """Yield one row for each parameter of a model, in the order of the network."""
        rows = [row for row in self.rows if config.bias or not row.ours.endswith(".bias")]
        blocks = [row for row in rows if "{i}" in row.ours]
        for row in rows:
            if row is blocks[0]:
                yield from (block.at(i) for i in range(config.n_layer) for block in blocks)
            elif row not in blocks and not (row.ours == HEAD and config.tie_word_embeddings):
                yield row

    def row(self, ours: str) -> Row:
        """Return the row with this name of ours; of a block's parameter with `{i}` in it."""
        return next(row for row in self.rows if row.ours == ours)

    def bare(self, name: str) -> str:
        """Remove the prefix from a name."""
        return name.removeprefix(self.prefix)

    def bare_names(self, tensors: Tensors) -> dict[str, Any]:
        """Return the tensors by the table's names; a prefix that all but the head have is removed, once."""
        (head,) = self.row(HEAD).names
        prefixed = [name for name in tensors if self.prefix and name.startswith(self.prefix)]
        others = [name for name in tensors if name not in prefixed and name != head]
        if prefixed and others:
            raise InputError(
                f"some names begin with {self.prefix!r} ({prefixed[0]}) and some do not ({others[0]}): "
                "two models in one file? Save the state dict of one of them alone"
            )
        return {self.bare(name): array for name, array in tensors.items()}

    def buffers_in(self, tensors: Tensors, config: GPTConfig) -> dict[str, Shape]:
        """Find the tensors that are not parameters, by name and shape, since a bias may have the same name."""
        candidates = [(name.replace("{i}", str(i)), side) for name, side in self.buffers for i in range(config.n_layer)]
        found = {name: tuple(tensors[name].shape) for name, side in candidates if name in tensors}
        return {
            name: found[name]
            for name, side in candidates
            if name in found and _has_layout(found[name], side, config.dims)
        }


def _has_layout(shape: Shape, side: str, dims: dict[str, int]) -> bool:
    """Tell whether a shape is as a layout says, with any number for T."""
    size = next((n for n, axis in zip(shape, side.split(), strict=False) if axis == "T"), 0)
    return shape == shape_of(side, dims | {"T": max(size, 1)})


def problem_list(title: str, problems: Iterable[str], n_most: int = 1000) -> InputError:
    """Make an error with a line for each problem; no GPT-2 has `n_most` tensors."""
    problems = list(problems)
    shown = problems[:n_most]
    if len(problems) > n_most:
        shown.append(f"… and {len(problems) - n_most:,} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InputError(f"{title}, {count}:", *(f"  {problem}" for problem in shown))
