"""Linear layers and norms, as Flax has them, and what adapters add to them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgpt.convert.adapter import LoRA, column_lengths
from jaxgpt.convert.config import GPTConfig
from jaxgpt.int8 import Int8Kernel
from jaxgpt.mesh import constrain, exchange_columns, is_for_one_cpu
from jaxgpt.model.bfloat16 import bfloat16_product, fits_bfloat16_product
from jaxgpt.model.dropout import Keys, dropout

BLOCK_INPUTS = 16
"""Inputs of a kernel in 8 bits that one loop over its outputs reads. Of one kernel alone, 8 and 32 were slower."""

FEW_ROWS = 8
"""Rows that a CPU multiplies one after the other by a kernel in 8 bits; more are multiplied by a copy in floats."""


def initial_adapter(kernel: Array, n_in: int, lora: LoRA, key: Array) -> dict[str, Array]:
    """Return the parameters of a new adapter of a kernel by name, float32 whatever the kernel is.

    As PEFT initialises them: A is uniform within 1 / sqrt(inputs), and B zero, so that nothing changes at first.
    """
    inputs, outputs = kernel.shape[:n_in], kernel.shape[n_in:]
    bound = math.prod(inputs) ** -0.5
    made = {"lora_a": jax.random.uniform(key, (*inputs, lora.r), jnp.float32, -bound, bound)}
    made["lora_b"] = jnp.zeros((lora.r, *outputs))
    if lora.dora:
        made["lora_m"] = column_lengths(kernel.astype(jnp.float32), n_in, jnp)
    return made


@jax.custom_vjp
def int8_product(x: Array, kernel: Int8Kernel) -> Array:
    """Return the product of inputs x and a kernel in 8 bits, computed in the dtype of x, in float32.

    The kernel has no gradient, and nothing of it is kept for the backward pass but itself: the derivative of a product
    with a copy in floats would keep that copy.
    """
    if _reads_int8(x, kernel):
        return _by_rows(x, kernel)
    values = _late(kernel.values, x).astype(x.dtype)
    axes = tuple(range(x.ndim - kernel.n_in, x.ndim)), tuple(range(kernel.n_in))
    product = jax.lax.dot_general(x, values, (axes, ((), ())), preferred_element_type=jnp.float32)
    return product * jnp.expand_dims(kernel.scale, range(x.ndim - kernel.n_in))


def _reads_int8(x: Array, kernel: Int8Kernel) -> bool:
    """Return whether to multiply a row at a time, in loops that convert each number in a register.

    XLA's CPU backend writes a kernel that a product reads out in floats first, which takes longer than to read it so.
    """
    n_rows, n_inputs = (math.prod(axes) for axes in (x.shape[: -kernel.n_in], kernel.shape[: kernel.n_in]))
    return is_for_one_cpu() and n_rows <= FEW_ROWS and n_inputs % BLOCK_INPUTS == 0


def _by_rows(x: Array, kernel: Int8Kernel) -> Array:
    """Return the product of a few rows and a kernel in 8 bits; that of a row does not depend on the others."""
    n_inputs = math.prod(kernel.shape[: kernel.n_in])
    blocks = kernel.values.reshape(n_inputs // BLOCK_INPUTS, BLOCK_INPUTS, -1)

    def product(row: Array) -> Array:
        # an index that XLA does not know to be zero: else it converts the kernel to floats before the loop over tokens.
        # Only where the row begins with NaN is it one
        zero = jnp.isnan(row[0, 0]).astype(jnp.int32)
        inputs = [jax.lax.dynamic_index_in_dim(blocks, i + zero, 1, keepdims=False) for i in range(BLOCK_INPUTS)]
        # written out and not as a sum over an axis: loops over the outputs are vectorised, a reduction is not. The
        # product with ones keeps XLA from merging both sums into one
        parts = [row[:, i, None] * values.astype(jnp.float32) for i, values in enumerate(inputs)]
        return jnp.ones(len(blocks)) @ sum(parts[1:], parts[0])

    rows = x.astype(jnp.float32).reshape(-1, *blocks.shape[:2])
    products = product(rows[0])[None] if len(rows) == 1 else jax.lax.map(product, rows)
    products = products.reshape(*x.shape[: -kernel.n_in], *kernel.scale.shape)
    return products * jnp.expand_dims(kernel.scale, range(x.ndim - kernel.n_in))


def _int8_forward(x, kernel):
    return int8_product(x, kernel), (kernel, jnp.zeros((), x.dtype))


def _int8_backward(kept, gradient):
    kernel, zero = kept
    n_rows = gradient.ndim - kernel.scale.ndim
    gradient = (gradient * jnp.expand_dims(kernel.scale, range(n_rows))).astype(zero.dtype)
    values = _late(kernel.values, gradient).astype(zero.dtype)
    axes = tuple(range(n_rows, gradient.ndim)), tuple(range(kernel.n_in, kernel.values.ndim))
    return jax.lax.dot_general(gradient, values, (axes, ((), ()))), None


int8_product.defvjp(_int8_forward, _int8_backward)


def _late(values: Array, x: Array) -> Array:
    """Return int8 values, for XLA not before x is there.

    Else it converts them to floats once for the forward and the backward pass, of all layers, and keeps that.
    """
    if not is_for_one_cpu():
        return jax.lax.optimization_barrier((values, x))[0]
    # XLA's CPU backend removes barriers, and merges what they held apart. It can't tell that this changes nothing: only
    # where x begins with NaN are the values others
    return values ^ jnp.isnan(x[(0,) * x.ndim]).astype(jnp.int8)


class Embed(nnx.Embed):
    """Flax's table; new tokens may have rows apart from it."""

    new: nnx.Param


