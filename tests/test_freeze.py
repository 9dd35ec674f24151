"""Freezing: exact in what it names, bitwise in what it keeps, and free."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import DIMS, random_tokens

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params, with_params
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.model.gpt import abstract
from jaxgpt.params import by_module, match
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import lr_schedule, make_optimizer
from jaxgpt.training.step.step import Rates, TrainState, init_state, make_train_step

TIED = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 12}))
UNTIED = jaxgpt.GPTConfig(**(DIMS | {"n_layer": 12}), tie_word_embeddings=False)


def modules(config, text) -> set[str]:
    """`blocks.3`, `ln_f` …: the modules that train, each of which must do so entirely."""
    names = [row.ours for row in JAXGPT.expand(config)]
    labels = freeze.parse(text, config).labels(names)
    labels_of: dict[str, set[str]] = {}
    for name, label in labels.items():
        labels_of.setdefault(re.match(r"blocks\.\d+|\w+", name)[0], set()).add(label)
    assert all(len(found) == 1 for found in labels_of.values())
    return {module for module, found in labels_of.items() if found == {text}}


def blocks(first, last) -> set[str]:
    return {f"blocks.{i}" for i in range(first, last)}


EMBEDDINGS = {"tok_emb", "pos_emb"}
TABLE = [
    ("full", EMBEDDINGS | blocks(0, 12) | {"ln_f"}, {"lm_head"}),
    ("first0", blocks(0, 12) | {"ln_f"}, {"lm_head"}),
    ("first1", blocks(1, 12) | {"ln_f"}, {"lm_head"}),
    ("first6", blocks(6, 12) | {"ln_f"}, {"lm_head"}),
    ("first12", {"ln_f"}, {"lm_head"}),
    ("last0", {"ln_f"}, {"lm_head"}),
    ("last1", {"blocks.11", "ln_f"}, {"lm_head"}),
    ("last3", blocks(9, 12) | {"ln_f"}, {"lm_head"}),
    ("last12", blocks(0, 12) | {"ln_f"}, {"lm_head"}),
    ("embeddings", EMBEDDINGS, set()),
    (r"regex:blocks\.1\..*|ln_f\..*", {"blocks.1", "ln_f"}, set()),
]


@pytest.mark.parametrize(("text", "trains", "and_untied"), TABLE, ids=lambda v: v if isinstance(v, str) else "")
def test_what_each_strategy_trains(text, trains, and_untied):
    assert modules(TIED, text) == trains
    assert modules(UNTIED, text) == trains | and_untied


def test_the_head_is_the_token_embedding_when_tied():
    assert modules(TIED, "head") == {"tok_emb"}
    assert modules(UNTIED, "head") == {"lm_head"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first", r"unknown strategy, which needs a number\nA freezing strategy is one of\n  full"),
        ("first-1", "unknown strategy"),
        ("First6", "unknown strategy"),
        ("", "unknown strategy"),
        ("first13", "the model has only 12 blocks"),
        ("last99", "the model has only 12 blocks"),
        ("regex:(", "not a regular expression"),
        ("regex:blocks", "nothing would train"),
    ],
)
def test_what_is_no_strategy(text, message):
    with pytest.raises(ValueError, match=message):
        freeze.parse(text, TIED)


def test_a_plan_is_described_with_names_and_counts():
    params = named_params(abstract(TIED))
    plan = freeze.parse(r"regex:blocks\.(1|3|4|5)\..*|blocks\.7\..*bias", TIED)
    trains, frozen = plan.describe(params, TIED).split("\n")
    assert trains.endswith("blocks.1, blocks.3-5, blocks.7 (6 of 12 tensors)")
    assert frozen.endswith(
        "tok_emb (also the head: tied), pos_emb, blocks.0, blocks.2, blocks.6, blocks.7 (6 of 12 tensors), "
        "blocks.8-11, ln_f"
    )


@pytest.mark.parametrize("config", [TIED, UNTIED])
def test_parameters_come_in_the_order_of_the_network(config):
    params = named_params(abstract(config))
    assert list(params) == [row.ours for row in JAXGPT.expand(config)]
    block = "ln_1.scale ln_1.bias attn.c_attn.kernel attn.c_attn.bias attn.c_proj.kernel attn.c_proj.bias ln_2.scale "
    block += "ln_2.bias mlp.fc1.kernel mlp.fc1.bias mlp.fc2.kernel mlp.fc2.bias"
    assert [name.removeprefix("blocks.10.") for name in params if name.startswith("blocks.10.")] == block.split()
    assert list(by_module(params))[:3] == ["tok_emb", "pos_emb", "blocks.0"]
    assert list(by_module(params))[11:15] == ["blocks.9", "blocks.10", "blocks.11", "ln_f"]


def test_the_first_rule_that_matches_in_full_decides():
    rules = ((r"a\.\d", 1), (r"a\..*", 2))
    assert match(rules, ["a.1", "a.12", "a.b"]) == {"a.1": 1, "a.12": 2, "a.b": 2}
    with pytest.raises(ValueError, match=r"no pattern of the rules matches the parameter b\.a\.1"):
        match(rules, ["a.1", "b.a.1"])


# training


def small(**flags):
    model = jaxgpt.GPT(jaxgpt.GPTConfig(**(DIMS | {"n_layer": 3}), **flags), rngs=jaxgpt.model.gpt.nnx.Rngs(0))
    return model, named_params(model)


def make(model, params, text, lr=1e-2):
    plan = freeze.parse(text, model.config)
    trainable, frozen = plan.partition(jax.tree.map(jnp.array, params))
    rate = lr_schedule(20, 0.1)
    tx = make_optimizer(plan, trainable, rate, weight_decay=0.1, clip=1.0)
    step = make_train_step(model, tx, rate, seed=0)
    return init_state(trainable, frozen, tx, make_mesh()), partial(step, rates=rates_of(trainable, lr))


def rates_of(trainable, lr, **factors):
    return Rates(jnp.float32(lr), {name: jnp.float32(factors.get(name, 1)) for name in trainable})


@pytest.fixture(autouse=True)
def optax_promotes(strict_jax):
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("text", ["first2", "last1", "head", "embeddings", r"regex:.*\.bias"])
def test_frozen_leaves_are_bitwise_unchanged_after_20_steps_with_weight_decay(text):
    model, params = small()
    before = jax.tree.map(np.array, params)
    state, step = make(model, params, text)
    names = set(state.trainable)
    for i in range(20):
        state, metrics = step(state, Batch(random_tokens((2, 17), seed=i)))
    assert np.isfinite(float(metrics["loss"]))
    for name, value in state.params.items():
        changed = not np.array_equal(np.asarray(value), before[name])
        assert changed == (name in names), name


def test_optimizer_state_is_two_moments_of_what_trains_and_counters():
    model, params = small()
    for text in ("full", "first2", "head"):
        state, _ = make(model, params, text)
        trainable = sum(p.nbytes for p in state.trainable.values())
        counters = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
        assert len(counters) <= 3
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)) == 2 * trainable + 4 * len(counters)


def test_the_gradient_norm_and_the_clip_see_the_trainable_part_only():
    model, params = small()
    tokens = random_tokens((2, 17))
    grads = jax.jit(jax.grad(lambda p: jaxgpt.next_token_loss(with_params(model, p), tokens).mean()))(params)
    for text in ("full", "last1"):
        state, step = make(model, params, text)
        part = {name: grads[name] for name in state.trainable}
        _, metrics = step(state, Batch(tokens))
        assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(part)), rel=1e-5)


def test_frozen_is_free_first6_of_the_bundled_shape_takes_at_most_0_72_of_the_flops():
    """As JAX lowers it; and compiled, a sixth of it: of its blocks, and of its vocabulary."""
    bundled = jaxgpt.GPTConfig(vocab_size=4096, n_positions=256, n_embd=128, n_layer=12, n_head=4, n_inner=512)
    sixth = replace(bundled, n_layer=2, vocab_size=683)
    flops, temporaries = {}, {}
    for text, config in (("full", bundled), ("first6", bundled), ("full", sixth), ("first1", sixth)):
        model = abstract(config)
        plan = freeze.parse(text, config)
        trainable, frozen = plan.partition(named_params(model))
        tx = make_optimizer(plan, trainable, optax.constant_schedule(1.0), weight_decay=0.1, clip=1.0)
        step = make_train_step(model, tx, optax.constant_schedule(1.0), seed=0)
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, frozen, jax.eval_shape(tx.init, trainable))
        tokens = Batch(jax.ShapeDtypeStruct((4, 257), jnp.int32))
        lowered = step.lower(state, tokens, rates_of(trainable, 1e-3))
        flops[text, config.n_layer] = lowered.cost_analysis()["flops"]
        if config is sixth:
            compiled = lowered.compile()
            flops[text] = compiled.cost_analysis()["flops"]
            temporaries[text] = compiled.memory_analysis().temp_size_in_bytes
    assert flops["first6", 12] <= 0.72 * flops["full", 12]
    assert flops["first1", 2] / flops["full", 2] == pytest.approx(flops["first6", 12] / flops["full", 12], rel=1e-3)
    assert flops["first1"] <= 0.72 * flops["full"]
    assert temporaries["first1"] <= 0.72 * temporaries["full"]


def test_the_optimizer_works_on_whole_models_and_on_dicts_in_anybodys_loop():
    """Ten lines with nothing of ours but the plan; the frozen part gets zero updates."""
    model, params = small()
    plan = freeze.parse("first2", model.config)
    for tree in (model, params):
        tx = freeze.optimizer(plan, tree, optax.adamw(1e-2, weight_decay=0.1))
        opt_state = tx.init(tree)
        trainable = sum(p.nbytes for p in plan.partition(params)[0].values())
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(opt_state)) == 2 * trainable + 4
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, tree), opt_state, tree)
        stepped = optax.apply_updates(tree, updates)
        after = stepped if isinstance(stepped, dict) else named_params(stepped)
        for name, label in plan.labels(params).items():
            assert np.array_equal(after[name], params[name]) == (label == "frozen"), name
