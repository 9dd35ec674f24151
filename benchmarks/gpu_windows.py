"""How a program of `benchmarks/gpu.py` is timed: the same way for all of them."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ROWS = 16
"""Batches that there are; they come again and again."""


def batches(case: dict[str, Any]) -> Iterator[np.ndarray]:
    """Random tokens, (B, T + 1) of int32, the same for all programs; without end."""
    shape = (ROWS, case["batch"], case["context"] + 1)
    pool = np.random.default_rng(0).integers(0, case["vocab"], shape).astype(np.int32)
    while True:
        yield from pool


def measure(case: dict[str, Any], began: float, step: Callable[[], Any], wait: Callable[[], float]) -> dict[str, Any]:
    """Steps until `case["seconds"]` are over, or `case["steps"]` of them, in windows of `case["window"]`.

    Args:
        began: when model and optimizer were in memory, and nothing had been compiled.
        step: starts one step; it may wait for the step before.
        wait: until all steps are done; the loss of the last.
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
        raise ValueError(f"the loss is no number: {losses}")
    compiling = until_first - statistics.median(seconds)
    return {"step_seconds": seconds, "compile_seconds": compiling, "losses": losses}


def tell(found: dict[str, Any]) -> None:
    """The last line that a measurement prints, which `benchmarks/gpu.py` reads."""
    print("\n" + json.dumps(found), flush=True)