class Linear(nnx.LinearGeneral):
    """Flax's linear layer, over a single axis of rows.

    XLA's CPU backend then finds the faster form of the kernel's gradient. With an adapter, W + scale A B is never made:
    the product is that of W and two thin ones.
    """

    lora_a: nnx.Param
    lora_b: nnx.Param
    lora_m: nnx.Param
    new: nnx.Param
    """Columns of new tokens apart from the kernel, of an output head."""

    def __init__(self, in_features, out_features, *, lora: LoRA | None = None, rngs: nnx.Rngs, **kwargs):
        super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.lora = lora
        if lora is not None:
            made = initial_adapter(self.kernel[...], len(self.in_features), lora, rngs.params())
            for name, value in made.items():
                setattr(self, name, nnx.Param(value))

    def __call__(self, inputs, keys: Keys | None = None):
        """Return the outputs of (B, T, …) inputs; `keys` turn on the adapter's dropout."""
        x = inputs.reshape(-1, *inputs.shape[2:])
        if isinstance(self.kernel.get_value(), Int8Kernel):
            rows = self._int8(x)
        elif is_for_one_cpu():
            rows = self._flat(x)
        else:
            rows = super().__call__(x)
        rows = self.adapted(x, rows, keys)
        return rows.reshape(*inputs.shape[:2], *rows.shape[1:])

    def _flat(self, x: Array) -> Array:
        """Return the outputs of rows by a product of matrices.

        Where they have more axes, XLA's CPU backend leaves the kernel's gradient transposed, for the optimizer to read.
        With products in bfloat16 they are float32, which saves their conversions.
        """
        given = x, self.kernel[...], None if self.bias is None else self.bias[...]
        n_inputs, is_half = math.prod(self.in_features), fits_bfloat16_product(self.dtype)
        x, kernel, bias = given if is_half else self.promote_dtype(given, dtype=self.dtype)
        x, matrix = x.reshape(-1, n_inputs), kernel.reshape(n_inputs, -1)
        rows = bfloat16_product(x, matrix, 0) if is_half else x @ matrix
        rows = rows.reshape(-1, *kernel.shape[len(self.in_features) :])
        return rows if bias is None else rows + bias[None].astype(rows.dtype)

    def _int8(self, x: Array) -> Array:
        rows = self.product(x.astype(self.dtype))
        return rows if self.bias is None else rows + self.bias[...].astype(rows.dtype)[None]

    def product(self, x: Array, dtype: Any = None) -> Array:
        """Return the product of inputs x and the kernel, in the dtype of x."""
        kernel = self.kernel.get_value()
        if isinstance(kernel, Int8Kernel):
            return int8_product(x, kernel).astype(dtype or x.dtype)
        axes = tuple(range(x.ndim - len(self.in_features), x.ndim)), tuple(range(len(self.in_features)))
        return jax.lax.dot_general(x, kernel.astype(x.dtype), (axes, ((), ())), preferred_element_type=dtype)

    def adapted(self, x: Array, rows: Array, keys: Keys | None) -> Array:
        """Add to the outputs of inputs x what the adapter computes, as PEFT does: nothing before its first update."""
        if (lora := self.lora) is None:
            return rows
        a, b = (param[...].astype(rows.dtype) for param in (self.lora_a, self.lora_b))
        dropped = dropout(x.astype(rows.dtype), lora.dropout, keys)
        thin = lora.scale * jnp.tensordot(jnp.tensordot(dropped, a, len(self.in_features)), b, 1)
        if not lora.dora:
            return rows + thin
        ratio = (self.lora_m[...] / self._lengths(lora)).astype(rows.dtype)[None]
        bias = 0 if self.bias is None else self.bias[...].astype(rows.dtype)[None]
        # the columns are scaled, the bias is not; with dropout the kernel's own part of the change drops too
        own = rows - bias
        if keys is not None and lora.dropout > 0:
            own = self.product(dropped)
        return rows + ((ratio - 1) * own + ratio * thin)

    def _lengths(self, lora: LoRA) -> Array:
        """Return the lengths of the columns of W + scale A B, which is never made; no gradient passes (DoRA, 4.3)."""
        a, b = (param[...].astype(jnp.float32) for param in (self.lora_a, self.lora_b))
        inputs = tuple(range(len(self.in_features)))
        mixed = self.product(jnp.moveaxis(a, -1, 0)) + 0.5 * lora.scale * jnp.tensordot(
            jnp.tensordot(a, a, (inputs, inputs)), b, 1
        )
        squares = self._squares() + 2 * lora.scale * jnp.sum(b * mixed, 0)
        return jax.lax.stop_gradient(jnp.sqrt(squares))

    def _squares(self) -> Array:
        """Return the squares of the lengths of the kernel's columns."""
        kernel = self.kernel.get_value()
        inputs = tuple(range(len(self.in_features)))
        if isinstance(kernel, Int8Kernel):
            return jnp.sum(jnp.square(kernel.values.astype(jnp.float32)), inputs) * jnp.square(kernel.scale)
        return jnp.sum(jnp.square(kernel.astype(jnp.float32)), inputs)


