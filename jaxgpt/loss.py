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


def preference_loss(
    log_likelihoods: Float[Array, "B 2"],
    lengths: Float[Array, "B 2"],
    reference: Float[Array, "B 2"] | None,
    *,
    beta: float,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, " B"], Float[Array, "B 2"]]:
    """Compute the loss of pairs of answers, the better one first, and the reward that each answer implies.

    With a reference it is DPO (Rafailov et al. 2023): rewards are beta times log-likelihood ratios to it. Without, it
    is SimPO (Meng et al. 2024): rewards are beta times the mean log-likelihood of an answer's tokens.

    Args:
        log_likelihoods: of all tokens of an answer, in nats.
        lengths: the numbers of these tokens.
        reference: the log-likelihoods by the model that training began with.
        margin: how much more reward the better answer should have; gamma of SimPO.
        label_smoothing: the probability that a pair is the wrong way round (Mitchell 2023).
    """
    if reference is None:
        rewards = beta * log_likelihoods / jnp.maximum(lengths, 1)
    else:
        rewards = beta * (log_likelihoods - reference)
    difference = rewards[:, 0] - rewards[:, 1] - margin
    right, wrong = jax.nn.log_sigmoid(difference), jax.nn.log_sigmoid(-difference)
    return -(1 - label_smoothing) * right - label_smoothing * wrong, rewards


def mask_padding(logits: Float[Array, "... V"], config: GPTConfig) -> Float[Array, "... V"]:
    """Return the logits, with minus infinity for rows of the vocabulary that are padding.

    Selected and not cut off, because V may be split over devices; the same array where there is no padding.
    """
    if not config.n_padding:
        return logits
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(ids < config.n_tokens, logits, -jnp.inf)
