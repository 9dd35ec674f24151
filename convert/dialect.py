"""A dialect says how a family of checkpoints names and lays out its tensors: one table, used in both directions."""

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
    """One kind of parameter: our name, their name, and the layout `"theirs -> ours"`; `{i}` stands for the block.

    Several of theirs to one of ours are a tuple of names, and the first letter of the layout counts them.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: str

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, one or several."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def left(self) -> str:
        """The layout of each of theirs."""
        left = self.layout.split(" -> ")[0]
        return left if isinstance(self.theirs, str) else left.split(" ", 1)[1]

    @property
    def right(self) -> str:
        """The layout of ours."""
        return self.layout.split(" -> ")[1]

    def at(self, i: int) -> "Row":
        """The row of block i."""
        names = tuple(name.replace("{i}", str(i)) for name in self.names)
        theirs = names[0] if isinstance(self.theirs, str) else names
        return Row(self.ours.replace("{i}", str(i)), theirs, self.layout)


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
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """What a checkpoint of this family without a config is known to compute; what is open is asked for."""
    writes_tied_head: bool = False
    """A tied head is in the file a second time, as in the state dict of a module that shares one parameter."""

    def expand(self, config: GPTConfig) -> Iterator[Row]:
        """One row for each parameter of this model, in the order of the network."""
        rows = [row for row in self.rows if config.bias or not row.ours.endswith(".bias")]
        blocks = [row for row in rows if "{i}" in row.ours]
        for row in rows:
            if row is blocks[0]:
                yield from (block.at(i) for i in range(config.n_layer) for block in blocks)
            elif row not in blocks and not (row.ours == HEAD and config.tie_word_embeddings):
                yield row

    def row(self, ours: str) -> Row:
        """The row of a parameter that is in no block."""
        return next(row for row in self.rows if row.ours == ours)

    def bare(self, name: str) -> str:
        """A name without the prefix."""
        return name.removeprefix(self.prefix)

    def bare_names(self, tensors: Tensors) -> dict[str, Any]:
        """The tensors under the table's names: a prefix that all but the head carry is stripped, once."""
        (head,) = self.row(HEAD).names
        prefixed = [name for name in tensors if self.prefix and name.startswith(self.prefix)]
        others = [name for name in tensors if name not in prefixed and name != head]
        if prefixed and others:
            raise InputError(
                f"some names begin with {self.prefix!r} ({prefixed[0]}) and some do not ({others[0]}): "
                "two models in one file?"
            )
        return {self.bare(name): array for name, array in tensors.items()}

    def buffers_in(self, tensors: Tensors, config: GPTConfig) -> dict[str, Shape]:
        """Names of the tensors that are no parameters, by full name and shape; a bias may be named alike."""
        named = [
            (pattern.replace("{i}", str(i)), shape_of(side, config.dims))
            for pattern, side in self.buffers
            for i in range(config.n_layer)
        ]
        return {name: shape for name, shape in named if name in tensors and tuple(tensors[name].shape) == shape}


def problem_list(title: str, problems: Iterable[str], most: int = 1000) -> str:
    """A message with a line for each problem; `most` is more than any GPT-2 has tensors."""
    problems = list(problems)
    shown = problems[:most] + [f"… and {len(problems) - most:,} more"] * (len(problems) > most)
    return "\n  ".join([f"{title}, {len(problems)} problem{'s' * (len(problems) > 1)}:", *shown])