def make_linear(
    config: GPTConfig,
    module: str,
    in_features,
    out_features,
    *,
    residual: bool = False,
    use_bias: bool | None = None,
    **kwargs,
) -> Linear:
    """Make a linear layer with GPT-2's initialisation, and with the adapter that the config gives a layer of its name.

    It is N(0, 0.02), divided by sqrt(2 L) for what is added to the residual stream.
    """
    kwargs["lora"] = config.lora if config.lora and module in config.lora.modules else None
    std = 0.02 / (2 * config.n_layer) ** 0.5 if residual else 0.02
    axis = tuple(range(-len(in_features), 0)) if isinstance(in_features, tuple) else -1
    kwargs["use_bias"] = config.has_bias(module) if use_bias is None else use_bias
    return Linear(in_features, out_features, axis=axis, kernel_init=nnx.initializers.normal(std), **kwargs)


def embed(table: Embed, ids: Int[Array, "#B T"]) -> Float[Array, "#B T D"]:
    """Look ids up in a table.

    On a mesh each device looks up its columns for the rows of all of `fsdp`, and the devices then exchange them for the
    columns of their own rows. That moves B T D numbers, and not the table.
    """
    if ids.shape[0] == 1:
        return constrain(table(ids), rows=None)
    return exchange_columns(constrain(table(constrain(ids, rows="data")), None, "fsdp", rows="data"))


def new_rows(
    x: Float[Array, "#B T D"], ids: Int[Array, "#B T"], rows: Float[Array, "S D"], first: int
) -> Float[Array, "#B T D"]:
    """Return embeddings of ids, those of the S ids from `first` on from rows of their own."""
    at = ids - first
    is_new = (at >= 0) & (at < rows.shape[0])
    return jnp.where(is_new[..., None], rows[jnp.where(is_new, at, 0)], x)


def make_norm(config: GPTConfig, **kwargs) -> nnx.LayerNorm | nnx.RMSNorm:
    """Make a norm of the residual stream, in its dtype."""
    if config.norm == "rms":
        return rms_norm(config, config.n_embd, **kwargs)
    # neither in bfloat16 nor with the fast variance E[x^2] - E[x]^2: single dimensions of GPT-2's stream reach
    # thousands, where the one has no digits left for the rest and the other cancels
    kwargs |= {"use_bias": config.has_bias("ln_f"), "use_fast_variance": False}
    return nnx.LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon, **kwargs)


def rms_norm(config: GPTConfig, size: int, **kwargs) -> nnx.RMSNorm:
    """Make an RMSNorm over the last `size` numbers, in the dtype of its scale."""
    return nnx.RMSNorm(size, epsilon=config.layer_norm_epsilon, **kwargs)
