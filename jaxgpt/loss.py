"""The language-model loss: cross-entropy of each next token."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgpt.convert.config import GPTConfig
from jaxgpt.model.gpt import GPT


def next_token_loss(
    model: GPT,
    tokens: Int[Array, "B T+1"],
    *,
    segments: Int[Array, "B T+1"] | None = None,
    dropout_key: Array | None = None,
    label_smoothing: float = 0.0,
    remat: bool = False,
) -> Float[Array, "B T"]:
    """Compute the cross-entropy of each token after the first, in nats; rows of padding have no probability.

    Args:
        segments: see `GPT`; a segment's last token predicts the next one's first, which has a loss without meaning.
        dropout_key: see `GPT`, as for `remat`.
        label_smoothing: share of the target that is spread over all tokens (Szegedy et al. 2015, section 7), as
            PyTorch's cross_entropy does it.
    """
    seen = None if segments is None else segments[:, :-1]
    logits = model(tokens[:, :-1], segments=seen, dropout_key=dropout_key, remat=remat)
    logits = mask_padding(logits.astype(jnp.float32), model.config)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    if label_smoothing == 0:
        return losses
    sum_of_logits = jnp.sum(logits, axis=-1, where=logits > -jnp.inf)
    of_all = jax.nn.logsumexp(logits, axis=-1) - sum_of_logits / model.config.n_tokens
    return (1 - label_smoothing) * losses + label_smoothing * of_all


def mask_padding(logits: Float[Array, "... V"], config: GPTConfig) -> Float[Array, "... V"]:
    """Return the logits, with minus infinity for rows of the vocabulary that are padding.

    Selected and not cut off, because V may be split over devices; the same array where there is no padding.
    """
    if not config.n_padding:
        return logits
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(ids < config.n_tokens, logits, -jnp.inf)
