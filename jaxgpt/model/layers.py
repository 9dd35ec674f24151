"""GPT-2's linear layers and LayerNorms, as Flax has them."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgpt.convert.config import GPTConfig
from jaxgpt.mesh import constrain, exchange_columns


class Linear(nnx.LinearGeneral):
    """Flax's linear layer, over a single axis of rows.

    XLA's CPU backend then finds the faster form of the kernel's gradient.
    """

    def __call__(self, inputs, out_sharding=None):
        rows = super().__call__(inputs.reshape(-1, *inputs.shape[2:]), out_sharding)
        return rows.reshape(*inputs.shape[:2], *rows.shape[1:])


def make_linear(
    config: GPTConfig, in_features, out_features, *, residual: bool = False, use_bias: bool | None = None, **kwargs
) -> Linear:
    """Make a linear layer with GPT-2's initialisation.

    It is N(0, 0.02), divided by sqrt(2 L) for what is added to the residual stream.
    """
    std = 0.02 / (2 * config.n_layer) ** 0.5 if residual else 0.02
    axis = tuple(range(-len(in_features), 0)) if isinstance(in_features, tuple) else -1
    kwargs["use_bias"] = config.bias if use_bias is None else use_bias
    return Linear(in_features, out_features, axis=axis, kernel_init=nnx.initializers.normal(std), **kwargs)


def embed(table: nnx.Embed, ids: Int[Array, "#B T"]) -> Float[Array, "#B T D"]:
    """Look ids up in a table.

    On a mesh each device looks up its columns for the rows of all of `fsdp`, and the devices then exchange them for the
    columns of their own rows. That moves B T D numbers, and not the table.
    """
    if ids.shape[0] == 1:
        return constrain(table(ids), rows=None)
    return exchange_columns(constrain(table(constrain(ids, rows="data")), None, "fsdp", rows="data"))


def layer_norm(config: GPTConfig, **kwargs) -> nnx.LayerNorm:
    """Make a LayerNorm in the residual stream's dtype, with or without a bias."""
    # neither in bfloat16 nor with the fast variance E[x^2] - E[x]^2: single dimensions of GPT-2's stream reach
    # thousands, where the one has no digits left for the rest and the other cancels
    kwargs |= {"use_bias": config.bias, "use_fast_variance": False}
    return nnx.LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon, **kwargs)
