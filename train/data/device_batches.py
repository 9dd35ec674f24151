"""From rows to batches on devices, for training and for evaluation."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from jaxgpt.mesh import batch_sharding
from jaxgpt.training.data.rows import RowArrays, Rows
from jaxgpt.training.step.batch import Batch


def device_train_batches(
    rows: Rows, batch_size: int, seed: int, mesh: Mesh, *, first: int, last: int, workers: int
) -> Iterator[Batch]:
    """Yield the batches of the steps after `first` up to `last`: the position in the data is the step.

    Args:
        workers: threads that prepare batches ahead.
    """
    sharding = batch_sharding(mesh)
    local = local_rows(sharding, batch_size)
    batches = train_batches(rows, batch_size, seed, local)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=8)
    for batch in batches[first:last].to_iter_dataset(options):
        yield Batch(**to_devices(batch, local, sharding, batch_size))


def device_eval_batches(rows: Rows, batch_size: int, mesh: Mesh) -> Iterator[Batch]:
    """Yield all rows in order; the last batch is filled up with rows that count nothing."""
    sharding = batch_sharding(mesh)
    local = local_rows(sharding, batch_size)
    for batch in eval_batches(rows, batch_size, local):
        yield Batch(**to_devices(batch, local, sharding, batch_size))


def train_batches(
    rows: Rows, batch_size: int, seed: int, local: Int[np.ndarray, " local"] | None = None
) -> grain.MapDataset:
    """Return shuffled batches without end, as dictionaries; an epoch has every row once. Batch `i` is `ds[i]`.

    Args:
        local: which of a batch's rows are wanted, and read; all of them by default.
    """

    def read(numbers: Int[np.ndarray, " B"]) -> RowArrays:
        return _stacked([rows[i] for i in (numbers if local is None else numbers[local])])

    return row_order(rows, seed).batch(batch_size, drop_remainder=True).map(read)


def eval_batches(rows: Rows, batch_size: int, local: Int[np.ndarray, " local"] | None = None) -> Iterator[RowArrays]:
    """Yield all rows in order, as dictionaries; the last batch is filled up with rows that count nothing.

    Args:
        local: which of a batch's rows are wanted, and read; all of them by default.
    """
    local = np.arange(batch_size) if local is None else local
    for begin in range(0, len(rows), batch_size):
        numbers = begin + local
        found = [rows[i] for i in np.minimum(numbers, len(rows) - 1)]
        nothing = {name: np.zeros_like(x) for name, x in found[0].items()}
        yield _stacked([row if i < len(rows) else nothing for i, row in zip(numbers, found, strict=True)])


def row_order(rows: Rows, seed: int) -> grain.MapDataset:
    """Return the numbers of the rows in the order in which training sees them, without end."""
    return grain.MapDataset.source(range(len(rows))).seed(seed).shuffle().repeat()


def local_rows(sharding: NamedSharding, n: int) -> Int[np.ndarray, " local"]:
    """Return which of a batch's `n` rows the devices of this process hold, ascending."""
    slices = sharding.addressable_devices_indices_map((n,)).values()
    return np.unique(np.concatenate([np.arange(n)[index] for index in slices]))


def to_devices(rows: RowArrays, local: Int[np.ndarray, " local"], sharding: NamedSharding, n: int) -> Any:
    """Return the arrays of a batch of `n` rows, of which each process gives those that its devices hold."""

    def array(of: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return of[np.searchsorted(local, np.arange(n)[index[0]])]

        return jax.make_array_from_callback((n, *of.shape[1:]), sharding, part)

    return {name: array(of) for name, of in rows.items()}


def _stacked(rows: list[RowArrays]) -> RowArrays:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
