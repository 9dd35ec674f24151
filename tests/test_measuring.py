"""Steps that measure no updates: on a CPU, in long runs, they are a program of their own."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import call
from runs import QUICK, arrays, metrics

from jaxgpt import GPTConfig, make_mesh
from jaxgpt.model.gpt import abstract
from jaxgpt.training.settings import Settings
from jaxgpt.training.step import spec
from jaxgpt.training.step.spec import make_step_spec


@pytest.fixture
def apart(monkeypatch):
    """Every third step of nine measures, by a program of its own."""
    monkeypatch.setattr(spec, "MEASUREMENTS", 3)
    monkeypatch.setattr(spec, "WORTH_A_PROGRAM", 0)


def train(small, out, *flags, **how):
    return call(
        "train", f"--model={small}", f"--out={out}", "--freeze=gradual:last1@0,full@5", *QUICK, *flags,
        samples=False, **how,
    )  # fmt: skip


def test_a_run_learns_the_same_and_has_the_same_updates(small, tmp_path, monkeypatch, apart):
    programs = []

    def note(event, seconds, fun_name="", **_):
        programs.append((event, fun_name))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        train(small, tmp_path / "apart")
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    n_apart = programs.count(("/jax/core/compile/jaxpr_to_mlir_module_duration", "jit(train_step)"))
    monkeypatch.setattr(spec, "WORTH_A_PROGRAM", 1e30)
    train(small, tmp_path / "whole")
    assert n_apart == 4, "two phases, each with a step that measures and one that does not"
    for one, other in zip(metrics(tmp_path / "apart"), metrics(tmp_path / "whole"), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == (None if value is None else pytest.approx(other[name], rel=1e-5)), (one["step"], name)
    one, other = (
        [json.loads(line) for line in (tmp_path / run / "updates.jsonl").read_text().splitlines()]
        for run in ("apart", "whole")
    )
    assert [line["step"] for line in one] == [line["step"] for line in other] == [3, 6, 9]
    for a, b in zip(one, other, strict=True):
        assert a["updates"] == pytest.approx(b["updates"], rel=1e-4)
    # it goes on from between two measured steps, and its last step is measured again
    resumed = shutil.copytree(tmp_path / "apart", tmp_path / "resumed")
    for step in (8, 9):
        shutil.rmtree(resumed / "checkpoints" / str(step), ignore_errors=True)
    monkeypatch.setattr(spec, "WORTH_A_PROGRAM", 0)
    train(small, resumed, "--resume")
    assert metrics(resumed) == metrics(tmp_path / "apart")
    whole = arrays(tmp_path / "apart", 9)
    for name, array in arrays(resumed, 9).items():
        np.testing.assert_array_equal(array, whole[name])


@pytest.mark.parametrize("scale", ["1e30", "2e18"])
def test_weights_that_overflow_in_a_step_that_measures_nothing_are_not_saved(small, tmp_path, apart, scale):
    flags = ("--lr=5", "--warmup=0", "--clip=1e9", "--checkpoint-every=1", "--lr-scale", rf"ln_f\.scale={scale}")
    done = train(small, tmp_path / "run", *flags, check=False)
    assert "train: the weights' norm is inf at step 1: training stops here" in done.stderr
    assert not [path for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdecimal()]


@pytest.mark.parametrize(
    ("width", "steps", "strategy", "expected"),
    [
        (768, 3000, "full", [True]),
        (768, 150, "full", [False]),  # of a short run every step is measured
        (128, 1000, "full", [False]),  # compiling takes longer than measuring
        (768, 3000, "head", [True]),
        (768, 3000, "lora", [False]),
        (768, 3000, "gradual:head@0,full@20", [False, True]),  # a short phase
    ],
)
def test_where_it_saves_more_time_than_it_takes_to_compile(width, steps, strategy, expected):
    config = replace(GPTConfig(), n_embd=width, n_inner=4 * width, n_head=4, vocab_size=50257 if width == 768 else 4096)
    settings = Settings(freeze=strategy, steps=steps, dtype="float32")
    mesh = make_mesh(devices=jax.devices()[:1])
    found = make_step_spec(settings, mesh, abstract(config, dtype=jnp.float32), steps=steps, packed=False)
    assert [found.measures_apart(phase) for phase in found.plan.phases] == expected
