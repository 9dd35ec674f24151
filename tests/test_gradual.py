"""Gradual unfreezing and rates by layer: what thaws when, exact moments at a boundary, no other program for a rate."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import DIMS, call, random_tokens
from runs import QUICK, arrays, assert_same_run

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params
from jaxgpt.model.gpt import abstract
from jaxgpt.params import by_module, module_shares
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import B1, B2, EPSILON, lr_schedule, make_optimizer, rate_factors
from jaxgpt.training.step.step import Rates, TrainState, init_state, make_train_step

TIED = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 12}))
UNTIED = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 12}), tie_word_embeddings=False)


@pytest.fixture(autouse=True)
def optax_promotes(strict_jax):
    with jax.numpy_dtype_promotion("standard"):
        yield


def trains(config, plan, step) -> set[str]:
    params = named_params(abstract(config))
    return set(by_module(plan.partition(params, step)[0]))


# what thaws when


def test_the_lessons_schedule_is_a_third_each_of_head_last_quarter_and_all():
    plan = freeze.parse("gradual", TIED, steps=300)
    assert [(phase.name, phase.start) for phase in plan.phases] == [("head", 0), ("last3", 100), ("full", 200)]
    upper = {"blocks.9", "blocks.10", "blocks.11", "ln_f"}
    for step in (0, 99):
        assert trains(TIED, plan, step) == {"tok_emb"}
        assert trains(UNTIED, freeze.parse("gradual", UNTIED, 300), step) == {"lm_head"}
    for step in (100, 199):
        assert trains(TIED, plan, step) == {"tok_emb"} | upper
        assert trains(UNTIED, freeze.parse("gradual", UNTIED, 300), step) == {"lm_head"} | upper
    for step in (200, 299):
        assert trains(TIED, plan, step) == set(by_module(named_params(abstract(TIED))))
    # a label is the phase that thawed a parameter, and stays
    labels = plan.labels(["tok_emb.embedding", "ln_f.scale", "pos_emb.embedding"], 250)
    assert list(labels.values()) == ["head", "last3", "full"]


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("gradual:head@0,last3@200,full@400", [0, 200, 400]),
        ("gradual:head@0,last3@25%,full@62.5%", [0, 150, 375]),
        ("gradual:head@0ep,last3@1ep,full@2.5ep", [0, 40, 100]),
        (r"gradual:regex:blocks\.1{1,2}\..*@0,regex:.*@5,x.*|full@9", None),
        (r"gradual:regex:blocks\.1{1,2}\..*@0,first3@9,full@10", [0, 9, 10]),
        ("first6", [0]),
    ],
)
def test_phases_begin_at_steps_percents_or_epochs(text, starts):
    if starts is None:  # the comma and the @ inside a pattern are the pattern's: what is left is no strategy
        with pytest.raises(ValueError, match=r"unknown strategy"):
            freeze.parse(text, TIED, 600, epoch_steps=40)
    else:
        assert [phase.start for phase in freeze.parse(text, TIED, 600, epoch_steps=40).phases] == starts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gradual:", "phases are written gradual:STRATEGY@START"),
        ("gradual:head", "phases are written gradual:STRATEGY@START"),
        ("gradual:head@0,", "phases are written gradual:STRATEGY@START"),
        ("gradual:head@0;full@9", "unknown strategy"),
        ("gradual:head@0,,full@9", "',full': unknown strategy"),
        ("gradual:gradual@0", "unknown strategy"),
        (
            "gradual:head@5,full@9",
            "head can't begin at 5: the first phase must begin at 0, and every other phase later than the previous one",
        ),
        ("gradual:head@0,last3@20,full@20", "full can't begin at 20"),
        ("gradual:head@0,full@300", "full would begin after the last of 300 steps"),
        ("gradual:full@0,head@5", "phase head adds nothing: all its parameters train already"),
        ("gradual:head@0,head@5", "phase head adds nothing: all its parameters train already"),
        ("gradual:head@0,full@1.5", "1.5 is not an integer number of steps"),
        ("gradual:head@0,full@1ep", "needs epoch_steps"),
        ("gradual:head@0,last13@1", "the model has only 12 blocks"),
        ("gradual:" + "head@0," * 100 + "x@", "phases are written gradual:STRATEGY"),  # at once, without backtracking
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_gradual_unfreeze(text, message):
    with pytest.raises(ValueError, match=message):
        freeze.parse(text, TIED, 300)


def test_thirds_and_percents_need_the_number_of_steps_and_enough_of_them():
    for text in ("gradual", "gradual:head@0,full@50%"):
        with pytest.raises(ValueError, match="needs steps, the number of steps of the training"):
            freeze.parse(text, TIED)
    with pytest.raises(ValueError, match=r"needs at least 3 steps \(one for each phase\), not 2"):
        freeze.parse("gradual", TIED, 2)
    assert len(freeze.parse("gradual", TIED, 3).phases) == 3


def test_a_gradual_plan_is_described_phase_by_phase():
    params = named_params(abstract(TIED))
    lines = freeze.parse("gradual:head@0,last3@200", TIED).describe(params, TIED).split("\n")
    assert lines[0] == "phase 1     head, from step 1 on"
    assert lines[1].endswith("tok_emb (also the head: tied)")
    assert lines[3] == "phase 2     last3, from step 201 on"
    assert lines[4].endswith("tok_emb (also the head: tied), blocks.9-11, ln_f")
    assert lines[5].endswith("pos_emb, blocks.0-8")


def test_the_share_of_each_module_that_trains():
    params = named_params(abstract(TIED))
    found = module_shares({name: p for name, p in params.items() if name.endswith("bias") or "emb" in name}, params)
    assert list(found) == ["tok_emb", "pos_emb", *(f"blocks.{i}" for i in range(12)), "ln_f"]
    assert (found["tok_emb"], found["ln_f"]) == (1, 0.5)
    assert 0 < found["blocks.3"] < 0.1


# the boundary

SHAPES = {"tok_emb.embedding": (5, 4), "blocks.0.mlp.fc1.kernel": (4, 3), "blocks.1.mlp.fc1.kernel": (4, 3)}
TWO = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 2}))


def random_tree(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {name: jax.random.normal(key, shape) for (name, shape), key in zip(SHAPES.items(), keys, strict=True)}


def test_at_a_boundary_moments_and_counts_go_on_and_what_thaws_starts_a_fresh_adam():
    """Three phases of three steps over given gradients, against an AdamW of its own for each group."""
    plan = freeze.parse("gradual:head@0,regex:blocks.1.*@3,full@6", TWO)
    adamw = optax.adamw(1e-2, b2=0.95, weight_decay=0.1)
    alone = {name: (adamw.init(p), p) for name, p in random_tree(0).items()}
    params, opt_state = random_tree(0), None
    for step in range(9):
        if step in (0, 3, 6):
            trainable, _ = plan.partition(params, step)
            tx = freeze.optimizer(plan, trainable, adamw, step)
            opt_state = tx.init(trainable) if step == 0 else freeze.thaw(tx, trainable, opt_state)
        grads = random_tree(100 + step)
        updates, opt_state = tx.update({name: grads[name] for name in trainable}, opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params |= trainable
        assert len(trainable) == 1 + step // 3
        for name in trainable:
            state, value = alone[name]
            expected, state = adamw.update(grads[name], state, value)
            assert np.abs(updates[name] - expected).max() <= 1e-7
            alone[name] = state, optax.apply_updates(value, expected)
    counts = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.ndim == 0]
    assert sorted(map(int, counts)) == [3, 6, 9]


def test_the_programs_optimizer_has_the_same_boundary_and_each_group_a_warm_up():
    steps, start, warm = 20, 8, 4
    rate = lr_schedule(steps, 0.2)
    plan = freeze.parse(f"gradual:head@0,full@{start}", TWO)

    def reference(first, rise):
        return optax.adamw(
            lambda count: rate(first + count) * jnp.minimum(1, (count + 1) / rise), B1, B2, EPSILON, weight_decay=0.1
        )

    groups = {name: reference(0, 1) if "tok" in name else reference(start, warm) for name in SHAPES}
    alone = {name: (groups[name].init(p), p) for name, p in random_tree(0).items()}
    params = random_tree(0)
    for step in range(steps):
        if step in (0, start):
            trainable, _ = plan.partition(params, step)
            tx = make_optimizer(plan, trainable, rate, weight_decay=0.1, clip=1e9, step=step, thaw_warmup=warm)
            opt_state = tx.init(trainable) if step == 0 else freeze.thaw(tx, trainable, opt_state)
        grads = random_tree(100 + step)
        updates, opt_state = tx.update({name: grads[name] for name in trainable}, opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params |= trainable
        for name in trainable:
            state, value = alone[name]
            expected, state = groups[name].update(grads[name], state, value)
            assert np.abs(updates[name] - expected).max() <= 1e-7, (step, name)
            alone[name] = state, optax.apply_updates(value, expected)


def test_only_the_state_of_an_earlier_phase_can_be_carried_on():
    plan, adamw = freeze.parse("gradual:head@0,full@3", TWO), optax.adamw(1e-2)
    parts = [plan.partition(random_tree(0), step)[0] for step in (0, 3)]
    first, second = (freeze.optimizer(plan, part, adamw, step) for part, step in zip(parts, (0, 3), strict=True))
    freeze.thaw(second, parts[1], first.init(parts[0]))
    for state in (5, adamw.init(parts[0])):
        with pytest.raises(ValueError, match="opt_state does not match this phase: it holds "):
            freeze.thaw(second, parts[1], state)
    with pytest.raises(ValueError, match="opt_state does not match this phase: it holds "):
        freeze.thaw(first, parts[0], second.init(parts[1]))
    with pytest.raises(ValueError, match="step must be the number of completed steps, 0 or more, not -1"):
        plan.partition(random_tree(0), -1)


def test_one_shared_count_would_be_wrong():
    """Why groups have an Adam each: with the count of the others, first updates at b2 = 0.95 are less than half."""
    adamw = optax.scale_by_adam(b2=0.95)
    fresh = adamw.init(jnp.zeros(3))
    old = fresh._replace(count=jnp.int32(1000))
    first, shared = (float(adamw.update(jnp.ones(3), state)[0][0]) for state in (fresh, old))
    assert first == pytest.approx(1, abs=1e-5)
    assert shared == pytest.approx(0.45, abs=0.01)


# rates


def test_rates_fall_by_layer_and_patterns_multiply_them():
    names = list(named_params(abstract(UNTIED)))
    factors = rate_factors(names, 12, 0.9, [r"blocks\.1\d\..*=2.0", r"blocks\..*bias=3"])
    assert factors["lm_head.kernel"] == factors["ln_f.scale"] == 1
    assert factors["blocks.11.ln_1.bias"] == 2
    assert factors["blocks.10.mlp.fc1.kernel"] == pytest.approx(2 * 0.9)
    assert factors["blocks.9.mlp.fc1.kernel"] == pytest.approx(0.9**2)
    assert factors["blocks.9.mlp.fc1.bias"] == pytest.approx(3 * 0.9**2)
    assert factors["blocks.0.mlp.fc1.kernel"] == pytest.approx(0.9**11)
    assert factors["tok_emb.embedding"] == factors["pos_emb.embedding"] == pytest.approx(0.9**12)
    assert set(rate_factors(names, 12, 1.0, []).values()) == {1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2.0", "must be PATTERN=FACTOR"),
        ("=2", "must be PATTERN=FACTOR"),
        ("(=2", "must be PATTERN=FACTOR"),
        ("ln_f.*=fast", "must be PATTERN=FACTOR"),
        ("ln_f.*=0", "a factor above 0, at most"),
        ("ln_f.*=nan", "a factor above 0, at most"),
        ("ln_f.*=inf", "a factor above 0, at most"),
        ("ln_g.*=2", "no trainable parameter matches; one is called, for example, tok_emb.embedding"),
    ],
)
def test_what_is_no_rate(text, message):
    with pytest.raises(ValueError, match=message):
        rate_factors(named_params(abstract(TIED)), 12, 1.0, [text])


def test_other_rates_are_other_updates_by_the_same_program():
    config = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 3}))
    model = jaxgpt.GPT(config, rngs=jaxgpt.model.gpt.nnx.Rngs(0))
    start = jax.tree.map(np.asarray, named_params(model))
    plan, rate = freeze.parse("full", config), optax.constant_schedule(1.0)
    tx = make_optimizer(plan, start, rate, weight_decay=0.1, clip=1.0)
    step = make_train_step(model, tx, rate, seed=0)
    moved = {}
    for peak, decay, scale in [(1e-3, 1.0, []), (2e-3, 1.0, []), (1e-3, 0.5, []), (1e-3, 0.5, [r"blocks\.0\..*=8"])]:
        state = init_state(jax.tree.map(jnp.array, start), {}, tx, make_mesh())
        factors = rate_factors(start, 3, decay, scale)
        rates = Rates(jnp.float32(peak), {name: jnp.float32(factor) for name, factor in factors.items()})
        after, metrics = step(state, Batch(random_tokens((2, 17))), rates)
        moved[peak, decay, len(scale)] = {n: np.abs(np.asarray(after.params[n]) - start[n]).max() for n in start}
        assert float(metrics["lr"]) == pytest.approx(peak)
    assert step._cache_size() == 1
    same = moved[1e-3, 1.0, 0]
    for name in start:
        layer = {"blocks.2": 1, "blocks.1": 0.5, "blocks.0": 0.25, "ln_f": 1}.get(name.rpartition(".")[0][:8], 0.125)
        layer = 1 if name.startswith("ln_f") else layer
        assert moved[2e-3, 1.0, 0][name] == pytest.approx(2 * same[name], rel=1e-3)
        assert moved[1e-3, 0.5, 0][name] == pytest.approx(layer * same[name], rel=1e-3)
        assert moved[1e-3, 0.5, 1][name] == pytest.approx(layer * same[name] * (8 if "s.0." in name else 1), rel=1e-3)


def test_update_ratios_are_those_of_the_update_and_nothing_is_said_of_frozen_modules():
    config = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 3}))
    model = jaxgpt.GPT(config, rngs=jaxgpt.model.gpt.nnx.Rngs(0))
    plan, rate = freeze.parse("first2", config), optax.constant_schedule(1.0)
    trainable, frozen = plan.partition(jax.tree.map(jnp.array, named_params(model)))
    before = jax.tree.map(np.asarray, trainable)
    tx = make_optimizer(plan, trainable, rate, weight_decay=0.1, clip=1.0)
    rates = Rates(jnp.float32(1e-3), {name: jnp.float32(1) for name in trainable})
    state, metrics = make_train_step(model, tx, rate, seed=0)(
        init_state(trainable, frozen, tx, make_mesh()), Batch(random_tokens((2, 17))), rates
    )
    assert isinstance(state, TrainState)
    assert set(metrics["updates"]) == {"blocks.2", "ln_f"}
    for module, names in by_module(before).items():
        old = np.concatenate([before[name].ravel() for name in names])
        new = np.concatenate([np.asarray(state.trainable[name]).ravel() for name in names])
        ratio = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert float(metrics["updates"][module]) == pytest.approx(ratio, rel=1e-3)


# the program

PHASES = "gradual:head@0,last1@3,full@6"


@pytest.fixture(scope="module")
def gradual_run(small, tmp_path_factory):
    """Nine steps in three phases that nothing interrupted, with a checkpoint after each step."""
    out = tmp_path_factory.mktemp("gradual") / "whole"
    flags = [f"--model={small}", f"--freeze={PHASES}", *QUICK, "--checkpoint-every=1", "--keep=9"]
    return out, flags, call("train", *flags, f"--out={out}", samples=False).stdout


def test_a_gradual_run_thaws_when_it_should_and_zeros_are_where_nothing_trains(small, gradual_run):
    out, _, text = gradual_run
    begins = r"step {}: phase {} begins, {}: [\d,]+ parameters train\n"
    assert re.search(begins.format(4, 2, "last1") + r"(.*\n)*" + begins.format(7, 3, "full"), text)
    assert "head        is the token embedding itself, so both train; --untie-head" in text
    for line in map(json.loads, (out / "updates.jsonl").read_text().splitlines()):
        phase = (line["step"] - 1) // 3
        moves = {module for module, ratio in line["updates"].items() if ratio > 0}
        upper = {"tok_emb", "blocks.1", "ln_f"}
        expected = [{"tok_emb"}, upper, upper | {"pos_emb", "blocks.0"}][phase]
        assert moves == expected
    start, ends = named_params(jaxgpt.from_pretrained(small)), [arrays(out, step) for step in (3, 6, 9)]
    for name, p in start.items():
        p = np.asarray(p)
        moved = [not np.array_equal(end[f"params/{name}"], p) for end in ends]
        first = 0 if "tok_emb" in name else 1 if name.startswith(("blocks.1", "ln_f")) else 2
        assert moved == [i >= first for i in range(3)], name
    counts = [sorted(int(a) for n, a in end.items() if "opt_state" in n and a.ndim == 0) for end in ends]
    assert counts == [[3, 3], [3, 3, 6, 6], [3, 3, 6, 6, 9, 9]]  # of Adam and of the schedule


@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_gradual_run_resumes_bitwise_before_at_and_after_a_boundary(gradual_run, tmp_path, step):
    whole, flags, _ = gradual_run
    out = tmp_path / "resumed"
    shutil.copytree(whole, out)
    for later in range(step + 1, 10):
        shutil.rmtree(out / "checkpoints" / str(later))
    call("train", *flags, f"--out={out}", "--resume", "--checkpoint-every=9", samples=False)
    assert_same_run(out, whole, 9)
