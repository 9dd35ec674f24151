"""Rotary positions: the first 2 J numbers of each head are J pairs, each turned by its own angle (Su et al. 2021)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgpt.convert.config import GPTConfig

Rotations = tuple[Float[Array, "#B T 1 J"], Float[Array, "#B T 1 J"]]
"""The cosines and the sines of the angles at each position."""


def frequencies(config: GPTConfig) -> Float[np.ndarray, " J"]:
    """Return the angle of each pair from one position to the next, in radians, rounded as transformers rounds them.

    Angles grow with the position: the last bit of a frequency is 1e-4 of a turn at the end of a long context.
    """
    J = config.dims["J"]
    exponents = np.arange(0, 2 * J, 2, dtype=np.float32) / np.float32(2 * J)
    powers = np.power(float(config.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    found = np.float32(1) / powers
    if (scaling := config.rope_scaling) is None:
        return found
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    wavelengths = np.float32(2 * np.pi) / found
    turns = np.float32(scaling.original_positions) / wavelengths  # within the pretraining's context
    slow = found / np.float32(scaling.factor)
    share = (turns - low) / (high - low)
    between = (np.float32(1) - share) * slow + share * found
    is_slow = wavelengths > np.float32(scaling.original_positions / scaling.low_freq_factor)
    is_fast = wavelengths < np.float32(scaling.original_positions / scaling.high_freq_factor)
    return np.where(is_fast, found, np.where(is_slow, slow, between)).astype(np.float32)


def rotations(config: GPTConfig, at: Int[Array, "#B T"]) -> Rotations:
    """Return the rotations of positions, in float32."""
    angles = at[..., None, None].astype(jnp.float32) * frequencies(config)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], by: Rotations) -> Float[Array, "B T N H"]:
    """Turn the first 2 J numbers of each head; the pairs are of a number in their first half and one in the second."""
    cos, sin = by
    J = cos.shape[-1]
    first, second = (part.astype(cos.dtype) for part in (x[..., :J], x[..., J : 2 * J]))
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), x[..., 2 * J :]], axis=-1)
