"""Log-probabilities of continuations of contexts, as token ids; in batches of few shapes."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgpt.arguments import check_ids
from jaxgpt.convert.errors import InputError
from jaxgpt.loss import mask_padding
from jaxgpt.model.capture import NO_CONTEXT
from jaxgpt.model.gpt import GPT

Pair = tuple[Sequence[int], Sequence[int]]


def score(
    model: GPT, pairs: Sequence[Pair], *, batch_size: int = 8, max_length: int | None = None
) -> Iterator[list[tuple[int, float, bool]]]:
    """Compute the log-probability of each continuation after its context, in nats, and whether it is the greedy one.

    Each batch gives a list of (index of the pair, log-probability, greedy); the longest pairs come first. Of contexts
    that are too long the end is used. Pairs that differ in their last token only are read once.

    Args:
        pairs: contexts and continuations, none of them empty.
        batch_size: texts that are read at once; the last batch is filled up with nothing.
        max_length: tokens that the model reads of a text at most; its context by default.

    Raises:
        InputError: an empty context or continuation, one that is longer than `max_length`, or an id that is no token.
    """
    limit = max_length or model.config.n_positions
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        _check(context, continuation, limit, model.config.n_tokens)
        rows.setdefault(tuple([*context, *continuation][-limit - 1 : -1]), []).append(i)
    order = sorted(rows, key=lambda row: (-len(row), row))
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        asked = [(row, i) for row, tokens in enumerate(batch) for i in rows[tokens]]
        longest = max(len(pairs[i][1]) for _, i in asked)
        width = min(_bucket(len(batch[0])), limit)
        last = min(_power_of_4(longest), width)
        tokens, ends = np.zeros((batch_size, width), np.int32), np.ones(batch_size, np.int32)
        for row, known in enumerate(batch):
            tokens[row, : len(known)], ends[row] = known, len(known)
        n = batch_size * _power_of_4(-(-len(asked) // batch_size))
        row_of, targets, counts = np.zeros(n, np.int32), np.zeros((n, last), np.int32), np.zeros(n, np.int32)
        for k, (row, i) in enumerate(asked):
            continuation = pairs[i][1]
            row_of[k], counts[k], targets[k, last - len(continuation) :] = row, len(continuation), continuation
        totals, greedy = jax.device_get(_score(model, tokens, ends, row_of, targets, counts))
        yield [(i, float(totals[k]), bool(greedy[k])) for k, (_, i) in enumerate(asked)]


@jax.jit
def _score(
    model: GPT,
    tokens: Int[Array, "B T"],
    ends: Int[Array, " B"],
    row_of: Int[Array, " K"],
    targets: Int[Array, "K P"],
    counts: Int[Array, " K"],
) -> tuple[Float[Array, " K"], Bool[Array, " K"]]:
    """Score continuations at the ends of rows.

    A row ends at its `ends`; the padding after it is seen by no earlier token. Logits are computed for the last P
    positions only.

    Each of K continuations is predicted at the end of a row, and fills the last of its P targets.
    """
    last = jnp.arange(targets.shape[1])[None]
    x = model.hidden(tokens, jnp.arange(tokens.shape[1])[None], NO_CONTEXT)
    places = jnp.maximum(ends[:, None] - targets.shape[1] + last, 0)
    logits = mask_padding(model.logits(jnp.take_along_axis(x, places[:, :, None], axis=1)), model.config)
    total, best = jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scored = last >= targets.shape[1] - counts[:, None]
    logprobs = logits[row_of[:, None], last, targets] - total[row_of]
    return jnp.where(scored, logprobs, 0.0).sum(-1), (~scored | (best[row_of] == targets)).all(-1)


def _check(context: Sequence[int], continuation: Sequence[int], limit: int, n_tokens: int) -> None:
    if not context or not continuation:
        raise InputError(f"the {'continuation' if context else 'context'} must not be empty")
    if len(continuation) > limit:
        raise InputError(f"a continuation of {len(continuation)} tokens does not fit into a context of {limit}")
    check_ids([*context, *continuation], n_tokens)


def _bucket(length: int) -> int:
    """Return the length that a program is compiled for: 16, 24, 32, 48, 64, 96, …"""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _power_of_4(number: int) -> int:
    """Return the next power of 4, for sizes where a larger one costs little: 1, 4, 16, …"""
    size = 1
    while size < number:
        size *= 4
    return size
