"""The batch that a training step is given: rows of tokens, and which of them count."""

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass
class Batch:
    """Rows of T inputs and the token after the last: arrays, or their shapes.

    Of preferences a row has two texts, a better answer and a worse one: all have an axis of 2 after B.
    """

    tokens: Any
    """Int "B T+1"."""
    weights: Any = None
    """Float "B T": how much the prediction of each token after the first counts; all alike if None."""
    segments: Any = None
    """Int "B T+1": the text of a row that each token is of, 0 for padding; one text to a row if None."""
    reference: Any = None
    """Float "B 2": the log-likelihoods of preferences by the model that training began with, if they count."""


def micro_batches(batch: Batch, n: int) -> Batch:
    """Return the rows in n parts along a new first axis: every n-th row, so that each device keeps its own."""
    return jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
