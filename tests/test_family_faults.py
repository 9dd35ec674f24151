"""`check --against` for every family: it finds nothing where nothing is, and names the first module that differs."""

import jax.numpy as jnp
import numpy as np
import pytest
from families import FIRST, random_model, random_rows
from flax import nnx

import jaxgpt
import jaxgpt.model.attention
import jaxgpt.model.gpt
import jaxgpt.model.rotary
from jaxgpt import named_params, with_params
from jaxgpt.model.gpt import abstract
from jaxgpt.sanity.check import check
from jaxgpt.sanity.comparison import compare
from jaxgpt.sanity.reference import load_reference


def pair(name):
    """A model and its reference."""
    reference = load_reference(random_model(name))
    params = {n: jnp.asarray(array.copy()) for n, array in reference.params.items()}
    return with_params(abstract(reference.config), params), reference


def cause(model, reference) -> str:
    return compare(model, reference, random_rows(1)).cause()


@pytest.mark.capability("check --against")
@pytest.mark.parametrize("name", FIRST)
def test_a_model_that_is_read_rightly_equals_its_reference(name):
    model, reference = pair(name)
    report = check(model, None, reference.module)
    assert report.ok, report
    assert {check.name for check in report.checks if check.ok} >= {"counts", "weights", "parity", "parameters"}
    names = [module.name for module in report.parity.modules]
    assert names[0] == "tok_emb"
    assert names[-1] == "logits"
    assert len(names) == len({*names}) == 3 + 3 * 5 + 1 + (model.config.positions == "learned")


def swapped(one, other):
    return lambda p: p | {one: p[other], other: p[one]}


def changed(name, change):
    return lambda p: p | {name: change(p[name])}


