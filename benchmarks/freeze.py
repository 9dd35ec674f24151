"""Savings of freezing, side by side in one run: python benchmarks/freeze.py [--repeats 9] [--batch-size 2]

The training step of the 124M shape (or --tiny, the bundled one) for several strategies: FLOPs, optimizer state and
temporary memory as the compiler counts them, and the time of a step. The strategies take turns step by step, so
that other load on the machine affects all of them; medians, and ratios to `full`.
"""

import argparse
import os
import platform
import statistics
import time
from dataclasses import replace
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params
from jaxgpt.freeze.strategies import with_lora
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import lr_schedule, make_optimizer
from jaxgpt.training.step.step import Rates, init_state, make_train_step

TINY = jaxgpt.GPTConfig(vocab_size=4096, n_positions=256, n_embd=128, n_layer=12, n_head=4, n_inner=512)
ROWS = (
    ("`full`, or phase 3 of `gradual`", "full", 0, False),
    ("phase 2 of `gradual`", "gradual", 1000, False),
    ("`head`, or phase 1 of `gradual`", "head", 0, False),
    ("`embeddings`", "embeddings", 0, False),
    ("`first6`", "first6", 0, False),
    ("`last3`", "last3", 0, False),
    ("`lora`", "lora", 0, False),
    ("`lora:on=all`", "lora:on=all", 0, False),
    ("`biases`", "biases", 0, False),
    ("`new-tokens`, two of them", "new-tokens", 0, False),
    ("`full --untie-head`, or phase 3", "full", 0, True),
    ("phase 2 of `gradual --untie-head`", "gradual", 1000, True),
    ("`head --untie-head`, or phase 1", "head", 0, True),
)
"""Name, strategy, first step of the phase (of 3000), and whether the head is untied."""


def compile_case(config: jaxgpt.GPTConfig, text: str, first_step: int, batch: tuple[int, int], dtype: str) -> dict:
    """Compile a step; return it with its state and the compiler's numbers."""
    config = with_lora(text, replace(config, n_new_tokens=2 if text == "new-tokens" else 0))
    model = jaxgpt.GPT(config, rngs=jaxgpt.model.gpt.nnx.Rngs(0), dtype=jnp.dtype(dtype))
    plan = freeze.parse(text, config, 3000)
    rate = lr_schedule(3000, 0.1)
    trainable, frozen = plan.partition(named_params(model), first_step)
    tx = make_optimizer(plan, trainable, rate, weight_decay=0.1, clip=1.0, step=first_step)
    state = init_state(trainable, frozen, tx, make_mesh())
    rates = Rates(jnp.float32(1e-4), {name: jnp.float32(1) for name in trainable})
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(model, tx, rate, 0, shardings)
    began = time.perf_counter()
    compiled = step.lower(state, Batch(jax.ShapeDtypeStruct(batch, np.int32)), rates).compile()
    return {
        "step": compiled,
        "compile": time.perf_counter() - began,
        "state": state,
        "rates": rates,
        "trainable": jaxgpt.count_params(trainable),
        "flops": compiled.cost_analysis()["flops"],
        "optimizer": sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "times": [],
    }


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each strategy, after one untimed step")
    parser.add_argument("--batch-size", type=int, default=2, help="sequences in a step")
    parser.add_argument("--context", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument("--tiny", action="store_true", help="the bundled shape instead of the 124M")
    parser.add_argument("--only", nargs="+", metavar="STRATEGY", help="these alone, the head tied: all need 20 GB")
    arguments = parser.parse_args()
    config, batch = TINY if arguments.tiny else jaxgpt.GPTConfig(), (arguments.batch_size, arguments.context + 1)
    programs = {}
    rows = [row for row in ROWS if not arguments.only or (row[1] in arguments.only and not row[2] and not row[3])]
    for name, text, first_step, is_untied in rows:
        own = replace(config, tie_word_embeddings=not is_untied)
        programs[name] = compile_case(own, text, first_step, batch, arguments.dtype)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, batch).astype(np.int32)
    for i in range(arguments.repeats + 1):
        for p in programs.values():
            began = time.perf_counter()
            p["state"], metrics = p["step"](p["state"], Batch(tokens), p["rates"])
            jax.block_until_ready((p["state"], metrics))
            if i:
                p["times"].append(time.perf_counter() - began)
    shape = f"{config.n_layer} blocks, width {config.n_embd}, batch {batch[0]} x {batch[1] - 1}, {arguments.dtype}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    print(f"\n{shape}; {platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {versions}\n")
    print(
        "| | trainable | step | step / full | GFLOP | GFLOP / full | optimizer MB | temporary MB | temporary / full |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    full = programs[rows[0][0]]
    for name, p in programs.items():
        seconds, of = statistics.median(p["times"]), statistics.median(
            mine / theirs for mine, theirs in zip(p["times"], full["times"], strict=True)
        )  # fmt: skip
        print(
            f"| {name} | {p['trainable'] / 1e6:,.1f} M | {seconds:.2f} s | {of:.2f} | {p['flops'] / 1e9:,.0f} "
            f"| {p['flops'] / full['flops']:.2f} | {p['optimizer'] / 1e6:,.0f} | {p['temporary'] / 1e6:,.0f} "
            f"| {p['temporary'] / full['temporary']:.2f} |"
        )


if __name__ == "__main__":
    main()
