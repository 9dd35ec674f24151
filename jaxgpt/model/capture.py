"""Values of a forward pass, by name: residual streams, attention patterns and the outputs of modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgpt.convert.errors import InputError, did_you_mean
from jaxgpt.model.cache import Cache
from jaxgpt.model.dropout import Keys
from jaxgpt.model.rotary import Rotations
from jaxgpt.patterns import Pattern

Edit = Callable[[Array], Array]
"""A function from a value of the forward pass to another of its shape."""


@dataclass(frozen=True)
class Capture:
    """The values whose whole name matches a pattern, and functions that change values on their way.

    Names in the order of the network, of shape (B, T, D) unless another is given: `tok_emb`; `pos_emb`, (1, T, D);
    `embeddings`, their sum, the residual stream before the first block; of each block `blocks.3.ln_1`,
    `blocks.3.attn.pattern`, (B, N, T, T), the weights that positions give to those before them, before dropout;
    `blocks.3.attn`, `blocks.3.ln_2`, `blocks.3.mlp`, and `blocks.3`, the stream after it; and `ln_f`.
    """

    pattern: Pattern | None
    edits: Mapping[str, Edit] = field(default_factory=dict)
    found: dict[str, Float[Array, "..."]] = field(default_factory=dict)
    offered: dict[str, None] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Return whether the value is to be captured or edited, and remember the name."""
        self.offered[name] = None
        return name in self.edits or self._matches(name)

    def _matches(self, name: str) -> bool:
        return self.pattern is not None and bool(self.pattern.matching([name]))

    def take(self, name: str, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the value, edited, and keep it if its name matches.

        Raises:
            InputError: an edit returns something else than an array of the value's shape.
        """
        if (edit := self.edits.get(name)) is not None:
            before, value = value, edit(value)
            if getattr(value, "shape", None) != before.shape:
                raise InputError(
                    f"edit={name!r}: must return an array of shape {before.shape}, not "
                    f"{getattr(value, 'shape', type(value).__name__)}"
                )
            value = jnp.asarray(value, before.dtype)
        if self._matches(name):
            self.found[name] = value
        return value

    def result(self) -> dict[str, Float[Array, "..."]]:
        """Return what was found, in the order of the network.

        Raises:
            InputError: the pattern matches nothing, or an edit's name is none.
        """
        usual = [name for name in self.offered if not name.startswith("blocks.") or name.startswith("blocks.0")]
        names = f"names are {', '.join(usual)}, …"
        if unknown := [name for name in self.edits if name not in self.offered]:
            raise InputError(f"edit={unknown[0]!r} is no name{did_you_mean(unknown[0], self.offered)}; {names}")
        if self.pattern is not None and not self.found:
            raise InputError(f"capture={self.pattern.text!r} matches no name; {names}")
        return self.found


PARTS = (".ln_1", ".attn.pattern", ".attn", ".ln_2", ".mlp")
"""Names of the values inside a block, after its own."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("keys", "cache", "segments", "rotations"),
    meta_fields=("captures", "block", "remat"),
)
@dataclass(frozen=True)
class ForwardContext:
    """The company of a forward pass: keys of dropout and segments in training, a cache in generation, captures."""

    keys: Keys | None = None
    cache: Cache | None = None
    """In a block, that of its own layer only."""
    segments: Int[Array, "B T"] | None = None
    """Number of the text in its row that each token belongs to; None: each row is one text."""
    rotations: Rotations | None = None
    """Those of the tokens' positions, where positions are rotary."""
    captures: Capture | None = None
    block: str = ""
    """The beginning of the names of captured values in a block."""
    remat: bool = False
    """Drop what a block computed, and compute it again in the backward pass."""

    def of_block(self, layer: int) -> "ForwardContext":
        """Return what a block is given: equal for all blocks from whose inside nothing is captured."""
        block, captures = f"blocks.{layer}", self.captures
        if captures is None or not [part for part in PARTS if captures.wants(block + part)]:
            block, captures = "", None
        cache = None if self.cache is None else self.cache.layer(layer)
        return replace(self, cache=cache, captures=captures, block=block)

    def after_block(self, layer: int, after: "ForwardContext") -> "ForwardContext":
        """Return what the next block's is made of; what the block remembers is written into the cache."""
        if self.cache is not None and after.cache is not None:
            self.cache.put(layer, after.cache)
        return replace(self, keys=after.keys)

    def capture(self, name: str, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the value, edited if it is to be, and keep it if its name is to be captured."""
        name = self.block + name
        wanted = self.captures is not None and self.captures.wants(name)
        return self.captures.take(name, value) if self.captures is not None and wanted else value

    def capture_hook(self, name: str) -> Callable[[Array], Array] | None:
        """Return the function that captures a value of this name, or None if it need not be computed."""
        wanted = self.captures is not None and self.captures.wants(self.block + name)
        return partial(self.capture, name) if wanted else None


NO_CONTEXT = ForwardContext()


def make_capture(pattern: str | None, edits: Mapping[str, Edit] | None = None) -> Capture:
    """Make a capture of the names that a regular expression matches, with edits by whole names.

    Raises:
        InputError: the pattern is no regular expression, or an edit is no function.
    """
    edits = {} if edits is None else edits
    if not isinstance(edits, Mapping) or not all(map(callable, edits.values())):
        raise InputError("edit must be a dictionary of functions by names, as in {'blocks.3': function}")
    try:
        return Capture(None if pattern is None else Pattern(pattern), edits)
    except InputError as error:
        raise InputError(f"capture={error}") from None
