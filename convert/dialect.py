"""Dialects: how a family of checkpoints names and lays out its tensors, as one table for both directions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import Shape, axes_of, shape_of

Tensors = Mapping[str, Any]
"""Names to arrays: NumPy views of a memory-mapped file, or anything with `shape`, `dtype` and `__array__`."""

EMBEDDING, HEAD, HEAD_BIAS = "tok_emb.embedding", "lm_head.kernel", "lm_head.bias"


@dataclass(frozen=True)
class Row:
    """One kind of parameter: our name, their name, and the layout `"theirs -> ours"`; `{i}` is the block's number.

    If several of their tensors make one of ours, the layout's first axis counts them: `theirs` is a tuple, or has the
    number of an attention head in it, `{j}`, or both, as in `(C N) H D -> D C N H`.
    """

    ours: str
    theirs: str | tuple[str, ...]
    layout: str
    may_lack: bool = False
    """A checkpoint may lack it, as biases of some layers only; it is zero there."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of their tensors, with `{j}` once for all heads."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def left(self) -> str:
        """Layout of each of their tensors."""
        left = self.layout.split(" -> ")[0]
        return " ".join(axes_of(left)[1:]) if self.is_several else left

    @property
    def right(self) -> str:
        """Layout of our parameter."""
        return self.layout.split(" -> ")[1]

    @property
    def is_several(self) -> bool:
        """Several of their tensors make one of ours."""
        return not isinstance(self.theirs, str) or "{j}" in self.theirs

    def at(self, i: int, n_head: int = 1) -> "Row":
        """Return the row of block i, with the names of all heads."""
        names = tuple(name.replace("{i}", str(i)) for name in self.names)
        names = tuple(name.replace("{j}", str(j)) for name in names for j in range(n_head if "{j}" in name else 1))
        return Row(self.ours.replace("{i}", str(i)), names if self.is_several else names[0], self.layout, self.may_lack)


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
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Names that some files have instead of the table's."""
    needs_config: bool = False
    """A `config.json` must lie beside the weights: shapes don't tell what this family computes."""
    caution: str = ""
    """A sentence about anything else that this family's files do not state, and how it is read."""

    def expand(self, config: GPTConfig) -> Iterator[Row]:
        """Yield one row for each parameter of a model, in the order of the network."""
        is_there = _presence(config)
        rows = [row for row in self.rows if "{i}" in row.ours or is_there(row.ours)]
        blocks = [row for row in rows if "{i}" in row.ours]
        for row in rows:
            if row is blocks[0]:
                of_blocks = (block.at(i, config.n_head) for i in range(config.n_layer) for block in blocks)
                yield from (block for block in of_blocks if is_there(block.ours))
            elif row not in blocks:
                yield row

    @property
    def names(self) -> set[str]:
        """Names of all tensors that are parameters, with `{i}` and `{j}`."""
        return {name for row in self.rows for name in row.names}

    def row(self, ours: str) -> Row:
        """Return the row with this name of ours; of a block's parameter with `{i}` in it."""
        return next(row for row in self.rows if row.ours == ours)

    def bare(self, name: str) -> str:
        """Remove the prefix from a name."""
        return name.removeprefix(self.prefix)

    def bare_names(self, tensors: Tensors) -> dict[str, Any]:
        """Return the tensors by the table's names; a prefix that all but the head have is removed, once."""
        if twice := [name for name, other in self.renamed.items() if name in tensors and other in tensors]:
            raise InputError(f"{twice[0]} and {self.renamed[twice[0]]} are two names of one tensor, and both are there")
        tensors = {self.renamed.get(name, name): array for name, array in tensors.items()}
        head = [name for row in self.rows if row.ours in (HEAD, HEAD_BIAS) for name in row.names]
        prefixed = [name for name in tensors if self.prefix and name.startswith(self.prefix)]
        others = [name for name in tensors if name not in prefixed and name not in head]
        if prefixed and others:
            raise InputError(
                f"some names begin with {self.prefix!r} ({prefixed[0]}) and some do not ({others[0]}): "
                "two models in one file? Save the state dict of one of them alone"
            )
        return {self.bare(name): array for name, array in tensors.items()}

    def buffers_in(self, tensors: Tensors, config: GPTConfig) -> dict[str, Shape]:
        """Find the tensors that are not parameters, by name and shape, since a bias may have the same name."""
        candidates = [
            (one, side)
            for name, side in self.buffers
            for i in range(config.n_layer)
            for one in Row("", name, side).at(i, config.n_head).names
        ]
        found = {name: tuple(tensors[name].shape) for name, side in candidates if name in tensors}
        return {
            name: found[name]
            for name, side in candidates
            if name in found and _has_layout(found[name], side, config.dims)
        }


def _presence(config: GPTConfig) -> Callable[[str], bool]:
    """Return a function that tells whether a model of this config has a parameter of ours."""
    adapted = {*config.lora.modules} if config.lora else set()
    heads = {HEAD: not config.tie_word_embeddings, HEAD_BIAS: config.head_bias}
    layers = {"pos_emb": config.positions == "learned", "c_attn": not config.split_qkv, "gate": config.gated_mlp}
    layers |= dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.split_qkv)
    layers |= dict.fromkeys(("q_norm", "k_norm"), config.qk_norm)

    def is_there(name: str) -> bool:
        module, _, kind = name.rpartition(".")
        if name in heads:
            return heads[name]
        if not layers.get(module.rpartition(".")[2], True):
            return False
        if kind.startswith("lora_"):
            return module in adapted and (kind != "lora_m" or (config.lora is not None and config.lora.dora))
        if kind == "new":
            return config.n_new_tokens > 0 and (module == "tok_emb" or not config.tie_word_embeddings)
        return kind != "bias" or config.has_bias(module)

    return is_there


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
