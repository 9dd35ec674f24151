"""How a step grows with depth, width, context and batch: python benchmarks/scaling.py [--repeats 5]

One of the four at a time, around 6 blocks of width 512 and 4 x 256 tokens, float32, on this machine's devices. Beside
the time, the memory and the time to compile stands the model's arithmetic: where a step is bound by its products, its
speed is the same in every row.
"""

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import numpy as np
from flax import nnx

import jaxgpt
from jaxgpt.mesh import make_mesh
from jaxgpt.model.gpt import GPT
from jaxgpt.training.compile_only.flops import step_flops
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.phases import PhaseCompiler
from jaxgpt.training.step.spec import make_step_spec

BASE = {"blocks": 6, "width": 512, "context": 256, "batch": 4}
VARIED = {
    "blocks": (3, 6, 12, 24),
    "width": (256, 512, 1024),
    "context": (128, 256, 512, 1024, 2048),
    "batch": (1, 4, 16),
}


def measure(blocks: int, width: int, context: int, batch: int, repeats: int) -> tuple[float, float, float, float]:
    """Return the seconds of a step, its FLOPs, its temporary bytes, and the seconds to compile it."""
    config = jaxgpt.GPTConfig(
        vocab_size=8192, n_positions=context, n_embd=width, n_layer=blocks, n_head=width // 64, n_inner=4 * width,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model, mesh = GPT(config, rngs=nnx.Rngs(0)), make_mesh(devices=jax.devices()[:1])
    # of so few steps that there is one program: a second one would compile beside the steps that are timed
    spec = make_step_spec(
        Settings(batch_size=batch, context=context, dtype="float32"), mesh, model, steps=100, packed=False
    )
    params = jaxgpt.named_params(model)
    flops = step_flops(config, spec.plan.partition(params)[0], (batch, context)).model
    phases = PhaseCompiler(spec)
    state, program = phases.begin(phases.init(params), 0)
    tokens = np.random.default_rng(0).integers(0, 8192, (batch, context + 1)).astype(np.int32)
    rows, seconds = Batch(tokens, np.ones((batch, context), np.float32)), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        state, metrics = program.step(state, rows, program.rates)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    phases.close()
    memory = program.step.memory_analysis().temp_size_in_bytes
    return statistics.median(seconds[1:]), flops, memory, program.seconds


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(VARIED), default=tuple(VARIED))
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; jax {version('jax')}\n")
    print("| varied | step | GFLOP | GFLOP/s | temporaries | compiled in |\n|---|---:|---:|---:|---:|---:|")
    for name in arguments.only:
        for value in VARIED[name]:
            seconds, flops, memory, compiling = measure(**BASE | {name: value}, repeats=arguments.repeats)
            print(
                f"| {name} {value} | {1000 * seconds:,.0f} ms | {flops / 1e9:,.0f} | {flops / seconds / 1e9:,.0f} "
                f"| {memory / 1e6:,.0f} MB | {compiling:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
