"""Keys and values of tokens that the model has seen, so that it sees each of them once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgpt.convert.config import GPTConfig


@jax.tree_util.register_dataclass
@dataclass
class Cache:
    """A preallocated memory of S slots for each row, filled from the left: an argument and a result of the model."""

    keys: list[Float[Array, "B K S H"]]
    """One array for each layer."""
    values: list[Float[Array, "B K S H"]]
    length: Int[Array, ""]
    """Number of slots that are filled."""
    start: Int[Array, " B"]
    """First slot of each row that holds a token; what comes before it is padding, and never seen."""

    def positions(self, T: int) -> Int[Array, "B T"]:
        """Return the positions of the next T tokens in the text of each row; 0 in padding."""
        return jnp.maximum(self.length + jnp.arange(T)[None] - self.start[:, None], 0)

    def visible(self, T: int, window: int = 0) -> Bool[Array, "B T S"]:
        """Return the slots that each of the next T tokens sees: its own, and those before it back to the start.

        Args:
            window: so many slots at most, if it is not 0.
        """
        slots = jnp.arange(self.keys[0].shape[2])[None, None]
        now = self.length + jnp.arange(T)[None, :, None]
        seen = (slots <= now) & (slots >= self.start[:, None, None])
        return seen & (slots > now - window) if window else seen

    def layer(self, i: int) -> "Cache":
        """Return the cache of a single layer."""
        return Cache([self.keys[i]], [self.values[i]], self.length, self.start)

    def put(self, i: int, layer: "Cache") -> None:
        """Take what a layer has written; the lists are changed in place."""
        (self.keys[i],), (self.values[i],) = layer.keys, layer.values

    def write(self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]) -> None:
        """Fill the next slots of the cache of a single layer; the lists are changed in place."""
        zero = jnp.zeros_like(self.length)
        place = (zero, zero, self.length, zero)
        for memory, new in ((self.keys, k), (self.values, v)):
            rows = jnp.swapaxes(new, 1, 2).astype(memory[0].dtype)
            memory[0] = jax.lax.dynamic_update_slice(memory[0], rows, place)

    def advanced(self, T: int) -> "Cache":
        """Return the same cache with T more slots filled."""
        return Cache(self.keys, self.values, self.length + T, self.start)

    def copy(self) -> "Cache":
        """Return a copy with lists of its own, to be written to."""
        return Cache([*self.keys], [*self.values], self.length, self.start)


def empty_cache(config: GPTConfig, start: Int[Array, " B"], slots: int, dtype=jnp.float32) -> Cache:
    """Make an empty cache, for rows that begin at the slots `start`."""
    dims = config.dims
    shape = (start.shape[0], dims["K"], slots, dims["H"])
    keys, values = ([jnp.zeros(shape, dtype) for _ in range(config.n_layer)] for _ in range(2))
    return Cache(keys, values, jnp.int32(0), start)
