"""The loss of a training step: its gradient is made with it, some rows at a time, and is that of the plain loss."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_tokens

import jaxgpt
from jaxgpt import loss
from jaxgpt.convert.adapter import LoRA
from jaxgpt.model import gpt, norm
from jaxgpt.model.gpt import GPT
from jaxgpt.params import named_params, with_params

CONFIG = jaxgpt.GPTConfig(n_embd=24, n_inner=40, vocab_size=97, n_positions=32, n_head=3, n_layer=1)
B, T = 3, 16


def random_model(config: jaxgpt.GPTConfig, dtype=jnp.float32) -> GPT:
    """A model with no parameter at zero, those of adapters and new tokens too."""
    model = GPT(config, rngs=jaxgpt.model.gpt.nnx.Rngs(0), dtype=dtype)
    rng = np.random.default_rng(0)
    params = {name: p + rng.normal(0, 0.1, p.shape).astype(np.float32) for name, p in named_params(model).items()}
    return with_params(model, params)


def both(model, trainable, *, smoothing=0.0, weights=None, **how):
    """Loss and gradient in parts, and those of the loss that `jax.value_and_grad` differentiates."""
    tokens = random_tokens((B, T + 1), model.config.n_tokens)
    if weights is None:
        weights = jnp.asarray(np.random.default_rng(2).random((B, T)).astype(np.float32))
    trainable = {name: p for name, p in named_params(model).items() if trainable(name)}

    def plain(trainable):
        whole = with_params(model, named_params(model) | trainable)
        return jnp.sum(weights * loss.next_token_loss(whole, tokens, label_smoothing=smoothing, **how))

    ours = jax.jit(lambda p: loss.next_token_gradients(model, p, tokens, weights, label_smoothing=smoothing, **how))
    return ours(trainable), jax.jit(jax.value_and_grad(plain))(trainable)


def assert_equal(found, expected, rtol=2e-6):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert found[1][name].dtype == grad.dtype
        scale = float(jnp.abs(grad).max()) or 1.0
        np.testing.assert_allclose(found[1][name] / scale, grad / scale, atol=rtol, err_msg=name)


HEADS = {
    "tied": CONFIG,
    "untied": replace(CONFIG, tie_word_embeddings=False),
    "with a bias": replace(CONFIG, tie_word_embeddings=False, head_bias=True),
    "padded": replace(CONFIG, vocab_size=112, n_padding=15),
    "with new tokens": replace(CONFIG, n_new_tokens=4),
    "untied with new tokens": replace(CONFIG, tie_word_embeddings=False, n_new_tokens=4),
    "adapted": replace(CONFIG, tie_word_embeddings=False, lora=LoRA(r=2, modules=("lm_head",))),
    "adapted by DoRA": replace(CONFIG, tie_word_embeddings=False, lora=LoRA(r=2, dora=True, modules=("lm_head",))),
}


CASES = [("tied", 1, 1, 0.0), ("tied", 4, 1, 0.0)] + [(head, 2, 128, 0.1) for head in HEADS]


def pretend(device: str, monkeypatch) -> None:
    """Let the loss be the one of this device; each has a way of its own to sum over the vocabulary."""
    for module in (loss, gpt, norm):
        monkeypatch.setattr(module, "is_for_one_cpu", lambda: device == "cpu")
    monkeypatch.setattr(loss, "platform", lambda: device)


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(("head", "n_parts", "multiple", "smoothing"), CASES)
def test_it_is_the_plain_loss_and_its_gradient(device, head, n_parts, multiple, smoothing, monkeypatch):
    """In one part and in several; with columns of a product that a GPU adds, and without."""
    pretend(device, monkeypatch)
    monkeypatch.setattr(loss, "_multiple", lambda model: multiple)
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", B * T // n_parts)
    assert_equal(*both(random_model(HEADS[head]), lambda name: True, smoothing=smoothing))


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e2, 1e4, 1e29])
def test_logits_of_any_size_have_the_loss_of_the_plain_one(device, size, monkeypatch):
    """Where one logit is far above the rest, where all are the same, and where the least is the target."""
    pretend(device, monkeypatch)
    V = 1000
    logits = size * np.random.default_rng(0).normal(0, 1, (2, 8, V)).astype(np.float32)
    logits[0, 0], logits[0, 1, 7], logits[0, 2, -1] = size, 9 * size, 9 * size
    targets = np.random.default_rng(1).integers(0, V, (2, 8))
    targets[0, 1], targets[1] = 7, logits[1].argmin(-1)
    weights = np.ones((2, 8), np.float32)

    def plain(logits):
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights)

    config = replace(CONFIG, vocab_size=V)
    found, slope = jax.jit(lambda x: loss.cross_entropy(x, targets, weights, config, 0.0))(logits)
    expected, gradient = jax.jit(jax.value_and_grad(plain))(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, gradient, atol=2e-6)


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_not_hidden(device, fault, monkeypatch):
    """A run that diverges says so by its loss, whichever token the fault is at."""
    pretend(device, monkeypatch)
    for column in (0, 50, 96):
        logits = np.zeros((1, 2, 97), np.float32)
        logits[0, 0, column] = fault
        found, slope = loss.cross_entropy(logits, np.full((1, 2), 3), np.ones((1, 2), np.float32), CONFIG, 0.0)
        assert not np.isfinite(found)
        assert not np.isfinite(slope[0, 0]).all()
        assert np.isfinite(slope[0, 1]).all()


@pytest.mark.parametrize("trains", ["head", "blocks", "norm", "nothing of the stream", "nothing"])
def test_what_is_frozen_has_no_gradient(trains, monkeypatch):
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", 12)
    prefix = {"head": ("tok_emb",), "blocks": ("blocks",), "norm": ("ln_f",), "nothing of the stream": ("lm_head",)}
    model = random_model(HEADS["tied" if trains == "head" else "untied"])
    assert_equal(*both(model, lambda name: name.startswith(prefix.get(trains, ("none",)))))


def test_segments_weights_of_zero_and_remat(monkeypatch):
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", 12)
    segments = np.repeat([[1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 0, 0, 0, 0]], B, 0)
    weights = jnp.asarray((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0), jnp.float32)
    for remat in (False, True):
        model = random_model(CONFIG)
        assert_equal(*both(model, lambda name: True, weights=weights, segments=segments, remat=remat))
    found, _ = both(model, lambda name: True, weights=jnp.zeros((B, T)))
    assert found[0] == 0
    assert all(not grad.any() for grad in found[1].values())


def test_dropout_is_that_of_the_plain_loss_and_an_adapter_s_differs_in_each_part(monkeypatch):
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", 12)
    model = random_model(replace(CONFIG, embd_pdrop=0.2, resid_pdrop=0.2, attn_pdrop=0.2))
    assert_equal(*both(model, lambda name: True, dropout_key=jax.random.key(3)))
    lora = LoRA(r=2, modules=("lm_head",), dropout=0.5)
    model = random_model(replace(CONFIG, tie_word_embeddings=False, lora=lora))
    found, _ = both(model, lambda name: "lora" in name, dropout_key=jax.random.key(3))
    without, _ = both(model, lambda name: "lora" in name)
    assert found[0] != without[0]
    assert all(np.isfinite(grad).all() for grad in found[1].values())


def test_in_bfloat16_it_is_as_near_as_bfloat16_is(monkeypatch):
    """Logits are rounded to eight bits, and the softmax is not."""
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", 12)
    found, _ = both(random_model(CONFIG, jnp.bfloat16), lambda name: True)
    _, exact = both(random_model(CONFIG), lambda name: True)
    assert_equal(found, exact, rtol=0.03)
    assert {str(grad.dtype) for grad in found[1].values()} == {"float32"}


def test_the_logits_of_a_batch_are_never_whole(monkeypatch):
    """No array of the program has (B T, V) numbers, forward or backward, nor a scatter among logits."""
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", 64)
    config = replace(CONFIG, vocab_size=1024, n_positions=128)
    model = jaxgpt.model.gpt.abstract(config)
    params = named_params(model)
    tokens = jax.ShapeDtypeStruct((4, 129), jnp.int32)
    weights = jax.ShapeDtypeStruct((4, 128), jnp.float32)

    def step(params, tokens, weights):
        return loss.next_token_gradients(with_params(model, params), params, tokens, weights)

    text = jax.jit(step).lower(params, tokens, weights).as_text()
    sizes = [math.prod(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)+)", text)]
    assert 4 * 16 * 1024 <= max(sizes) < 4 * 128 * 1024 / 2
    assert "tensor<64x1024xf32>" in text
    assert not re.search(r"stablehlo.scatter.*1024xf32", text)


@pytest.mark.parametrize(
    ("trains", "n_waits"), [("", 3), ("blocks.0.mlp", 3), ("tok_emb", 3), ("ln_f", 0), ("lm_head", 0)]
)
def test_a_gpu_makes_the_parts_in_turn_where_the_stream_has_a_gradient(trains, n_waits, monkeypatch):
    """Else XLA makes the logits of all of them at once; a gradient that nobody asked for would cost a product."""
    pretend("gpu", monkeypatch)
    monkeypatch.setattr(loss, "ROWS_AT_ONCE", B * T // 4)
    model = random_model(HEADS["untied"])
    trainable = {name: p for name, p in named_params(model).items() if name.startswith(trains)}
    tokens, weights = random_tokens((B, T + 1), 97), jnp.ones((B, T))
    text = jax.jit(lambda p: loss.next_token_gradients(model, p, tokens, weights)).lower(trainable).as_text()
    assert text.count("optimization_barrier") == n_waits
    assert_equal(*both(model, lambda name: name.startswith(trains)))
