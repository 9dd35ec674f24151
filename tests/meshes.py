"""Ten steps of a gradual unfreeze on eight simulated devices, in several arrangements, and on one."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import jaxgpt
from jaxgpt import named_params
from jaxgpt.freeze.strategies import with_lora
from jaxgpt.mesh import batch_sharding, make_mesh, shardings
from jaxgpt.training.data.device_batches import local_rows, to_devices
from jaxgpt.training.settings import Settings
from jaxgpt.training.signals import StopSignals
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.phases import PhaseCompiler
from jaxgpt.training.step.spec import make_step_spec

MESHES = ("one", "data=8", "fsdp=8", "tensor=8", "data=2,fsdp=2,tensor=2")
GRADUAL = r"gradual:regex:(blocks\.0\.mlp|ln_f)\..*@0,full@5"
ADAPTERS = "gradual:lora:r=2,on=all@0,new-tokens@2,full@4"
RUNS = [*((GRADUAL, mesh) for mesh in MESHES), (ADAPTERS, "one"), (ADAPTERS, MESHES[-1])]
STEPS, B = 10, 8
CONFIG = jaxgpt.GPTConfig(
    n_layer=1, vocab_size=104, n_padding=8, n_positions=24, n_embd=64, n_head=8, n_inner=128,
    embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1,
)  # fmt: skip


def config_of(strategy: str) -> jaxgpt.GPTConfig:
    """The model, with the adapters that a strategy is about."""
    return CONFIG if strategy != ADAPTERS else with_lora(strategy, replace(CONFIG, n_new_tokens=3))


def start(config: jaxgpt.GPTConfig) -> dict[str, np.ndarray]:
    """Parameters that all matter."""
    draw = np.random.default_rng(0)
    shapes = named_params(jaxgpt.model.gpt.abstract(config))
    return {
        name: (draw.normal(float(name.endswith("scale")), 0.1, p.shape)).astype(np.float32)
        for name, p in shapes.items()
    }


def run(text: str, strategy: str) -> tuple[list[float], dict[str, np.ndarray], list[str]]:
    """Losses, the parameters after the last step, and names of those whose bits the first phase has changed."""
    mesh = make_mesh(None, devices=jax.devices()[:1]) if text == "one" else make_mesh(text)
    settings = Settings(freeze=strategy, batch_size=B, lr=1.2e-5, warmup=1.0, weight_decay=0.1, seed=3)
    config = config_of(strategy)
    shapes, before = jaxgpt.model.gpt.abstract(config), start(config)
    spec = make_step_spec(settings, mesh, shapes, steps=STEPS, packed=False)
    params = jax.device_put(before, shardings(named_params(shapes), mesh))
    phases, place = PhaseCompiler(spec), batch_sharding(mesh)
    state, program = phases.begin(phases.init(params), 0)
    own, losses, changed, draw = local_rows(place, B), [], None, np.random.default_rng(1)
    for step in range(STEPS):
        if spec.plan.at(step) > spec.plan.phases.index(program.phase):
            if changed is None:
                now = {name: np.asarray(p) for name, p in state.params.items()}
                changed = [name for name in before if now[name].tobytes() != before[name].tobytes()]
            state, program = phases.enter_next(state, StopSignals())
        rows = {
            "tokens": draw.integers(0, 96, (B, 25)).astype(np.int32),
            "weights": draw.integers(0, 2, (B, 24)).astype(np.float32),
        }
        state, metrics = program.step(state, Batch(**to_devices(rows, own, place, B)), program.rates)
        losses.append(float(metrics["loss"]))
    assert changed is not None
    return losses, {name: np.asarray(p) for name, p in state.params.items()}, changed


def main() -> None:
    """Writes a folder: losses.json, and the parameters of each run as .npz."""
    folder, found = Path(sys.argv[1]), {}
    for strategy, mesh in RUNS:
        first, at = start(config_of(strategy)), RUNS.index((strategy, mesh))
        losses, params, changed = run(mesh, strategy)
        moved = max(float(np.abs(params[name] - first[name]).max()) for name in first)
        found[at] = {"losses": losses, "changed": changed, "moved": moved}
        np.savez(folder / f"{at}.npz", **params)
    (folder / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
