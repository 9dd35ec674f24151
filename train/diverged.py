"""A loss that is no number any more: what a run says, and where it comes from."""

import math
from collections.abc import Mapping
from pathlib import Path

from jaxgpt.train.data.load import row_order
from jaxgpt.train.setup import Setup

SHOWN = 8
"""Origins that are named."""


class Diverged(ArithmeticError):
    """Training can't go on from here: a number that should be finite is not."""

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"{name} is {value} at step {step}")
        self.step, self.name = step, name


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raises Diverged for the first number that is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(step, name, value)


def explain(error: Diverged, setup: Setup, last_good: Path | None) -> str:
    """What happened, what the batch of that step was made of, and what is left."""
    size, rows = setup.settings.batch_size, setup.data.train
    order = row_order(rows.rows, setup.settings.seed)
    origins = [origin for i in range(size * (error.step - 1), size * error.step) for origin in rows.origins(order[i])]
    named = list(dict.fromkeys(origins))
    more = f" and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
    good = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint from before"
    return (
        f"{error}: training stops here. The texts of that step's batch: {'; '.join(named[:SHOWN])}{more}. {good}. "
        "Try a smaller --lr or a longer --warmup; if one text is broken, take it out"
    )
