"""The log-likelihoods of preferences by the model that training began with: computed once, without a second model."""

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxgpt.convert.command_line.console import busy
from jaxgpt.mesh import batch_sharding, to_host
from jaxgpt.training.data.device_batches import local_rows, row_order, to_devices
from jaxgpt.training.data.load import TrainingData
from jaxgpt.training.data.rows import Pairs
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.spec import StepSpec
from jaxgpt.training.step.step import make_reference_step


def add_reference(spec: StepSpec, data: TrainingData, params: dict[str, jax.Array], first: int) -> None:
    """Give the rows the log-likelihoods of their answers, if the objective compares with them.

    Rows are computed in the same groups whatever is left of a run, so that a resumed one has the same bits.

    Args:
        params: those that training began with.
        first: the number of steps that are made; rows that come no more are left out.
    """
    settings, rows, held_out = spec.settings, data.train.rows, data.held_out.rows
    if settings.objective != "dpo":
        return
    assert isinstance(rows, Pairs)
    assert isinstance(held_out, Pairs)
    order, size = row_order(rows, settings.seed), settings.batch_size
    seen = range(first * size, min(spec.steps * size, first * size + len(rows)))
    needed = np.unique([int(order[i]) for i in seen]) if len(seen) < len(rows) else np.arange(len(rows))
    with busy(f"computing log-likelihoods of {len(needed) + len(held_out):,} preferences before training"):
        for part, numbers in ((rows, needed), (held_out, np.arange(len(held_out)))):
            part.reference = _log_likelihoods(spec, params, part, numbers)


def _log_likelihoods(
    spec: StepSpec, params: dict[str, jax.Array], rows: Pairs, needed: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "rows 2"]:
    n = spec.settings.batch_size // spec.settings.accumulate  # what is known to fit
    sharding, step = batch_sharding(spec.mesh), make_reference_step(spec.model)
    local, found = local_rows(sharding, n), np.zeros((len(rows), 2), np.float32)
    for group in np.unique(needed // n):
        begin = int(group) * n
        texts = [rows[min(begin + i, len(rows) - 1)] for i in local]
        batch = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
        with jax.set_mesh(spec.mesh):
            sums = to_host(step(params, Batch(**to_devices(batch, local, sharding, n))))
        found[begin : begin + n] = sums[: len(rows) - begin]
    return found
