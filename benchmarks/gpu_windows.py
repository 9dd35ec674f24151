"""Timing of the programs of `benchmarks/gpu.py`: the same for all of them."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

N_BATCHES = 16
"""Number of different batches, which repeat."""


def batches(case: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield random tokens without end, (B, T + 1) of int32, the same for all programs."""
    shape = (N_BATCHES, case["batch"], case["context"] + 1)
    pool = np.random.default_rng(0).integers(0, case["vocab"], shape).astype(np.int32)
    while True:
        yield from pool


def measure(case: dict[str, Any], began: float, step: Callable[[], Any], wait: Callable[[], float]) -> dict[str, Any]:
    """Time steps for `case["seconds"]`, or `case["steps"]` of them, in windows of `case["window"]`.

    Args:
        began: time when model and optimizer were in memory and nothing was compiled.
        step: starts one step; it may wait for the previous one.
        wait: waits until all steps are done and returns the loss of the last.
    """
    step()
    losses = [wait()]
    until_first = time.perf_counter() - began
    for _ in range(case["warmup"]):
        step()
    wait()
    seconds: list[float] = []
    while (len(seconds) * case["window"] < case["steps"]) if case["steps"] else (
        len(seconds) < 3 or sum(seconds) * case["window"] < case["seconds"]
    ):  # fmt: skip
        began = time.perf_counter()
        for _ in range(case["window"]):
            step()
        losses.append(wait())
        seconds.append((time.perf_counter() - began) / case["window"])
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"non-finite loss: {losses}")
    compiling = until_first - statistics.median(seconds)
    return {"step_seconds": seconds, "compile_seconds": compiling, "losses": losses}


def tell(found: dict[str, Any]) -> None:
    """Print a measurement as the last line, which `benchmarks/gpu.py` reads."""
    print("\n" + json.dumps(found), flush=True)
