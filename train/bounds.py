"""Which numbers a run can be told."""

import math

from jaxgpt.convert.errors import InputError
from jaxgpt.train.settings import Settings

FRACTIONS = (("warmup", 1), ("thaw_warmup", 1), ("weight_decay", 10), ("label_smoothing", 1), ("dropout", 0.99))
"""From 0 to so much."""


def check_numbers(settings: Settings) -> None:
    """Refuses numbers out of their ranges.

    Raises:
        InputError: the first of them.
    """
    if settings.steps is not None and settings.epochs is not None:
        raise InputError("--steps and --epochs: one of them says how long, not both")
    for name in (
        "steps", "batch_size", "accumulate", "eval_every", "patience", "checkpoint_every", "log_every", "keep",
        "context", "workers",
    ):  # fmt: skip
        if (value := getattr(settings, name)) is not None and not 1 <= value <= 10**9:
            raise InputError(f"--{name.replace('_', '-')}: must be from 1 to 10^9, not {value}")
    for name, most in (("lr", 10), ("clip", math.inf), ("layer_lr_decay", 1), ("epochs", 10**6)):
        if (value := getattr(settings, name)) is not None and not 0 < value <= most:
            raise InputError(
                f"--{name.replace('_', '-')}: must be above 0"
                + f" and at most {most}" * (most < math.inf)
                + f", not {value}"
            )
    for name, most in (
        ("warmup", 1),
        ("thaw_warmup", 1),
        ("weight_decay", 10),
        ("label_smoothing", 1),
        ("dropout", 0.99),
    ):
        if (value := getattr(settings, name)) is not None and not 0 <= value <= most:
            raise InputError(f"--{name.replace('_', '-')}: must be from 0 to {most}, not {value}")
    if not 0 <= settings.seed < 2**32:
        raise InputError(f"--seed: must be from 0 to 2^32 - 1, not {settings.seed}")
