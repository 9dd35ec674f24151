"""The failures that may end a run: a sentence and an exit code for each."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.training.data.device_batches import row_order
from jaxgpt.training.setup import TrainingInputs

SHOWN = 8
"""Origins of texts that are named."""


class TrainingError(RuntimeError):
    """A run can't go on; what was saved stays. `code` is the exit code of a command that ends by it."""

    def __init__(self, message: str, code: ExitCode):
        super().__init__(message)
        self.code = code


class NonFiniteLoss(ArithmeticError):
    """Training can't go on from here: a loss or a norm is NaN or infinite."""

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"{name} is {value} at step {step}")
        self.step, self.name, self.value = step, name, value


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise NonFiniteLoss for the first number that is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteLoss(step, name, value)


def explain_non_finite(error: NonFiniteLoss, inputs: TrainingInputs, last_good: Path | None) -> str:
    """Return what happened, what the batch of that step was made of, and what is left."""
    size, rows = inputs.settings.batch_size, inputs.data.train
    order = row_order(rows.rows, inputs.settings.seed)
    origins = [origin for i in range(size * (error.step - 1), size * error.step) for origin in rows.origins(order[i])]
    named = list(dict.fromkeys(origins))
    more = f" and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
    good = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint from before"
    return (
        f"{error}: training stops here. The texts of that step's batch: {'; '.join(named[:SHOWN])}{more}. {good}. "
        "Try a smaller --lr or a longer --warmup; if one text is broken, take it out"
    )


def describe_failure(error: RuntimeError | InputError) -> tuple[str, ExitCode] | None:
    """Return what to say of an error of JAX's runtime, or in one of several processes; None for other errors."""
    if isinstance(error, InputError):
        if jax.process_count() == 1:
            return None
        if jax.process_index() == 0:
            time.sleep(2)  # the others end with it, and may have a mistake of their own to tell
        return str(error), ExitCode.MISTAKE
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    if "RESOURCE_EXHAUSTED" in reason or "out of memory" in reason.lower():
        advice = "a smaller --batch-size or --context, --accumulate=2, --remat, --dtype=bfloat16 or more devices help"
        return f"the step does not fit into the memory of the devices ({reason}): {advice}", ExitCode.MISTAKE
    if jax.process_count() > 1:
        lost = f"process {jax.process_index()} has lost the others ({reason})"
        goes_on = "the same commands with --resume go on from the newest checkpoint, if there is one"
        return f"{lost}; {goes_on}", ExitCode.STOPPED
    return None
