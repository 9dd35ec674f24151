"""The language-model loss: cross-entropy of each next token."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxgpt.convert.config import GPTConfig
from jaxgpt.mesh import AXES, batch_shards, is_for_one_cpu, platform
from jaxgpt.model.capture import ForwardContext
from jaxgpt.model.dropout import Keys
from jaxgpt.model.gpt import GPT
from jaxgpt.params import module_of, named_params, with_params

ROWS_AT_ONCE = 2048
"""Rows of logits that a device makes at once when it learns: enough for its products to be fast."""

LOWEST = -1e30
"""Instead of minus infinity, which has no difference to itself."""


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


def next_token_gradients(
    model: GPT,
    trainable: dict[str, Array],
    tokens: Int[Array, "B T+1"],
    weights: Float[Array, "B T"],
    *,
    segments: Int[Array, "B T+1"] | None = None,
    dropout_key: Array | None = None,
    label_smoothing: float = 0.0,
    remat: bool = False,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Compute the sum of the losses times their weights, and its gradient: that of `next_token_loss`, in less memory.

    The logits of a batch are its largest array. Here they are made for some rows at a time, in the dtype of the
    products, and with the loss of these rows comes its gradient. The softmax is in float32.

    Args:
        trainable: the parameters by which it is differentiated, some of the model's.
    """
    targets, T = tokens[:, 1:], tokens.shape[1] - 1
    of_head = {name: p for name, p in trainable.items() if module_of(name) in ("tok_emb", "ln_f", "lm_head")}
    params = named_params(model)

    def stream(trainable):
        return with_params(model, params | trainable).residual_stream(
            tokens[:, :-1],
            segments=None if segments is None else segments[:, :-1],
            dropout_key=dropout_key,
            remat=remat,
        )

    @jax.jit
    def of_rows(of_head, x, targets, weights, key):
        ctx = ForwardContext(keys=None if key is None else Keys(key))

        def logits_of(of_head, x):
            return with_params(model, params | of_head).logits(x, ctx, dtype=model.dtype, multiple=_multiple(model))

        logits, back = jax.vjp(logits_of, of_head, x)
        loss, slope = cross_entropy(logits, targets, weights, model.config, label_smoothing)
        return loss, *back(slope.astype(logits.dtype))

    x, back = jax.vjp(stream, trainable)
    # a GPU would make the logits of all parts at once; where the stream has no gradient there is none to wait for
    in_turn = platform() == "gpu" and any(module_of(name) not in ("ln_f", "lm_head") for name in trainable)
    parts: list[tuple[Array, dict[str, Array], Array]] = []
    for i, start in enumerate(range(0, T, length := T // _n_parts(T, x.shape[0]))):
        key = None if dropout_key is None else jax.random.fold_in(jax.random.fold_in(dropout_key, 0), i)
        rows = slice(start, start + length)
        some = x[:, rows]
        if in_turn and parts:
            some, _ = jax.lax.optimization_barrier((some, parts[-1][2]))
        parts.append(of_rows(of_head, some, targets[:, rows], weights[:, rows], key))
    losses, by_head, by_stream = zip(*parts, strict=True)
    grads = back(jnp.concatenate(by_stream, axis=1))[0]
    return sum(losses), grads | jax.tree.map(lambda *each: sum(each), {name: grads[name] for name in of_head}, *by_head)


def cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    config: GPTConfig,
    label_smoothing: float,
) -> tuple[Float[Array, ""], Float[Array, "B T V"]]:
    """Return the sum of the losses times their weights, and its slope by the logits."""
    logits, tokens = mask_padding(logits.astype(jnp.float32), config), columns(logits)
    w, n, is_target = weights[..., None], config.n_tokens, tokens == targets[..., None]
    # on one CPU a row's target is read and changed where it is: to look for it among all takes a pass over the logits
    looks_up = is_for_one_cpu()
    if platform() == "gpu":
        most, total, of_target = sums_in_one_pass(logits, is_target)
    else:
        most = jnp.max(logits, axis=-1, keepdims=True)
        total = jnp.sum(jnp.exp(logits - most), axis=-1, keepdims=True)
        if looks_up:
            of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
        else:
            of_target = jnp.sum(logits, axis=-1, where=is_target, keepdims=True)
    slope = jnp.exp(logits - most) * (w / total)
    if looks_up:
        B, T = (jnp.arange(size, dtype=jnp.int32) for size in targets.shape)
        slope = slope.at[B[:, None], T[None], targets].add((label_smoothing - 1) * weights)
    else:
        slope = slope - w * ((1 - label_smoothing) * is_target.astype(jnp.float32))
    log_sum = most + jnp.log(total)
    losses = log_sum - of_target
    if label_smoothing:
        is_token = tokens < n
        of_all = log_sum - jnp.sum(logits, axis=-1, where=is_token, keepdims=True) / n
        losses = (1 - label_smoothing) * losses + label_smoothing * of_all
        slope = slope - w * jnp.where(is_token, label_smoothing / n, 0)
    return jnp.sum(losses * w), slope


def sums_in_one_pass(
    logits: Float[Array, "B T V"], is_target: Bool[Array, "B T V"]
) -> tuple[Float[Array, "B T 1"], Float[Array, "B T 1"], Float[Array, "B T 1"]]:
    """Return the largest logits, the sums of the exponentials of all less the largest, and the logits of the targets.

    Each logit is read once, where a maximum that is found first takes a pass of its own: two parts of a sum, each with
    its own maximum, become one with the larger (Milakov and Gimelshein 2018).
    """

    def join(one, other):
        most = jnp.maximum(one[0], other[0])
        smaller = jnp.exp(-jnp.abs(one[0] - other[0]))
        total = jnp.where(one[0] < other[0], one[1] * smaller + other[1], one[1] + other[1] * smaller)
        return most, total, one[2] + other[2]

    each = jnp.maximum(logits, LOWEST), jnp.ones_like(logits), jnp.where(is_target, logits, 0)
    start = jnp.float32(LOWEST), jnp.float32(0), jnp.float32(0)
    most, total, of_target = jax.lax.reduce(each, start, join, (logits.ndim - 1,))
    return most[..., None], total[..., None], of_target[..., None]


def _n_parts(T: int, B: int) -> int:
    """Return into how many parts of T the rows are divided: a power of two that leaves each device enough to do."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = B * T // (batch_shards(mesh) if mesh.axis_names == AXES else 1)
    n = 1
    while T % (2 * n) == 0 and rows // (2 * n) >= ROWS_AT_ONCE:
        n *= 2
    return n


def _multiple(model: GPT) -> int:
    """Return what the number of columns of the logits should be a multiple of: an odd one is slow on a GPU."""
    return 128 if platform() == "gpu" and model.config.vocab_size % 8 else 1


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
    if logits.shape[-1] == config.n_tokens:
        return logits
    return jnp.where(columns(logits) < config.n_tokens, logits, -jnp.inf)


def columns(logits: Float[Array, "... V"]) -> Int[Array, "... V"]:
    """Return the token that each of the logits is of."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
