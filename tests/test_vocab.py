"""Rows of the vocabulary: more for new tokens, padding that is no token, and a head of its own."""

import json
from dataclasses import replace

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_tokens, torch_logits, word_level
from runs import without_digests
from test_dialects import write_llmc
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.__main__ import describe
from jaxgpt.convert.mapping import same
from jaxgpt.loss import mask_padding
from jaxgpt.vocab import mark_padding


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["mean", "normal"])
def test_new_rows_start_at_the_mean_and_old_ones_stay(tmp_path, hf_folder, tied, init):
    folder, theirs = hf_folder(tie_word_embeddings=tied)
    model = jaxgpt.from_pretrained(folder)
    bigger = jaxgpt.resize_vocab(model, 112, init=init)
    assert (bigger.config.vocab_size, bigger.config.n_padding) == (112, 0)
    old, new = jaxgpt.named_params(model), jaxgpt.named_params(bigger)
    tables = [(old["tok_emb.embedding"], new["tok_emb.embedding"])]
    if not tied:
        tables.append((old["lm_head.kernel"].T, new["lm_head.kernel"].T))
    for before, after in tables:
        before, after = np.asarray(before), np.asarray(after)
        assert after.shape == (112, 36)
        assert np.array_equal(after[:97], before)
        distance = np.abs(after[97:] - before.mean(0)) / before.std(0)
        assert (distance.max() < 0.05) == (init == "mean")
        assert len(np.unique(after[97:], axis=0)) == 15
    tokens = random_tokens((1, 30))
    logits = np.asarray(bigger(tokens))
    assert np.abs(logits[..., :97] - torch_logits(theirs, tokens)).max() < 1e-5
    jaxgpt.save_pretrained(bigger, tmp_path / "bigger")
    exported = GPT2LMHeadModel.from_pretrained(tmp_path / "bigger", attn_implementation="eager").eval()
    assert np.abs(torch_logits(exported, tokens) - logits).max() < 1e-5


def padded(model, rows: int = 112, fill: float | None = None):
    """The model with padding up to `rows`, filled with a number: large ones would be seen, were they not masked."""
    bigger = jaxgpt.resize_vocab(model, model.config.n_tokens, pad_multiple=rows)
    params, n = jaxgpt.named_params(bigger), model.config.n_tokens
    if fill is not None:
        params["tok_emb.embedding"] = params["tok_emb.embedding"].at[n:].set(fill)
        if "lm_head.kernel" in params:
            params["lm_head.kernel"] = params["lm_head.kernel"].at[:, n:].set(fill)
    return jaxgpt.with_params(bigger, params)


def tables(model) -> list[np.ndarray]:
    """The rows `(V, D)` of the embedding, and of an untied head."""
    params = jaxgpt.named_params(model)
    found = [params["tok_emb.embedding"]] + [params[name].T for name in params if name == "lm_head.kernel"]
    return [np.asarray(table) for table in found]


