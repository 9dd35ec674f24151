"""What devices and other processes may do to a run: a sentence and an exit code for it."""

import time

import jax

from jaxgpt.convert.errors import InputError
from jaxgpt.train.signals import STOPPED

MISTAKE = 2
"""Exit code of a run that can't be made as it was asked for."""


def describe_failure(error: RuntimeError | InputError) -> tuple[str, int] | None:
    """What to say of an error of JAX's runtime, or in one of several processes, and the exit code; None of others."""
    if isinstance(error, InputError):
        if jax.process_count() == 1:
            return None
        if jax.process_index() == 0:
            time.sleep(2)  # the others end with it, and may have a mistake of their own to tell
        return str(error), MISTAKE
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    if "RESOURCE_EXHAUSTED" in what or "out of memory" in what.lower():
        advice = "a smaller --batch-size or --context, --accumulate=2, --remat, --dtype=bfloat16 or more devices help"
        return f"the step does not fit into the memory of the devices ({what}): {advice}", MISTAKE
    if jax.process_count() > 1:
        lost = f"process {jax.process_index()} has lost the others ({what})"
        return f"{lost}; the same commands with --resume go on from the newest checkpoint, if there is one", STOPPED
    return None
