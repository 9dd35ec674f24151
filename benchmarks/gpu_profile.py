"""Where the time of a compiled step goes on a GPU, by kind of kernel; see gpu.py."""

import glob
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.profiler import ProfileData

KINDS = (
    ("attention", ("sdpa", "fmha", "flash", "cudnn")),
    ("GEMM", ("nvjet", "gemm", "cutlass", "cublas")),
    ("norms", ("norm_gradients",)),
    ("copies", ("emcpy", "emset")),
)
"""Kinds that the names of kernels tell, by a part of the name."""


def kind_of(kernel: str, made: str, vocab: int) -> str:
    """Return the kind of a kernel by its name, or else by the shape and the origin of what its fusion makes."""
    for kind, parts in KINDS:
        if any(part in kernel for part in parts):
            return kind
    if "opt_state" in made or re.search(r"jit\(train_step\)/(add|sub|mul|reduce_sum|sqrt|concatenate)\b", made):
        return "optimizer"
    if "of_rows" in made or re.search(rf"\b({vocab}|{vocab + -vocab % 128})\b", made):
        return "loss"
    if re.search(r"tanh|erf|logistic|/mul\b", made):
        return "activations"
    return "norms" if re.search(r"rsqrt|reduce|convert_element_type|/add", made) else "other"


def profile(step: Callable[[], Any], wait: Callable[[], Any], program: str, vocab: int, n: int = 5) -> dict[str, float]:
    """Return the milliseconds of a step by kind of kernel, and those in which the GPU was idle.

    Args:
        program: the compiled step as text, in which fusions say what they are made of.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(n):
                step()
            wait()
        newest = max(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True), key=os.path.getmtime)
        events = [
            (event.name, event.start_ns, event.duration_ns)
            for plane in ProfileData.from_file(newest).planes if "GPU" in plane.name
            for line in plane.lines if "Stream" in line.name
            for event in line.events
        ]  # fmt: skip
    made = dict(re.findall(r"%([\w.]+) = ([^\n]*)", program))
    kinds: Counter[str] = Counter()
    for name, _, duration in events:  # a kernel has an underscore where its instruction has a point
        kinds[kind_of(name, made.get(re.sub(r"_(\d+)$", r".\1", name), ""), vocab)] += duration
    span = max(start + duration for _, start, duration in events) - min(start for _, start, _ in events)
    kinds["idle"] = max(span - sum(kinds.values()), 0)
    return {kind: ns / n / 1e6 for kind, ns in kinds.most_common()}