def interleaved(kernel):
    D, N, H = kernel.shape
    return kernel.reshape(D, N, 2, H // 2).swapaxes(2, 3).reshape(D, N, H)


def regrouped(kernel):
    return kernel.reshape(40, 2, 2, 10).swapaxes(1, 2).reshape(kernel.shape)


PARAMETERS = [
    ("llama", swapped("blocks.1.mlp.gate.kernel", "blocks.1.mlp.fc1.kernel"),
     "blocks.1.mlp: blocks.1.mlp.gate.kernel is the reference's blocks.1.mlp.fc1.kernel"),
    ("llama", swapped("blocks.0.attn.k_proj.kernel", "blocks.0.attn.v_proj.kernel"),
     "blocks.0.attn.pattern: blocks.0.attn.k_proj.kernel is the reference's blocks.0.attn.v_proj.kernel"),
    ("llama", changed("blocks.0.attn.q_proj.kernel", interleaved),
     "blocks.0.attn.pattern: blocks.0.attn.q_proj.kernel has its rotary pairs side by side (interleaved), not in two "
     "halves"),
    ("mistral", changed("blocks.2.attn.q_proj.kernel", regrouped),
     "blocks.2.attn.pattern: blocks.2.attn.q_proj.kernel has its heads in another order"),
    ("qwen2", changed("blocks.0.attn.k_proj.bias", jnp.zeros_like), "blocks.0.attn.k_proj.bias is all zeros here"),
    ("gpt_neox", changed("blocks.0.attn.c_attn.kernel", lambda k: jnp.take(k, jnp.array([1, 0, 2]), axis=1)),
     "blocks.0.attn.pattern: blocks.0.attn.c_attn.kernel has q and k swapped"),
    ("gpt_neox", swapped("blocks.1.ln_1.scale", "blocks.1.ln_2.scale"),
     "blocks.1.ln_1: blocks.1.ln_1.scale is the reference's blocks.1.ln_2.scale"),
    ("opt", changed("pos_emb.embedding", lambda t: jnp.roll(t, 1, 0)), "pos_emb: pos_emb.embedding is the reference's"),
    ("gpt_neo", swapped("blocks.0.attn.q_proj.kernel", "blocks.0.attn.v_proj.kernel"),
     "blocks.0.attn.pattern: blocks.0.attn.q_proj.kernel is the reference's blocks.0.attn.v_proj.kernel"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "expected"), PARAMETERS)
def test_a_parameter_that_is_read_wrongly_is_named(name, change, expected):
    model, reference = pair(name)
    found = cause(with_params(model, change(named_params(model))), reference)
    assert expected in found, found


CONFIG = [
    ("llama", {"rope_theta": 5000.0}, "blocks.0.attn.pattern: config.rope_theta is 5000.0, the reference's 10000.0"),
    ("llama", {"layer_norm_epsilon": 0.1}, "blocks.0.ln_1: config.layer_norm_epsilon"),
    (
        "mistral",
        {"windows": (8, 8, 8)},
        "blocks.0.attn.pattern: config.windows is (8, 8, 8), the reference's (9, 9, 9)",
    ),
    (
        "gpt_neo",
        {"windows": (0, 8, 7)},
        "blocks.1.attn.pattern: config.windows is (0, 8, 7), the reference's (0, 7, 7)",
    ),
    ("gpt_neo", {"scale_attn_weights": True}, "blocks.0.attn.pattern: config.scale_attn_weights"),
    ("gpt_neox", {"rotary_dim": 4}, "blocks.0.attn.pattern: config.rotary_dim is 4, the reference's 2"),
    ("gpt_neox", {"parallel_residual": False}, "blocks.0.ln_2: config.parallel_residual"),
    ("gpt_neox", {"activation_function": "gelu_new"}, "blocks.0.mlp: config.activation_function"),
    ("qwen3", {"layer_norm_epsilon": 0.1}, "blocks.0.ln_1: config.layer_norm_epsilon"),
    ("opt", {"position_offset": 1, "n_positions": 42}, "pos_emb: config.position_offset is 1, the reference's 2"),
]


@pytest.mark.parametrize(("name", "fields", "expected"), CONFIG)
def test_a_field_of_the_config_that_is_wrong_is_named(name, fields, expected):
    from dataclasses import replace

    model, reference = pair(name)
    wrong = with_params(abstract(replace(model.config, **fields)), named_params(model))
    found = cause(wrong, reference)
    assert expected in found, found


def rms_with(change):
    class Norm(nnx.RMSNorm):
        def __call__(self, x):
            return change(x, super().__call__, self.scale[...])

    return Norm


def rotated_wrongly(x, by):
    cos, sin = by
    J = cos.shape[-1]
    first, second = x[..., :J], x[..., J : 2 * J]
    return jnp.concatenate([first * cos + second * sin, second * cos - first * sin, x[..., 2 * J :]], -1)


def heads_tiled(real):
    def attend(q, k, v, visible, **how):
        if (N := q.shape[1]) > (K := k.shape[1]):
            k, v = (jnp.tile(x, (1, N // K, 1, 1)) for x in (k, v))
        return real(q, k, v, visible, **how)

    return attend


def test_a_fault_of_the_code_is_named_by_its_module(monkeypatch):
    """A half that is turned the wrong way, heads that are repeated in the wrong order, a norm with a mean or 1 + w."""
    model, reference = pair("llama")
    faults = "all parameters and the config are equal, so that it is jaxgpt's code that differs: please report it"
    with monkeypatch.context() as m:
        m.setattr(jaxgpt.model.gpt, "rotate", rotated_wrongly)
        # turned the wrong way alike, queries and keys have the same products: transposed positions
        m.setattr(jaxgpt.model.gpt, "rotate", lambda x, by: rotated_wrongly(x, by) if x.shape[2] == 4 else x)
        assert cause(model, reference) == f"the first module that differs is blocks.0.attn.pattern: {faults}"
    with monkeypatch.context() as m:
        m.setattr(jaxgpt.model.attention, "attend", heads_tiled(jaxgpt.model.attention.attend))
        assert cause(model, reference) == f"the first module that differs is blocks.0.attn.pattern: {faults}"
    wrong = {
        "a mean": lambda x, norm, scale: norm(x - x.mean(-1, keepdims=True)),
        "1 + w": lambda x, norm, scale: norm(x) * (1 + scale)[None, None] / scale[None, None],
    }
    for change in wrong.values():
        with monkeypatch.context() as m:
            m.setattr(nnx, "RMSNorm", rms_with(change))
            spoiled = with_params(fresh(reference.config), named_params(model))
            assert cause(spoiled, reference) == f"the first module that differs is blocks.0.ln_1: {faults}"


def fresh(config):
    """A model that is built anew, and not taken from the cache of shapes."""
    return nnx.eval_shape(lambda: jaxgpt.GPT(config, rngs=nnx.Rngs(0)))


def test_differences_are_measured_where_they_begin():
    model, reference = pair("qwen2")
    params = named_params(model)
    noisy = with_params(model, params | {"blocks.1.ln_2.scale": params["blocks.1.ln_2.scale"] + 0.01})
    found = compare(noisy, reference, random_rows(1))
    assert found.first.name == "blocks.1.ln_2"
    assert np.isfinite(found.kl)
