"""GPT-2's linear layers and LayerNorms, as Flax has them, and what adapters add to them."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgpt.convert.adapter import LoRA, column_lengths
from jaxgpt.convert.config import GPTConfig
from jaxgpt.mesh import constrain, exchange_columns
from jaxgpt.model.dropout import Keys, dropout


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
        rows = super().__call__(x)
        rows = self.adapted(x, rows, keys)
        return rows.reshape(*inputs.shape[:2], *rows.shape[1:])

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
            own = jnp.tensordot(dropped, self.kernel[...].astype(rows.dtype), len(self.in_features))
        return rows + ((ratio - 1) * own + ratio * thin)

    def _lengths(self, lora: LoRA) -> Array:
        """Return the lengths of the columns of W + scale A B, which is never made; no gradient passes (DoRA, 4.3)."""
        kernel, a, b = (param[...].astype(jnp.float32) for param in (self.kernel, self.lora_a, self.lora_b))
        inputs = tuple(range(len(self.in_features)))
        mixed = jnp.tensordot(a, kernel, (inputs, inputs)) + 0.5 * lora.scale * jnp.tensordot(
            jnp.tensordot(a, a, (inputs, inputs)), b, 1
        )
        squares = jnp.sum(jnp.square(kernel), inputs) + 2 * lora.scale * jnp.sum(b * mixed, 0)
        return jax.lax.stop_gradient(jnp.sqrt(squares))


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
    kwargs["use_bias"] = config.bias if use_bias is None else use_bias
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


def layer_norm(config: GPTConfig, **kwargs) -> nnx.LayerNorm:
    """Make a LayerNorm in the residual stream's dtype, with or without a bias."""
    # neither in bfloat16 nor with the fast variance E[x^2] - E[x]^2: single dimensions of GPT-2's stream reach
    # thousands, where the one has no digits left for the rest and the other cancels
    kwargs |= {"use_bias": config.bias, "use_fast_variance": False}
    return nnx.LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon, **kwargs)
