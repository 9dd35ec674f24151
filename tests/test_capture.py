"""What a forward pass captures: transformers' hidden states and attentions, by name, at no cost when not asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_tokens

import jaxgpt
from jaxgpt.model.cache import empty_cache
from jaxgpt.model.gpt import Block

TOKENS = random_tokens((2, 23))
BLOCK = ["blocks.{}.ln_1", "blocks.{}.attn.pattern", "blocks.{}.attn", "blocks.{}.ln_2", "blocks.{}.mlp", "blocks.{}"]


@pytest.fixture
def pair(hf_folder):
    folder, theirs = hf_folder()
    return jaxgpt.from_pretrained(folder), theirs


def test_streams_and_patterns_are_those_of_transformers(pair):
    model, theirs = pair
    logits, found = jax.jit(lambda model, tokens: model(tokens, capture=".*"))(model, TOKENS)
    names = ["tok_emb", "pos_emb", "embeddings", *(name.format(i) for i in range(2) for name in BLOCK), "ln_f"]
    assert sorted(found) == sorted(names)
    with torch.no_grad():
        out = theirs(torch.tensor(TOKENS, dtype=torch.long), output_hidden_states=True, output_attentions=True)
    expected = {"embeddings": out.hidden_states[0], "blocks.0": out.hidden_states[1], "ln_f": out.hidden_states[2]}
    expected |= {f"blocks.{i}.attn.pattern": pattern for i, pattern in enumerate(out.attentions)}
    for name, theirs_value in expected.items():
        assert np.abs(found[name] - theirs_value.numpy()).max() <= 1e-5, name
    assert np.abs(logits - out.logits.numpy()).max() <= 1e-5
    # the parts of a block add up to what it does to the stream
    total = found["embeddings"] + found["blocks.0.attn"] + found["blocks.0.mlp"]
    assert np.abs(total - found["blocks.0"]).max() <= 1e-5


def test_asking_changes_no_logit_and_not_asking_costs_nothing(pair):
    model, _ = pair
    plain, jaxpr = model(TOKENS), jax.make_jaxpr(model)(TOKENS)
    asked, found = model(TOKENS, capture=r"blocks\.\d+")
    assert list(found) == ["blocks.0", "blocks.1"]
    assert (asked == plain).all()
    captured = jax.make_jaxpr(lambda tokens: model(tokens, capture=r"blocks\.\d+|ln_f"))(TOKENS)
    assert len(captured.eqns) == len(jaxpr.eqns)  # what is returned is what was computed anyway


def test_a_stream_can_be_read_through_the_head(pair):
    model, _ = pair
    logits, found = model(TOKENS, capture=r"blocks\.1")
    assert (model.logits(found["blocks.1"]) == logits).all()


def test_patterns_are_distributions_over_the_past_in_any_dtype(hf_folder):
    model = jaxgpt.from_pretrained(hf_folder()[0], dtype=jnp.bfloat16)
    _, found = model(TOKENS, capture=r"blocks\.0\.attn\.pattern")
    pattern = found["blocks.0.attn.pattern"]
    assert pattern.shape == (2, 3, 23, 23)
    assert pattern.dtype == jnp.float32
    assert np.abs(pattern.sum(-1) - 1).max() <= 1e-6
    assert (pattern[..., ~np.tri(23, dtype=bool)] == 0).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("block.0", r"matches no name; names are tok_emb, .*blocks\.0\.attn\.pattern"),
        ("(", "not a regular expression"),
        (["ln_f"], "not a regular expression"),
    ],
)
def test_what_can_not_be_captured_is_refused(pair, names, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        pair[0](TOKENS, capture=names)


@pytest.mark.parametrize(
    "tokens",
    [TOKENS[0], TOKENS[0].tolist(), TOKENS[:, :0], np.zeros((1, 42), np.int32)],
    ids=["1-D", "list", "none", "long"],
)
def test_tokens_of_another_shape_are_refused(pair, tokens):
    with pytest.raises(jaxgpt.InputError, match=r"of shape \(B, T\)|do not fit"):
        pair[0](tokens)


def test_blocks_that_are_alike_are_traced_once(hf_folder, monkeypatch):
    """Of any number of blocks, in training, remat and generation; where each has a scale of its own, all are."""
    traced, call = [], Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda *args: traced.append(1) or call(*args))

    def count(function, *args) -> int:
        traced.clear()
        jax.clear_caches()
        jax.eval_shape(function, *args)
        return len(traced)

    model = jaxgpt.from_pretrained(hf_folder(n_layer=4, resid_pdrop=0.1)[0])
    key = jax.random.key(0)
    assert count(lambda: model(TOKENS, dropout_key=key)) == 1
    assert count(lambda: model(TOKENS, dropout_key=key, remat=True)) == 1
    assert count(lambda: model.step(TOKENS, empty_cache(model.config, jnp.zeros(2, jnp.int32), 40))) == 1
    assert count(lambda: model(TOKENS, capture=r"blocks\.1\.mlp")) == 2
    scaled = jaxgpt.from_pretrained(hf_folder("scaled", n_layer=4, scale_attn_by_inverse_layer_idx=True)[0])
    assert count(lambda: scaled(TOKENS)) == 4
