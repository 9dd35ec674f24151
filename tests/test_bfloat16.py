"""Products in bfloat16 on a CPU: what they compute, in which form XLA gets them, and when they are chosen."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import GPTConfig, make_mesh, mesh
from jaxgpt.model.bfloat16 import bfloat16_product
from jaxgpt.model.gpt import abstract
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import make_step_spec

CONFIG = GPTConfig(
    vocab_size=97, n_positions=24, n_embd=36, n_layer=2, n_head=3, n_inner=52,
    embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(5, 12, 20), (7, 29, 31), (1, 128, 3), (64, 6, 97)])
def test_it_is_the_product_of_rounded_numbers_summed_in_float32(rows, inputs, outputs, axis):
    """Also where a dimension is prime, so that nothing can be taken apart; and so are both of its gradients."""
    draw = np.random.default_rng(0)
    x, kernel, slope = (
        jnp.asarray(draw.normal(size=size), jnp.float32)
        for size in ((rows, inputs), (inputs, outputs), (rows, outputs))
    )

    def rounded(array):
        return np.asarray(array.astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    given = kernel if axis == 0 else kernel.T
    found, back = jax.vjp(lambda x, kernel: bfloat16_product(x, kernel, axis), x, given)
    of_x, of_kernel = back(slope)
    assert {array.dtype for array in (found, of_x, of_kernel)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, rounded(slope) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    expected = rounded(x).T @ rounded(slope)
    np.testing.assert_allclose(of_kernel, expected if axis == 0 else expected.T, rtol=1e-5, atol=1e-5)
    half = jax.grad(lambda x: jnp.sum(bfloat16_product(x, given, axis)))(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "strategy", "n_products"),
    [
        # four layers in each of two blocks, and the head: forward, by inputs and by kernels. Blocks are lowered once
        ({}, "full", 3 * 4 + 3),
        ({}, "first1", 4 + (4 + 1) + 3 * 4 + 2 + 1),
        ({"tie_word_embeddings": False}, "head", 4 + 3),
    ],
)
def test_every_product_of_a_layer_has_the_form_that_xla_multiplies_in_bfloat16(fields, strategy, n_products):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax is not strict
        spec = spec_of(replace(CONFIG, **fields), strategy)
        text = spec.lower(spec.plan.phases[0]).as_text()
    # products of attention have batching dimensions
    products = [line for line in text.splitlines() if "dot_general" in line and "batching_dims" not in line]
    for line in products:
        assert re.search(r"contracting_dims = \[1\] x \[[01]\]", line), line
        assert re.search(r"\(tensor<\d+x\d+xbf16>, tensor<\d+x\d+xbf16>\) -> tensor<\d+x\d+xf32>", line), line
    assert products
    assert len(products) <= n_products


def spec_of(config, strategy):
    """Specify the steps of a run on one CPU."""
    settings = Settings(freeze=strategy, dtype="bfloat16", batch_size=4)
    model = abstract(config, dtype=jnp.bfloat16)
    return make_step_spec(settings, make_mesh(devices=jax.devices()[:1]), model, steps=10, packed=False)


@pytest.mark.parametrize(
    ("cpuinfo", "width", "expected"),
    [
        ("processor : 0\nflags : fpu avx512_bf16 amx_bf16 amx_tile\n", 768, "bfloat16"),
        ("processor : 0\nflags : fpu avx512_bf16 amx_bf16 amx_tile\n", 128, "float32"),
        ("processor : 0\nflags : fpu avx512_bf16\n", 768, "float32"),
        ("processor : 0\nmodel name : amx_bf16x\n", 768, "float32"),
        (None, 768, "float32"),
    ],
)
def test_it_is_chosen_on_a_cpu_with_amx_and_for_models_that_gain(monkeypatch, tmp_path, cpuinfo, width, expected):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    has_amx = mesh.has_amx
    monkeypatch.setattr(mesh, "has_amx", lambda: has_amx(str(tmp_path / "cpuinfo")))
    assert mesh.usual_dtype(jax.devices()[0], width) == expected
