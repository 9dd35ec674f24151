"""Dropout without state: keys are an argument, and each use takes the next one."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass
class Keys:
    """A source of keys: a new one at each call, in the order of the network."""

    key: Array
    used: int | Int[Array, ""] = 0
    """Number of keys that were taken."""

    def __call__(self) -> Array:
        self.used += 1
        return jax.random.fold_in(self.key, self.used)


def dropout(x: Float[Array, "..."], rate: float, keys: Keys | None) -> Float[Array, "..."]:
    """Set each element to 0 with probability `rate`, and divide the rest by 1 - rate; do nothing without keys."""
    if keys is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(keys(), 1 - rate, x.shape), x / (1 - rate), 0)
