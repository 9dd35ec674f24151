"""What devices and other processes may do to a run: a sentence and an exit code for it."""

import jax

from train.stop import STOPPED

MISTAKE = 2
"""Exit code of a run that can't be made as it was asked for."""


def trouble(error: RuntimeError) -> tuple[str, int] | None:
    """What to say of an error of JAX's runtime, and the exit code; None if it is no such thing."""
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    if "RESOURCE_EXHAUSTED" in what or "out of memory" in what.lower():
        advice = "a smaller --batch-size or --context, --accumulate=2, --remat, --dtype=bfloat16 or more devices help"
        return f"the step does not fit into the memory of the devices ({what}): {advice}", MISTAKE
    if jax.process_count() > 1:
        lost = f"process {jax.process_index()} has lost the others ({what})"
        return f"{lost}; the same command with --resume, for all of them, goes on from the newest checkpoint", STOPPED
    return None
