"""A model's loss on a text: perplexity, bits per byte."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from jaxgpt.arguments import TokenIds, check_stream, integer
from jaxgpt.convert.errors import InputError
from jaxgpt.data.token_ids import TokenFile
from jaxgpt.loss import next_token_loss
from jaxgpt.model.gpt import GPT


@dataclass(frozen=True)
class TextLoss:
    """The loss of a model on a text."""

    tokens: int
    """Number of tokens that were predicted: all but the first."""
    nats: float
    """The sum of their losses."""

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinite where that is no float."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    def bits_per_byte(self, n_bytes: int) -> float:
        """Return the bits per byte of a text of so many bytes in UTF-8: comparable between tokenizers."""
        return self.nats / math.log(2) / n_bytes


def evaluate(
    model: GPT,
    tokens: TokenIds,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> TextLoss:
    """Measure the loss of all tokens of a text after the first, each predicted once, in windows.

    Args:
        tokens: the ids of the text, one sequence.
        context: the most tokens that come before one; the model's context by default, or 1,024 if that is longer.
        stride: tokens by which windows advance, and how many each predicts; those before give it context. The context
            by default, which is quickest; a smaller one gives every token at least `context - stride` before it, and a
            lower loss at the cost of `context / stride` times the work.
        batch_size: windows per batch.
        progress: a bar on standard error.

    Raises:
        InputError: fewer than two tokens, ids that are no token of the model's, or a window of a wrong size.
    """
    tokens, config = tokens if isinstance(tokens, TokenFile) else np.asarray(tokens), model.config
    T = config.usual_context if context is None else integer("context", context, 1, config.n_positions)
    step = T if stride is None else integer("stride", stride, 1, T)
    batch_size = integer("batch_size", batch_size, 1)
    if len(tokens.shape) != 1 or len(tokens) < 2:
        raise InputError(f"tokens must be one sequence of at least two token ids, not an array of shape {tokens.shape}")
    check_stream(tokens, config.n_tokens)
    T = min(T, len(tokens) - 1)
    step = min(step, T)
    starts = [0, *range(step, len(tokens) - 1 - T + step, step)]
    with tqdm(total=len(starts), disable=not progress, unit=" windows") as bar:
        nats = 0.0
        for batch in _batches(tokens, starts, T, step, batch_size):
            nats += float(_nats(model, *batch))
            bar.update(min(batch_size, len(starts) - bar.n))
    return TextLoss(len(tokens) - 1, nats)


def _batches(
    tokens: TokenIds, starts: list[int], T: int, step: int, batch_size: int
) -> Iterator[tuple[Int[np.ndarray, "B T+1"], Bool[np.ndarray, "B T"]]]:
    """Return windows, and which of their predictions count: those that no earlier window made."""
    for i in range(0, len(starts), batch_size):
        ids, counts = np.zeros((batch_size, T + 1), np.int32), np.zeros((batch_size, T), bool)
        for row, start in enumerate(starts[i : i + batch_size]):
            window = tokens[start : start + T + 1]
            ids[row, : len(window)] = window
            counts[row, T - step if start else 0 : len(window) - 1] = True
        yield ids, counts


@jax.jit
def _nats(model: GPT, tokens: Int[Array, "B T+1"], counts: Bool[Array, "B T"]) -> Float[Array, ""]:
    return jnp.sum(next_token_loss(model, tokens), where=counts)