# resize_vocab


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_padding_counts_as_new_and_has_no_part_in_the_mean(hf_folder, tied, dtype):
    model = jaxgpt.from_pretrained(hf_folder(tie_word_embeddings=tied)[0], param_dtype=dtype)
    clean = jaxgpt.resize_vocab(model, 105, pad_multiple=16)
    for fill in (1e6, float("nan")):
        again = jaxgpt.resize_vocab(padded(model, fill=fill), 105, pad_multiple=16)
        assert again.config == clean.config == replace(model.config, vocab_size=112, n_padding=7)
        assert all(same(a, b) for a, b in zip(tables(again), tables(clean), strict=True))
    for before, after in zip(tables(model), tables(clean), strict=True):
        assert after.shape == (112, 36)
        assert after.dtype == before.dtype == dtype
        assert same(after[:97], before)
        exact = before.astype(np.float64)
        noise = (after[97:105].astype(np.float64) - exact.mean(0)) / exact.std(0)
        assert 0 < np.abs(noise).max() < 0.05
        rounding = 2.0**-8 if dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(after[105:].astype(np.float64), np.tile(exact.mean(0), (7, 1)), rounding, 1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_noise_is_a_hundredth_of_each_dimensions_deviation_and_has_no_pattern(hf_folder, tied):
    model = jaxgpt.from_pretrained(hf_folder(tie_word_embeddings=tied)[0])
    params = jaxgpt.named_params(model)
    params["tok_emb.embedding"] *= jnp.geomspace(0.01, 100, 36)[None]  # dimensions that differ
    model = jaxgpt.with_params(model, params)
    noises = []
    for before, after in zip(tables(model), tables(jaxgpt.resize_vocab(model, 20_097)), strict=True):
        noise = (after[97:] - before.mean(0)) / before.std(0)
        assert np.abs(noise.std(0) - 0.01).max() < 0.01 * 0.03  # 20,000 draws: six standard errors
        assert np.abs(noise.mean(0)).max() < 0.01 * 0.05
        assert np.abs(np.corrcoef(noise.T) - np.eye(36)).max() < 0.05
        noises.append(noise)
    assert tied or abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.01


def test_equal_seeds_give_equal_rows_whatever_the_padding(hf_folder):
    model = jaxgpt.from_pretrained(hf_folder(tie_word_embeddings=False)[0])
    plain, again, more, other = (
        tables(jaxgpt.resize_vocab(model, 101, **settings))
        for settings in ({"seed": 5}, {"seed": 5}, {"seed": 5, "pad_multiple": 64}, {"seed": 6})
    )
    for a, b, c, d in zip(plain, again, more, other, strict=True):
        assert same(a, b)
        assert same(a, c[:101])
        assert (a[97:] != d[97:]).all(1).all()


def test_only_padding_is_ever_dropped(hf_folder):
    model = jaxgpt.from_pretrained(hf_folder()[0])
    wide = jaxgpt.resize_vocab(model, 97, pad_multiple=128)
    assert (wide.config.vocab_size, wide.config.n_padding, wide.config.n_tokens) == (128, 31, 97)
    narrow = jaxgpt.resize_vocab(wide, 98, pad_multiple=4)
    assert (narrow.config.vocab_size, narrow.config.n_padding) == (100, 2)
    assert same(tables(narrow)[0][:97], tables(model)[0])
    back = jaxgpt.resize_vocab(wide, 97)
    assert back.config == model.config
    assert same(tables(back)[0], tables(model)[0])
    assert jaxgpt.resize_vocab(wide, 97, pad_multiple=128) is wide
    tokens = random_tokens((2, 20))
    assert np.abs(np.asarray(wide(tokens))[..., :97] - np.asarray(model(tokens))).max() < 1e-6


def test_padding_is_never_likelier_than_the_average_token_to_a_program_that_does_not_mask_it(tmp_path, hf_folder):
    """By Jensen's inequality: a padded row's logit is the mean of the tokens' logits."""
    model = jaxgpt.from_pretrained(hf_folder()[0])
    jaxgpt.save_pretrained(jaxgpt.resize_vocab(model, 97, pad_multiple=128), tmp_path / "padded")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "padded", attn_implementation="eager").eval()
    p = np.exp(torch_logits(theirs, random_tokens((2, 30))).astype(np.float64))
    assert (p[..., 97:] <= p[..., :97].mean(-1, keepdims=True)).all()


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (96, {}, "has 97 tokens; resizing to 96 would delete trained rows"),
        (word_level({"a": 0, "b": 95}), {}, "has 97 tokens; resizing to 96 would delete trained rows"),
        (96, {"pad_multiple": 128}, "has 97 tokens; resizing to 96 would delete trained rows"),
        (0, {}, "a number of tokens from 1 to 2\\^31, not 0"),
        (-5, {}, "a number of tokens from 1 to 2\\^31, not -5"),
        (True, {}, "a number of tokens from 1 to 2\\^31, not True"),
        (99.0, {}, "a number of tokens from 1 to 2\\^31, not 99.0"),
        ("99", {}, "a number of tokens from 1 to 2\\^31, not '99'"),
        (None, {}, "a number of tokens from 1 to 2\\^31, not None"),
        (["a"] * 99, {}, "a number of tokens from 1 to 2\\^31, not \\['a'"),
        (2**31 + 1, {}, "a number of tokens from 1 to 2\\^31, not 2147483649"),
        (2**31, {"pad_multiple": 3}, "vocab_size must be an integer from 1 to 2\\^31"),
        (99, {"pad_multiple": 0}, "pad_multiple must be an integer from 1"),
        (99, {"pad_multiple": -8}, "pad_multiple must be an integer from 1"),
        (99, {"pad_multiple": True}, "pad_multiple must be an integer from 1"),
        (99, {"pad_multiple": 8.0}, "pad_multiple must be an integer from 1"),
        (99, {"pad_multiple": 2**40}, "pad_multiple must be an integer from 1"),
        (99, {"init": "zeros"}, "must be 'mean' or 'normal'"),
        (99, {"seed": -1}, "seed must be an integer from 0"),
        (99, {"seed": 2**32}, "seed must be an integer from 0"),
    ],
)
def test_what_can_not_be_resized_is_refused(hf_folder, size, settings, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.resize_vocab(jaxgpt.from_pretrained(hf_folder()[0]), size, **settings)


SHARDED = """
import sys
import jax, numpy as np
import jaxgpt
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jaxgpt.make_mesh("data=2,fsdp=4")
alone, spread = jaxgpt.untie_head(jaxgpt.from_pretrained(sys.argv[1])), jaxgpt.from_pretrained(sys.argv[1], mesh=mesh)
spread = jaxgpt.untie_head(spread)
rowwise = dict(jaxgpt.named_params(spread))
for name, spec in (("tok_emb.embedding", P("fsdp")), ("lm_head.kernel", P(None, "fsdp"))):
    rowwise[name] = jax.device_put(rowwise[name], NamedSharding(mesh, spec))
rowwise = jaxgpt.with_params(spread, rowwise)
expected = jaxgpt.named_params(jaxgpt.resize_vocab(alone, 4099, pad_multiple=16))
for model in (spread, rowwise):
    params = jaxgpt.named_params(jaxgpt.resize_vocab(model, 4099, pad_multiple=16))
    for name, spec in (("tok_emb.embedding", P(None, "fsdp")), ("lm_head.kernel", P("fsdp"))):
        a, b = np.asarray(expected[name]), np.asarray(params[name])
        assert np.allclose(a, b, rtol=0, atol=1e-6), name
        kept = (slice(None), slice(4096)) if name == "lm_head.kernel" else slice(4096)
        assert (a[kept] == b[kept]).all(), name
        if model is spread:
            assert params[name].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2), params[name].sharding
tokens = np.zeros((2, 9), np.int32)
losses = [jaxgpt.next_token_loss(jaxgpt.resize_vocab(m, 4096, pad_multiple=64 * 7), tokens) for m in (alone, spread)]
assert np.allclose(*map(np.asarray, losses), atol=1e-5)
print("resized")
"""


def test_what_is_split_over_devices_is_resized_there(small):
    done = forked.run(SHARDED, small, XLA_FLAGS=forked.simulated(8))
    assert done.stdout.strip() == "resized", done.stderr


# n_padding


@pytest.mark.parametrize("n_padding", [-1, 97, 10**30, True, None, 1.0, "1"])
def test_no_n_padding(hf_folder, n_padding):
    message = "n_padding must be an integer from 0 to vocab_size - 1"
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.GPTConfig(vocab_size=97, n_padding=n_padding)
    folder, _ = hf_folder()
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"n_padding": n_padding}))
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.from_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_n_padding_survives_where_there_is_a_place_for_it(tmp_path, hf_folder, tied):
    plain = jaxgpt.from_pretrained(hf_folder(tie_word_embeddings=tied)[0])
    model, tokens = padded(plain), random_tokens((2, 30))
    jaxgpt.save(model, tmp_path / "orbax")
    jaxgpt.save_pretrained(model, tmp_path / "padded")
    jaxgpt.save_pretrained(plain, tmp_path / "plain")
    assert json.loads((tmp_path / "padded" / "config.json").read_text())["n_padding"] == 15
    assert "n_padding" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    for name in ("orbax", "padded"):
        assert jaxgpt.from_pretrained(tmp_path / name).config == model.config
    theirs, info = GPT2LMHeadModel.from_pretrained(
        tmp_path / "padded", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert np.abs(torch_logits(theirs.eval(), tokens) - np.asarray(model(tokens))).max() < 1e-5  # all 112 rows
    assert "vocabulary 112 (15 of padding), " in describe(convert.read(tmp_path / "padded"))
    theirs.save_pretrained(tmp_path / "theirs")
    assert jaxgpt.from_pretrained(tmp_path / "theirs").config == model.config


@pytest.mark.parametrize("dialect", ["nanogpt", "lesson"])
def test_n_padding_is_lost_in_a_pt_file_and_can_be_marked_again(tmp_path, hf_folder, dialect):
    flags = {"n_inner": None} | ({"activation_function": "gelu"} if dialect == "nanogpt" else {})
    model = padded(jaxgpt.from_pretrained(hf_folder(**flags)[0]))
    wanted = {"n_head": 3, "activation": model.config.activation_function} if dialect == "lesson" else {}
    jaxgpt.save_pretrained(model, tmp_path / "model.pt", dialect=dialect)
    again = jaxgpt.from_pretrained(tmp_path / "model.pt", **wanted)
    assert (again.config.vocab_size, again.config.n_padding) == (112, 0)
    marked = mark_padding(again, 97)
    assert (marked.config.vocab_size, marked.config.n_padding) == (112, 15)
    tokens = random_tokens((2, 20))
    assert np.array_equal(jaxgpt.next_token_loss(marked, tokens), jaxgpt.next_token_loss(model, tokens))


def test_a_checkpoint_of_a_time_without_n_padding_is_read(tmp_path, hf_folder):
    model = jaxgpt.from_pretrained(hf_folder()[0])
    jaxgpt.save(model, tmp_path / "old")
    without_digests(tmp_path / "old")
    file = tmp_path / "old" / "config" / "metadata"
    fields = json.loads(file.read_text())
    assert fields.pop("n_padding") == 0
    file.write_text(json.dumps(fields))
    assert jaxgpt.load(tmp_path / "old").config == model.config
    for wrong in ({k: v for k, v in fields.items() if k != "bias"}, fields | {"more": 1}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(jaxgpt.InputError, match="its fields must be"):
            jaxgpt.load(tmp_path / "old")


def test_llmcs_header_tells_its_padding(tmp_path, hf_folder):
    write_llmc(tmp_path / "gpt2.bin", hf_folder(n_inner=None)[1], 3)
    config = jaxgpt.from_pretrained(tmp_path / "gpt2.bin").config
    assert (config.vocab_size, config.n_padding) == (128, 31)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fill", [None, 50.0])
def test_loss_and_gradients_are_those_of_the_model_without_padding(hf_folder, tied, fill):
    model = jaxgpt.from_pretrained(hf_folder(n_layer=1, tie_word_embeddings=tied)[0])
    wide, tokens = padded(model, fill=fill), random_tokens((2, 30))

    def loss_and_grads(model):
        def loss_of(params):
            losses = jaxgpt.next_token_loss(jaxgpt.with_params(model, params), tokens)
            return losses.mean(), losses

        grads, losses = jax.jit(jax.grad(loss_of, has_aux=True))(jaxgpt.named_params(model))
        return np.asarray(losses), grads

    (ours, grads), (expected, plain) = loss_and_grads(wide), loss_and_grads(model)
    assert np.abs(ours - expected).max() <= 1e-6
    if fill is not None:  # the masks matter: without them the padding has nearly all of the probability
        raw = optax.softmax_cross_entropy_with_integer_labels(wide(tokens[:, :-1]), tokens[:, 1:])
        assert np.abs(np.asarray(raw) - expected).max() > 1
    for name, grad in grads.items():
        grad, cut = np.asarray(grad), {"tok_emb.embedding": np.s_[:97], "lm_head.kernel": np.s_[:, :97]}.get(name, ...)
        assert np.abs(grad[cut] - np.asarray(plain[name])).max() <= 1e-6, name
        rest = {"tok_emb.embedding": np.s_[97:], "lm_head.kernel": np.s_[:, 97:]}.get(name)
        assert rest is None or (grad[rest].size > 0 and (grad[rest] == 0).all()), name


def test_logits_stay_raw_and_nothing_is_added_where_nothing_is_padded(hf_folder):
    model = jaxgpt.from_pretrained(hf_folder()[0])
    logits = padded(model, fill=1.0)(random_tokens((1, 5)))
    assert np.isfinite(np.asarray(logits)).all()
    assert mask_padding(logits, replace(model.config, vocab_size=112)) is logits
    masked = np.asarray(mask_padding(logits, replace(model.config, vocab_size=112, n_padding=15)))
    assert same(masked[..., :97], np.asarray(logits)[..., :97])
    assert (masked[..., 97:] == -np.inf).all()


def test_marking_changes_the_config_and_nothing_else(hf_folder):
    model = jaxgpt.from_pretrained(hf_folder(tie_word_embeddings=False)[0])
    marked = mark_padding(model, 90)
    assert marked.config == replace(model.config, n_padding=7)
    assert model.config.n_padding == 0
    before, after = jaxgpt.named_params(model), jaxgpt.named_params(marked)
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert mark_padding(model, 97) is model
    assert mark_padding(marked, word_level({"a": 0, "b": 89})) is marked
    for wrong, size in ((model, 98), (marked, 91), (marked, word_level({"a": 0, "b": 90}))):
        with pytest.raises(jaxgpt.InputError, match=r"tokens, the model only 9[07] embedding rows for tokens"):
            mark_padding(wrong, size)
    with pytest.raises(jaxgpt.InputError, match="a number of tokens from 1 to 2\\^31, not 0"):
        mark_padding(model, 0)


# untie_head


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_untied_head_is_a_copy_that_shares_no_memory(hf_folder, dtype):
    model = jaxgpt.from_pretrained(hf_folder()[0], param_dtype=dtype)
    untied, tokens = jaxgpt.untie_head(model), random_tokens((2, 30))
    assert untied.config == replace(model.config, tie_word_embeddings=False)
    assert model.config.tie_word_embeddings
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm of bfloat16 promotes
        assert np.array_equal(untied(tokens), model(tokens))
    params = jaxgpt.named_params(untied)
    embedding, head = params["tok_emb.embedding"], params["lm_head.kernel"]
    assert (head.shape, head.dtype) == ((36, 97), dtype)
    assert embedding.unsafe_buffer_pointer() != head.unsafe_buffer_pointer()
    expected = np.array(embedding)
    embedding.delete()  # as donation does
    assert same(np.asarray(head).T, expected)
    assert jaxgpt.untie_head(untied) is untied


def test_an_untied_head_has_the_head_part_of_the_tied_gradient(hf_folder):
    """And the embedding the rest of it: the two are trained apart from now on."""
    model, tokens = jaxgpt.from_pretrained(hf_folder()[0]), random_tokens((2, 30))
    tied, untied = (
        jax.grad(lambda p, m=m: jaxgpt.next_token_loss(jaxgpt.with_params(m, p), tokens).mean())(jaxgpt.named_params(m))
        for m in (model, jaxgpt.untie_head(model))
    )
    parts = np.asarray(untied["tok_emb.embedding"]), np.asarray(untied["lm_head.kernel"]).T
    assert np.abs(parts[0] + parts[1] - np.asarray(tied["tok_emb.embedding"])).max() < 1e-6
    assert min(np.abs(part).max() for part in parts) > 1e-3


def test_an_untied_head_is_untied_in_transformers_too(tmp_path, hf_folder):
    model, tokens = padded(jaxgpt.untie_head(jaxgpt.from_pretrained(hf_folder()[0]))), random_tokens((2, 30))
    params = jaxgpt.named_params(model)
    params["lm_head.kernel"] += 0.01  # trained apart
    for name, trained in (("apart", jaxgpt.with_params(model, params)), ("equal", model)):
        jaxgpt.save_pretrained(trained, tmp_path / name)
        theirs, info = GPT2LMHeadModel.from_pretrained(
            tmp_path / name, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(info.values()), info
        assert theirs.lm_head.weight.data_ptr() != theirs.transformer.wte.weight.data_ptr()
        assert np.abs(torch_logits(theirs.eval(), tokens) - np.asarray(trained(tokens))).max() <= 1e-5
        again = jaxgpt.from_pretrained(tmp_path / name)
        assert again.config == trained.config
        assert all(same(a, b) for a, b in zip(tables(again), tables(trained), strict=True))
