"""Optimizers by name: the updates of Optax's own, through phases, and the learning rate's ways down."""

import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import DIMS, call, random_hf
from runs import QUICK, arrays, assert_same_run, metrics

import jaxgpt
from jaxgpt import freeze
from jaxgpt.params import named_params
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.optimizer import B1, B2, EPSILON, PEAK_LR, lr_schedule, make_optimizer

RATE, DECAY = 0.01, 0.1


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_hf().save_pretrained(folder)
    params = named_params(jaxgpt.from_pretrained(folder))
    keys = jax.random.split(jax.random.key(0), len(params))
    grads = [
        {
            name: jax.random.normal(jax.random.fold_in(key, i), p.shape)
            for key, (name, p) in zip(keys, params.items(), strict=True)
        }
        for i in range(2)
    ]
    return params, grads


@cache
def update(tx):
    """Return the compiled update of an optimizer."""

    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    return step


def two_steps(tx, params, grads):
    state = tx.init(params)
    for grad in grads:
        params, state = update(tx)(params, state, grad)
    return params


def is_matrix(params):
    return {name: name.endswith(("kernel", "embedding")) for name in params}


OPTAX = {
    "adamw": optax.adamw(RATE, B1, B2, EPSILON, weight_decay=DECAY, mask=is_matrix),
    "lion": optax.lion(RATE, weight_decay=DECAY, mask=is_matrix),
    "sgd": optax.chain(
        optax.add_decayed_weights(0), optax.trace(0.9), optax.add_decayed_weights(DECAY, is_matrix), optax.scale(-RATE)
    ),
    "adafactor": optax.chain(
        optax.adafactor(RATE, multiply_by_parameter_scale=False), optax.add_decayed_weights(-RATE * DECAY, is_matrix)
    ),
}


@pytest.mark.parametrize("kind", OPTAX)
def test_updates_are_optaxs(kind, tree):
    params, grads = tree
    plan = freeze.parse("full", jaxgpt.GPTConfig(**DIMS, eos_token_id=None))
    constant = optax.constant_schedule(RATE)
    ours = two_steps(make_optimizer(plan, params, constant, weight_decay=DECAY, clip=1e9, kind=kind), params, grads)
    theirs = two_steps(OPTAX[kind], params, grads)
    for name, p in ours.items():
        assert np.abs(np.asarray(p) - np.asarray(theirs[name])).max() <= 1e-6, name


def test_muon_is_optaxs_on_each_matrix_of_a_block_and_adamw_elsewhere(tree):
    params, grads = tree
    plan = freeze.parse("full", jaxgpt.GPTConfig(**DIMS, eos_token_id=None))
    constant = optax.constant_schedule(RATE)
    ours = two_steps(make_optimizer(plan, params, constant, weight_decay=DECAY, clip=1e9, kind="muon"), params, grads)
    adamw = two_steps(OPTAX["adamw"], params, grads)
    muon = optax.contrib.muon(RATE, weight_decay=DECAY, consistent_rms=0.2)
    D = DIMS["n_embd"]
    for name in params:
        if not (name.startswith("blocks") and name.endswith("kernel")):
            assert np.abs(np.asarray(ours[name] - adamw[name])).max() <= 1e-6, name
            continue
        parts = {"attn.c_attn": [(slice(None), i) for i in range(3)]}.get(
            name.split(".", 2)[2].removesuffix(".kernel"), [...]
        )
        for part in parts:  # two axes each: what Muon is defined for
            rows = DIMS["n_inner"] if "fc2" in name else D
            two = [np.asarray(x[name][part]).reshape(rows, -1) for x in (params, *grads)]
            alone = two_steps(muon, {"w": jnp.asarray(two[0])}, [{"w": jnp.asarray(g)} for g in two[1:]])["w"]
            assert np.abs(np.asarray(ours[name][part]).reshape(rows, -1) - np.asarray(alone)).max() <= 1e-5, name


@pytest.mark.parametrize("kind", ["muon", "adafactor"])
def test_a_gradual_run_resumes_bitwise_with_another_optimizer(kind, small, tmp_path):
    flags = [f"--model={small}", *QUICK, "--freeze=gradual:last1@0,full@4", f"--optimizer={kind}"]
    flags = [*flags, "--checkpoint-every=4", "--schedule=wsd", "--steps=7", "--keep=9", "--lr=3e-3"]
    call("train", *flags, f"--out={tmp_path}/whole", samples=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "7")
    call("train", "--resume", tmp_path / "again", samples=False)
    assert_same_run(tmp_path / "again", tmp_path / "whole", 7)
    lines = metrics(tmp_path / "whole")
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    names = set(arrays(tmp_path / "whole", 7))
    assert any({"muon": "mu", "adafactor": "v_row"}[kind] in name for name in names)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_the_rate_rises_to_its_peak_and_goes_down_its_way(kind, steps):
    rates = np.array([float(lr_schedule(steps, 0.1, kind)(i)) for i in range(steps)])
    rise = max(1, round(steps * 0.1))
    assert rates[rise - 1] == 1
    assert (rates > 0).all()
    assert (np.diff(rates[rise - 1 :]) <= 1e-6).all()
    if steps == 100:
        assert {"cosine": 0.1, "linear": 0.1, "constant": 1.0, "wsd": 0.0}[kind] == pytest.approx(rates[-1], abs=0.06)
        assert rates[50] == pytest.approx({"cosine": 0.628, "linear": 0.6, "constant": 1, "wsd": 1}[kind], abs=0.01)


def test_every_optimizer_has_a_default_rate():
    choices = Settings.__dataclass_fields__["optimizer"].type
    assert all(f"'{name}'" in str(choices).replace('"', "'") for name in PEAK_LR)
