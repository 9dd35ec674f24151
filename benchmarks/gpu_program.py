"""What the training step holds for an H100 that need not be there: python benchmarks/gpu_program.py [--blocks=12]

Compiles the 124M shape for 16 x 1,024 tokens in bfloat16 as `jaxgpt train --compile-only --topology=h100:1` does, and
counts the kernels that one step starts, and the bytes that they read and write, by kind. XLA can't measure products
without a GPU, so that on one it may choose others for them: with XLA_FLAGS=--xla_gpu_enable_triton_gemm=false they
are cuBLAS's. Needs `pip install 'jaxgpt[gpu]'`.
"""

import argparse
import re
from collections import Counter
from dataclasses import replace

import jax.numpy as jnp

from jaxgpt.convert.published import config_of_published
from jaxgpt.mesh import make_mesh
from jaxgpt.model.gpt import abstract
from jaxgpt.training.compile_only.hlo import HloModule, Instruction, parse, size_in_bytes
from jaxgpt.training.compile_only.topology import find_topology
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import make_step_spec

NO_KERNEL = frozenset("parameter constant tuple get-tuple-element bitcast after-all partition-id".split())
SMALL = 4096
"""Bytes of a result below which a kernel takes no longer than to start it."""


def kind_of(made: Instruction, origin: str) -> str:
    """Return the kind of a kernel by what it is, or by the shape of its result and what it was made of."""
    if made.operation == "copy":
        return "copies"
    if made.operation == "custom-call" and "cublas" in made.rest:
        return "products"
    if made.operation == "custom-call":
        return "attention" if "cudnn" in made.rest else "norms, our kernel"
    if size_in_bytes(made.shape) < SMALL:
        return f"results below {SMALL} bytes"
    if "gemm" in made.name or "dot" in made.name:
        return "products"
    if "of_rows" in origin or re.search(r"50257|50304", made.shape):
        return "loss, and the table of tokens"
    if "3072" in made.shape and "16,1024" in made.shape:
        return "activations"
    return "norms, residual stream" if "16,1024,768" in made.shape else "other"


def kernels(module: HloModule, text: str) -> tuple[Counter[str], Counter[str]]:
    """Count the kernels that one step starts, and their bytes, by kind."""
    origins = dict(re.findall(r'^\s+(?:ROOT )?%(\S+) = .*?op_name="([^"]*)"', text, re.MULTILINE))
    n: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()

    def visit(name: str) -> None:
        sizes = {made.name: size_in_bytes(made.shape) for made in module.computations[name]}
        for made in module.computations[name]:
            if made.operation in ("call", "while", "conditional"):
                for called in made.calls:
                    visit(called)
            elif made.operation not in NO_KERNEL:
                kind = kind_of(made, origins.get(made.name, ""))
                n[kind] += 1
                n_bytes[kind] += sizes[made.name] + sum(sizes.get(operand, 0) for operand in made.operands)

    visit(module.entry)
    return n, n_bytes


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--freeze", default="full")
    arguments = parser.parse_args()
    topology = find_topology("h100:1")
    config = replace(
        config_of_published("gpt2"), n_layer=arguments.blocks, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
    )
    settings = Settings(batch_size=16, context=1024, dtype="bfloat16", freeze=arguments.freeze)
    mesh, model = make_mesh(devices=topology.devices), abstract(config, dtype=jnp.bfloat16)
    spec = make_step_spec(settings, mesh, model, steps=100, packed=False)
    compiled = spec.lower(spec.plan.phases[0]).compile()
    text = compiled.as_text()
    n, n_bytes = kernels(parse(text), text)
    print("| kind | kernels | GB |\n|---|---:|---:|")
    for kind, size in n_bytes.most_common():
        print(f"| {kind} | {n[kind]} | {size / 1e9:.1f} |")
    print(f"| all | {n.total()} | {n_bytes.total() / 1e9:.1f} |")
    print(f"\npeak {compiled.memory_analysis().peak_memory_in_bytes / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
