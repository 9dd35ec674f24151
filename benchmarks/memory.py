"""Peak anonymous memory of conversions of a large checkpoint: python benchmarks/memory.py [--shape gpt2-xl]

With --shape=meta-llama/Llama-3.1-8B --dtype=bfloat16 it needs 33 GB of disk.

Writes a checkpoint of random numbers, converts it, and watches RssAnon. That leaves out file-backed pages, which the
system takes back when it needs them. Linux only.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt import convert
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.layout import LazyArray, shape_of
from jaxgpt.convert.published import PUBLISHED_NAMES, config_of_published


def main() -> None:
    """Print a table: conversion, seconds, peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=PUBLISHED_NAMES, default="gpt2-xl", metavar="NAME")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--folder", type=Path, default=None, help="a folder on a disk with space; by default a temporary one"
    )
    arguments = parser.parse_args()
    config = config_of_published(arguments.shape)
    is_gpt2 = config.model_type == "gpt2"
    folder = Path(tempfile.mkdtemp(prefix="jaxgpt-memory-", dir=arguments.folder))
    try:
        params = {row.ours: random(shape_of(row.right, config.dims)) for row in JAXGPT.expand(config)}
        how: dict[str, Any] = {"dtype": arguments.dtype}
        convert.write(folder / "shards", params, config, to="hf", shard_size="1GB", **how)
        if is_gpt2:
            convert.write(folder / "one", params, config, to="hf", shard_size="999GB", **how)
            convert.write(folder / "lesson.pt", params, config, to="lesson", **how)
        n_params = sum(np.prod(a.shape) for a in params.values())
        print(f"{arguments.shape}: {n_params:,.0f} parameters in {arguments.dtype}")
        print(f"{'from':<10} {'to':<8} {'seconds':>8} {'peak RssAnon':>14}")
        given = ["--n-head", str(config.n_head), "--activation", config.activation_function]
        cases = [("shards", "orbax"), ("shards", "hf")]
        for source, to in [("one", "orbax"), ("one", "hf"), *cases, ("lesson.pt", "orbax")] if is_gpt2 else cases:
            seconds, peak = watch([str(folder / source), str(folder / "out"), f"--to={to}", *given])
            print(f"{source:<10} {to:<8} {seconds:>8.0f} {peak / 1e6:>11,.0f} MB", flush=True)
            shutil.rmtree(folder / "out")
        seconds, peak = watch([str(folder / "shards")])
        print(f"{'shards':<10} {'inspect':<8} {seconds:>8.2f} {peak / 1e6:>11,.0f} MB")
    finally:
        shutil.rmtree(folder)


def random(shape: tuple[int, ...]) -> LazyArray:
    """Make random numbers, which do not compress well and are the same at each reading."""
    return LazyArray(
        shape,
        np.dtype(np.float32),
        lambda: np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02),
    )


def watch(command: list[str]) -> tuple[float, int]:
    """Run `python -m convert …`; return its seconds and its peak RssAnon in bytes."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "convert", *command], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024)
        except (OSError, TypeError):
            pass
        time.sleep(0.005)
    assert process.returncode == 0
    return time.perf_counter() - began, peak


if __name__ == "__main__":
    main()
