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


def test_an_edit_replaces_a_value_for_all_that_follows(pair):
    """Activation patching: what was captured of another text, put in its place, gives that text's logits."""
    model, _ = pair
    others = random_tokens((2, 23), seed=5)
    wanted, of_other = model(others, capture=".*")
    for name in ("embeddings", "blocks.0", "blocks.1"):
        logits = model(TOKENS, edit={name: lambda value, name=name: of_other[name]})
        assert np.abs(logits - wanted).max() <= 1e-5, name
    # a part is not all of it: the rest of the stream is its own
    logits, found = model(
        TOKENS, capture=r"blocks\.0(\.mlp)?", edit={"blocks.0.mlp": lambda _: of_other["blocks.0.mlp"]}
    )
    assert (found["blocks.0.mlp"] == of_other["blocks.0.mlp"]).all()
    assert not np.allclose(logits, wanted)
    _, plain = model(TOKENS, capture=r"blocks\.0(\.mlp)?")
    assert np.abs(found["blocks.0"] - (plain["blocks.0"] - plain["blocks.0.mlp"] + found["blocks.0.mlp"])).max() <= 1e-5


def test_an_edited_pattern_is_what_values_are_mixed_by(pair):
    model, _ = pair
    name = "blocks.1.attn.pattern"
    plain, found = model(TOKENS, capture=r"blocks\.1\.attn.*")
    same = model(TOKENS, edit={name: lambda pattern: pattern + 0})
    assert np.abs(same - plain).max() <= 1e-5

    def first_head_looks_at_itself(pattern):
        return pattern.at[:, 0].set(jnp.eye(pattern.shape[-1]))

    def loss(scale):
        logits, edited = model(
            TOKENS, capture=r"blocks\.1\.attn.*", edit={name: lambda p: scale * first_head_looks_at_itself(p)}
        )
        return logits.sum(), edited

    (_, edited), gradient = jax.value_and_grad(loss, has_aux=True)(1.0)  # under a trace too
    assert (edited[name][:, 0] == jnp.eye(23)[None]).all()
    assert (edited[name][:, 1:] == found[name][:, 1:]).all()
    assert not np.allclose(edited["blocks.1.attn"], found["blocks.1.attn"])
    assert gradient != 0


def test_edits_work_in_a_jit_and_for_every_name_and_cost_nothing_when_not_asked_for(pair):
    model, _ = pair
    _, found = model(TOKENS, capture=".*")
    before = len(jax.make_jaxpr(model)(TOKENS).eqns)
    for name in found:
        zeroed = jax.jit(lambda model, tokens, name=name: model(tokens, edit={name: jnp.zeros_like}))(model, TOKENS)
        assert not np.allclose(zeroed, model(TOKENS)), name
    assert len(jax.make_jaxpr(model)(TOKENS).eqns) == before


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"blocks.7": lambda x: x}, r"edit='blocks.7' is no name: did you mean blocks\.[01]\?; names are tok_emb, "),
        ({"blocks.1": lambda x: x[:1]}, r"edit='blocks.1': must return an array of shape \(2, 23, \d+\), not \(1, 23"),
        ({"blocks.1": lambda x: None}, r"must return an array of shape .*, not NoneType"),
        ({"blocks.1": 0.0}, r"edit must be a dictionary of functions"),
        (lambda x: x, r"edit must be a dictionary of functions"),
    ],
)
def test_mistakes_in_an_edit_are_named(pair, edit, says):
    with pytest.raises(jaxgpt.InputError, match=says):
        pair[0](TOKENS, edit=edit)


def test_methods_of_other_libraries_are_named_as_functions(pair):
    model, _ = pair
    with pytest.raises(AttributeError, match=r"GPT has no attribute 'generate': call jaxgpt\.generate\(model, tokens"):
        model.generate  # noqa: B018
    with pytest.raises(AttributeError, match=r"call jaxgpt\.from_pretrained\(source\)"):
        jaxgpt.GPT.from_pretrained  # noqa: B018
    assert not hasattr(model, "save_pretrained")
    assert not hasattr(model, "anything")
    assert set(dir(jaxgpt)) == {*jaxgpt.__all__, "__version__"}
