"""What the digests of a checkpoint add to a save: python benchmarks/digests.py [--megabytes 512] [--repeats 9]

Saves parameters and moments as a training run does, without digests, with those of now and with the CRC-32 of before,
in turn. A save first copies the arrays, while training waits, and then writes them in threads, which make the digests.

On two cores that others used too, 26 November 2026, medians of 9: training waits 0.1 s of a save that takes 3.7 s and
1.45 CPU seconds. The digests take 0.031 CPU seconds beside it: none of the wait, 0.8 % of the time, 2.2 % of the CPU.
CRC-32 took 0.18. Half a gigabyte is read once, and not copied where it is in memory.
"""

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from jaxgpt.convert import GPTConfig, digests
from jaxgpt.training.run import checkpoints
from jaxgpt.training.run.checkpoints import Checkpoints
from jaxgpt.training.run.eval_state import EvalState
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.step.step import TrainState

N_ARRAYS = 24


def main() -> None:
    """Print a table of medians, and of the medians of differences to the save without digests beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="of parameters and moments together")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk that is meant; by default a temporary one"
    )
    given = parser.parse_args()
    n_rows = given.megabytes * 2**20 // 3 // 4 // 1024 // N_ARRAYS
    keys = jax.random.split(jax.random.key(0), N_ARRAYS)
    params = {f"blocks.{i}.kernel": 0.02 * jax.random.normal(key, (n_rows, 1024)) for i, key in enumerate(keys)}
    moments = optax.scale_by_adam().init(params)
    moments = jax.tree.map(lambda m: 1e-3 * params["blocks.0.kernel"] if m.ndim else m, moments)
    state = TrainState(np.int32(0), params, {}, moments)
    n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((params, moments)))
    print(f"{platform.platform()}, {os.cpu_count()} cores; {n_bytes / 1e6:,.0f} MB, {given.repeats} repeats")
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CASES}
    for i in range(given.repeats + 1):
        for name, write in CASES.items():
            folder = Path(tempfile.mkdtemp(prefix="jaxgpt-digests-", dir=given.folder))
            try:
                times[name].append(save(state, folder, i + 1, write))
            finally:
                shutil.rmtree(folder)
    without = times["none"][1:]  # the first of each is no measurement
    print(f"{'digests':<10}{'training waits':>16}{'seconds':>16}{'CPU seconds':>16}")
    for name, found in times.items():
        cells = []
        for column, before in zip(zip(*found[1:], strict=True), zip(*without, strict=True), strict=True):
            added = statistics.median(after / other - 1 for after, other in zip(column, before, strict=True))
            cells.append(f"{statistics.median(column):.3f} ({added:+.1%})")
        print(f"{name:<10}" + "".join(f"{cell:>16}" for cell in cells))
    folder = Path(tempfile.mkdtemp(prefix="jaxgpt-digests-", dir=given.folder))
    save(state, folder, 1, CASES["none"])
    for name, write in list(CASES.items())[1:]:
        alone = [alone_in(folder / "run" / "checkpoints" / "1", write) for _ in range(given.repeats)]
        share = statistics.median(alone) / statistics.median(cpu for *_, cpu in without)
        print(f"{name} alone: {statistics.median(alone):.4f} CPU seconds, {share:.1%} of the save's")
    shutil.rmtree(folder)


def alone_in(step: Path, write: Callable) -> float:
    """Return the processor seconds of the digests of a checkpoint that was just written."""
    (step / digests.NAME).unlink(missing_ok=True)
    began = time.process_time()
    write(step, 1)
    return time.process_time() - began


def save(state: TrainState, folder: Path, step: int, write: Callable) -> tuple[float, float, float]:
    """Save once; return the seconds that training waits, those until all is on disk, and those of processors."""
    checkpoints.write_digests = write
    run = RunFolder(folder / "run")
    run.folder.mkdir()
    (run.folder / "run.json").touch()
    state = TrainState(np.int32(step), state.trainable, state.frozen, state.opt_state)
    with contextlib.closing(Checkpoints(run, 2)) as saved:
        began, began_cpu = time.perf_counter(), time.process_time()
        saved.save(state, GPTConfig(), EvalState())
        waited = time.perf_counter() - began
        saved.wait()
        return waited, time.perf_counter() - began, time.process_time() - began_cpu


def write_crc32(folder: Path, step: int | None = None) -> None:
    """Write what was written before: the CRC-32 of files that are read once more."""
    files = digests._files(folder)
    pieces = [(n, begin) for n, file in files.items() for begin in range(0, file.stat().st_size, digests.PIECE_BYTES)]
    digests._in_threads(lambda piece: digests._digest(files[piece[0]], piece[1], digests.PIECE_BYTES, "crc32"), pieces)


CASES: dict[str, Callable] = {"none": lambda *_: None, "xxh3_64": digests.write_digests, "crc32": write_crc32}

if __name__ == "__main__":
    main()
