"""The gradient of a norm in one kernel, beside what JAX makes of Flax's norms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgpt.model.gpt
import jaxgpt.model.norm
from jaxgpt import GPTConfig
from jaxgpt.loss import next_token_loss
from jaxgpt.model.gpt import GPT, run_block
from jaxgpt.model.norm import beside_norm, norm_gradients, normed
from jaxgpt.params import named_params, with_params

KINDS = {
    "layer": lambda size: nnx.LayerNorm(size, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0)),
    "layer without bias": lambda size: nnx.LayerNorm(
        size, epsilon=1e-5, use_bias=False, use_fast_variance=False, rngs=nnx.Rngs(0)
    ),
    "rms": lambda size: nnx.RMSNorm(size, epsilon=1e-5, rngs=nnx.Rngs(0)),
}


@pytest.fixture
def kernel(monkeypatch):
    """The kernel, computed as a GPU would."""
    monkeypatch.setattr(jaxgpt.model.norm, "fits_kernel", lambda x: True)
    monkeypatch.setattr(jaxgpt.model.norm, "norm_gradients", partial(norm_gradients, interpret=True))


def drawn(B: int, T: int, D: int):
    keys = jax.random.split(jax.random.key(0), 5)
    x, stream, norm = (jax.random.normal(key, (B, T, D)) for key in keys[:3])
    at = 100.0 * (jnp.arange(D) == D // 3).astype(jnp.float32)  # a dimension far from the rest, as GPT-2's stream has
    scale, shift = 1 + 0.2 * jax.random.normal(keys[3], (D,)), jax.random.normal(keys[4], (D,))
    return 3 * x + 1 + at[None, None], scale, shift, stream, norm


def gradients(kind: str, x, scale, shift, stream, norm, dtype=jnp.float32):
    """The gradients of x, scale and shift, of which a norm may have none."""
    graph, state = nnx.split(KINDS[kind](x.shape[-1]))
    given = nnx.to_pure_dict(state)
    given = {name: {"scale": scale, "bias": shift}[name] for name in given}

    def both(x, given):
        here, y = normed(nnx.merge(graph, given), x, dtype)
        return here, y.astype(dtype)

    y, back = jax.vjp(both, x, given)
    of_x, of_given = back((stream, norm.astype(dtype)))
    return y, {"x": of_x, **of_given}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "T", "D"), [(3, 211, 32), (1, 3, 1600), (2, 1, 5000)])
def test_it_is_the_gradient_of_flaxs_norm(kind, B, T, D, kernel, monkeypatch):
    monkeypatch.setattr(
        jaxgpt.model.norm, "PROGRAMS", 3
    )  # so that each takes several tiles of rows, and not equally many
    given = drawn(B, T, D)
    ys, ours = gradients(kind, *given)
    monkeypatch.setattr(jaxgpt.model.norm, "fits_kernel", lambda x: False)
    their_ys, theirs = gradients(kind, *given)
    for y, their in zip(ys, their_ys, strict=True):
        np.testing.assert_allclose(y, their, rtol=1e-6, atol=1e-6)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        size = float(jnp.abs(theirs[name]).max())
        np.testing.assert_allclose(gradient, theirs[name], rtol=0, atol=2e-6 * size, err_msg=name)


def test_the_norm_is_read_in_another_dtype_and_the_sums_stay_in_float32(kernel, monkeypatch):
    given = drawn(2, 64, 96)
    (_, y), ours = gradients("layer", *given, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    monkeypatch.setattr(jaxgpt.model.norm, "fits_kernel", lambda x: False)
    x, scale, shift, stream, norm = given
    _, exact = gradients("layer", x, scale, shift, stream, norm.astype(jnp.bfloat16).astype(jnp.float32))
    for name, gradient in ours.items():
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, exact[name], rtol=0, atol=2e-6 * float(jnp.abs(exact[name]).max()))


@pytest.mark.parametrize(("norm", "parallel", "remat"), [("layer", False, True), ("rms", True, False)])
def test_a_model_learns_the_same_with_the_kernel(norm, parallel, remat, kernel, monkeypatch):
    config = GPTConfig(
        vocab_size=97, n_positions=24, n_embd=32, n_layer=2, n_head=4, n_inner=64, norm=norm, parallel_residual=parallel
    )
    monkeypatch.setattr(jaxgpt.model.gpt, "run_alike", run_block)  # which is traced once for blocks that are alike
    model = GPT(config, rngs=nnx.Rngs(1))
    params = {
        name: p + 0.1 * jax.random.normal(jax.random.key(i), p.shape)
        for i, (name, p) in enumerate(named_params(model).items())
    }
    tokens = jax.random.randint(jax.random.key(2), (3, 25), 0, 97)

    @jax.jit
    def learn(params):
        return jax.value_and_grad(lambda p: next_token_loss(with_params(model, p), tokens, remat=remat).mean())(params)

    loss, grads = learn(params)
    monkeypatch.setattr(jaxgpt.model.norm, "fits_kernel", lambda x: False)
    learn.clear_cache()
    exact_loss, exact = learn(params)
    np.testing.assert_allclose(loss, exact_loss, rtol=1e-6)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, exact[name], rtol=0, atol=5e-6 * float(jnp.abs(exact[name]).max()))


def test_elsewhere_the_norm_is_flaxs():
    norm, x = KINDS["layer"](32), jax.random.normal(jax.random.key(0), (2, 3, 32))
    here, y = normed(norm, x, jnp.bfloat16)
    assert here is x
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, norm(x))


def test_the_forward_pass_is_that_of_the_norm():
    x, scale, shift, _, _ = drawn(2, 7, 96)
    here, y = beside_norm(x, scale, shift, 1e-5, True, jnp.dtype("float32"))
    np.testing.assert_array_equal(here, x)
    deviation = np.sqrt(np.var(np.asarray(x, np.float64), -1, keepdims=True) + 1e-5)
    exact = (np.asarray(x, np.float64) - np.mean(np.asarray(x, np.float64), -1, keepdims=True)) / deviation
    np.testing.assert_allclose(y, exact * np.asarray(scale) + np.asarray(shift), rtol=2e-5, atol=2e-5)
