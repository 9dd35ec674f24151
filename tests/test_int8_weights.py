"""Kernels in 8 bits for writing text: near the floats, the same for a row alone, never converted as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FIRST, TWO_BLOCKS, random_rows, write_model

import jaxgpt
from jaxgpt.adapter import separate_new_tokens
from jaxgpt.commands.generate import main
from jaxgpt.generation.decode import decode, prefill
from jaxgpt.generation.sampling import Greedy
from jaxgpt.int8 import Int8Kernel, quantise
from jaxgpt.mesh import make_mesh
from jaxgpt.model.layers import BLOCK_INPUTS, FEW_ROWS, int8_product
from jaxgpt.params import named_params, with_params
from jaxgpt.quantised import is_quantised, quantise_model
from jaxgpt.sanity.language import SENTENCES


@pytest.fixture(scope="module")
def tiny():
    """The bundled model, in floats and in 8 bits."""
    return jaxgpt.from_pretrained("tiny"), jaxgpt.from_pretrained("tiny", weights="int8")


@pytest.fixture(scope="module")
def short(cut):
    """Three blocks of it in 8 bits, which compile fast."""
    return jaxgpt.from_pretrained(cut, weights="int8")


@pytest.mark.parametrize(
    ("shape", "n_in"), [((2 * BLOCK_INPUTS, 3, 2, 5), 1), ((4, 3 * BLOCK_INPUTS, 7), 2), ((9, 7), 1)]
)
def test_few_rows_have_the_product_of_many_and_each_its_own_alone(shape, n_in):
    kernel = quantise(jax.random.normal(jax.random.key(0), shape), n_in)
    x = jax.random.normal(jax.random.key(1), (FEW_ROWS + 1, *shape[:n_in]))
    floats = kernel.values.astype(jnp.float32) * jnp.expand_dims(kernel.scale, range(n_in))
    many, few = int8_product(x, kernel), int8_product(x[:FEW_ROWS], kernel)
    np.testing.assert_allclose(many, jnp.tensordot(x, floats, n_in), atol=1e-4)
    np.testing.assert_allclose(few, many[:FEW_ROWS], atol=1e-4)
    for row in range(FEW_ROWS):
        np.testing.assert_allclose(int8_product(x[row : row + 1], kernel)[0], few[row], atol=1e-5)


@pytest.mark.parametrize("at", [0, 1, BLOCK_INPUTS])
def test_nan_stays_nan(at):
    kernel = quantise(jax.random.normal(jax.random.key(0), (2 * BLOCK_INPUTS, 5)), 1)
    assert jnp.isnan(int8_product(jnp.ones((1, 2 * BLOCK_INPUTS)).at[0, at].set(jnp.nan), kernel)).all()


def test_perplexity_is_within_half_a_percent(tiny):
    ids = jaxgpt.load_tokenizer("tiny")("\n".join(SENTENCES))["input_ids"]
    floats, int8 = (jaxgpt.evaluate(model, np.asarray(ids)) for model in tiny)
    assert int8.loss != floats.loss
    assert int8.perplexity == pytest.approx(floats.perplexity, rel=0.005)


def test_no_kernel_is_converted_to_floats_for_a_token(short):
    """XLA moves a conversion out of the loop over tokens where it can; each token then reads four times the bytes."""
    start = jax.eval_shape(
        lambda: prefill(
            short, jnp.ones((1, 8), jnp.int32), jnp.zeros(1, jnp.int32), jax.random.key(0), (Greedy(),),
            jnp.full(1, -1), room=8, num_samples=1, remember=False,
        )
    )  # fmt: skip
    compiled = decode.lower(short, start, (Greedy(),), jnp.full(1, -1), jnp.int32(8)).compile()
    kernels = [param for param in named_params(short).values() if isinstance(param, Int8Kernel)]
    assert compiled.memory_analysis().temp_size_in_bytes < sum(kernel.size for kernel in kernels)


FEW_BLOCKS = {family: {"num_hidden_layers": 1} for family in FIRST} | {
    family: TWO_BLOCKS[family]
    for family in ("gpt_neo", "qwen2")  # whose blocks differ
}


@pytest.mark.parametrize("family", FIRST)
def test_every_family_has_near_logits_and_writes_the_same_alone_and_in_a_batch(family, tmp_path):
    write_model(tmp_path, family, **FEW_BLOCKS[family])
    floats, model = (jaxgpt.from_pretrained(tmp_path, weights=weights) for weights in ("float", "int8"))
    rows = random_rows(3, 9)
    expected, found = floats(rows), model(rows)
    assert 0 < jnp.abs(found - expected).max() < 0.1 * jnp.abs(expected).max()
    assert jnp.linalg.norm(found - expected) < 0.03 * jnp.linalg.norm(expected)
    together = jaxgpt.generate(model, rows, max_new_tokens=6)
    for row, written in zip(rows, together, strict=True):
        assert (jaxgpt.generate(model, row[None], max_new_tokens=6)[0] == written).all()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapters_and_rows_of_new_tokens_are_merged_first(family, tmp_path):
    write_model(tmp_path, family, **FEW_BLOCKS[family])
    model = jaxgpt.add_lora(separate_new_tokens(jaxgpt.from_pretrained(tmp_path), 2), "lora:r=2")
    params = named_params(model)
    params |= {name: param + 0.1 for name, param in params.items() if ".lora_" in name or name.endswith(".new")}
    model = with_params(model, params)
    rows, made = random_rows(2, 9), quantise_model(model)
    assert (made.config.lora, made.config.n_new_tokens) == (None, 0)
    assert (made(rows) == quantise_model(jaxgpt.merge_lora(model))(rows)).all()
    assert jnp.linalg.norm(made(rows) - model(rows)) < 0.03 * jnp.linalg.norm(model(rows))


def test_what_it_is_not_for_is_refused(tiny, tmp_path):
    assert [is_quantised(model) for model in tiny] == [False, True]
    with pytest.raises(jaxgpt.InputError, match="a model with int8 weights can't be saved"):
        jaxgpt.save_pretrained(tiny[1], tmp_path / "saved")
    with pytest.raises(jaxgpt.InputError, match="a model with int8 weights can't be saved"):
        jaxgpt.save(tiny[1], tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(jaxgpt.InputError, match="weights='int8' is for one device"):
        jaxgpt.from_pretrained("tiny", weights="int8", mesh=make_mesh())
    with pytest.raises(jaxgpt.InputError, match="weights must be 'float' or 'int8', not 'int4'"):
        jaxgpt.from_pretrained("tiny", weights="int4")


def test_the_command_line_writes_what_complete_does(short, cut, capsys):
    flags = ("--prompt=In the beginning", "--max-new-tokens=8", "--no-compile-cache")
    assert main((str(cut), "--weights=int8", *flags)) == 0
    text = jaxgpt.complete(short, jaxgpt.load_tokenizer("tiny"), "In the beginning", max_new_tokens=8)
    assert capsys.readouterr().out == f"In the beginning{text}\n"
