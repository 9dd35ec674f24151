"""Our program, measured in its own process: python benchmarks/gpu_jaxgpt.py CASE; see gpu.py."""

import json
import os
import sys
import time
from dataclasses import replace

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from gpu_profile import profile
from gpu_windows import batches, measure, tell

import jaxgpt
from jaxgpt.mesh import batch_sharding, make_mesh, shardings
from jaxgpt.model import norm
from jaxgpt.model.gpt import abstract
from jaxgpt.params import count_params, named_params
from jaxgpt.training.data.device_batches import local_rows, to_devices
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.phases import PhaseCompiler
from jaxgpt.training.step.spec import make_step_spec


def initial_params(model: jaxgpt.GPT) -> dict[str, np.ndarray]:
    """Make parameters: matrices of small random numbers, scales of one, biases of zero."""
    draw, found = np.random.default_rng(1), {}
    for name, p in named_params(model).items():
        if name.endswith(("bias", "scale")):
            found[name] = np.full(p.shape, float(name.endswith("scale")), np.float32)
        else:
            found[name] = draw.standard_normal(p.shape, np.float32) * np.float32(0.02)
    return found


def main() -> None:
    """Train as `jaxgpt train` does, on random batches, and print the measurement."""
    case = json.loads(sys.argv[1])
    if case["variant"] == "XLA's norms":
        norm.fits_kernel = lambda *_, **__: False
    if case["variant"] == "cuBLAS's products":
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_triton_gemm=false"
    if jax.default_backend() != ("cpu" if case["cpu"] else "gpu"):
        raise RuntimeError(f"JAX is on {jax.default_backend()}")
    config = jaxgpt.GPTConfig(**case["shape"], embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    if n_padding := case["padding"]:
        config = replace(config, vocab_size=config.vocab_size + n_padding, n_padding=n_padding)
    settings = Settings(
        freeze=case["freeze"], batch_size=case["batch"], context=case["context"], dtype="bfloat16", lr=6e-4
    )
    mesh, model = make_mesh(devices=jax.devices()[:1]), abstract(config, dtype=jnp.bfloat16)
    spec = make_step_spec(settings, mesh, model, steps=10_000, packed=False)
    phases = PhaseCompiler(spec)
    sharding, B = batch_sharding(mesh), case["batch"]
    own, rows = local_rows(sharding, B), batches(case)
    weights = np.ones((B, case["context"]), np.float32)
    state = phases.init(jax.device_put(initial_params(model), shardings(named_params(model), mesh)))
    jax.block_until_ready(state)

    def send() -> Batch:
        return Batch(**to_devices({"tokens": next(rows), "weights": weights}, own, sharding, B))

    began = time.perf_counter()
    state, program = phases.begin(state, 0)
    batch, metrics = send(), None

    def step() -> None:  # in the order of train/loop.py
        nonlocal state, batch, metrics
        before, (state, metrics) = metrics, program.step(state, batch, program.rates)
        batch = send()
        jax.device_get(before)

    def wait() -> float:
        jax.block_until_ready(state)
        return float(metrics["loss"])

    found = measure(case, began, step, wait)
    kinds = {} if case["cpu"] else profile(step, wait, program.step.as_text(), case["vocab"] + n_padding)
    device = jax.devices()[0]
    stats, planned = device.memory_stats() or {}, program.step.memory_analysis()
    tell(
        found
        | {
            "device": device.device_kind,
            "runtime": jax.extend.backend.get_backend().platform_version,
            "trainable": program.n_trainable,
            "parameters": count_params(model),
            "peak_bytes": stats.get("peak_bytes_in_use"),
            "planned_bytes": getattr(planned, "peak_memory_in_bytes", None),
            "kinds": kinds,
        }
    )
    phases.close()


if __name__ == "__main__":
    main()
