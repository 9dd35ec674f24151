"""Cost of the input pipeline: how long a step waits for its batch, beside how long it computes.

The bundled model with the defaults of training (16 x 256 tokens), on text in one stream and on conversations in packed
rows; and how fast batches come while nothing else runs, for several numbers of workers.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import grain
import jax

from jaxgpt.training.data.device_batches import device_train_batches, train_batches
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.settings import Settings
from jaxgpt.training.setup import prepare
from jaxgpt.training.step.phases import PhaseCompiler


def write_conversations(path: Path) -> str:
    """Write two thousand conversations of many lengths, and return the path."""
    words = "a king went to the house of the prophet and spoke of water and of bread".split()
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(2000):
            texts = (" ".join(draw.choices(words, k=draw.randrange(3, 60))) for _ in range(2))
            file.write(json.dumps(dict(zip(("instruction", "output"), texts, strict=True))) + "\n")
    return str(path)


def batch_ms(rows, settings: Settings, n_workers: int, n_batches: int) -> float:
    """Return the milliseconds that a batch takes while nothing else runs."""
    batches = train_batches(rows, settings.batch_size, 0)[:n_batches].to_iter_dataset(
        grain.ReadOptions(num_threads=n_workers, prefetch_buffer_size=8)
    )
    iterator = iter(batches)
    next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        pass
    return 1000 * (time.perf_counter() - began) / (n_batches - 1)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after two untimed ones")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, jax {version('jax')}, grain {version('grain')}\n")
    print("| data | step | waits for its batch | share of the step | batch alone, 1 worker | 2 | 4 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("text", None), ("conversations", write_conversations(Path(folder) / "chat.jsonl"))):
            settings = Settings(data=data, cache=Path(folder) / "cache", steps=arguments.steps + 2)
            inputs, params = prepare(settings, RunFolder(Path(folder) / name))
            compiler = PhaseCompiler(inputs.spec)
            state, phase = compiler.begin(compiler.init(params), 0)
            waits, steps = [], []
            batches = device_train_batches(
                inputs.data.train.rows, settings.batch_size, settings.seed, inputs.spec.mesh,
                first=0, last=inputs.spec.steps, workers=settings.workers,
            )  # fmt: skip
            for _ in range(arguments.steps + 2):
                began = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - began)
                state, metrics = phase.step(state, batch, phase.rates)
                jax.block_until_ready(metrics)
                steps.append(time.perf_counter() - began)
            wait, step = statistics.median(waits[2:]), statistics.median(steps[2:])
            speeds = [batch_ms(inputs.data.train.rows, settings, n_workers, 500) for n_workers in (1, 2, 4)]
            print(
                f"| {name} | {1000 * step:,.0f} ms | {1000 * wait:.2f} ms | {wait / step:.2%} | "
                + " | ".join(f"{speed:.2f} ms" for speed in speeds) + " |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
