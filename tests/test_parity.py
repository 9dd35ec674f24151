"""The same numbers as PyTorch's: logits for every flag of the config, then gradients, then one optimizer step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import DIMS, random_tokens, torch_logits

import jaxgpt
from jaxgpt import convert, freeze, named_params, with_params
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.mapping import to_ours
from jaxgpt.model.attention import einsum_attention
from jaxgpt.model.dropout import Keys, dropout
from jaxgpt.training.step.optimizer import make_optimizer

FLAGS = [
    {},
    {"activation_function": "gelu"},
    {"activation_function": "relu"},
    {"activation_function": "silu"},
    {"activation_function": "swish"},
    {"activation_function": "tanh"},
    {"activation_function": "gelu_fast"},
    {"activation_function": "gelu_pytorch_tanh"},
    {"n_inner": None},
    {"layer_norm_epsilon": 0.1},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"tie_word_embeddings": False},
]


@pytest.mark.users_xla
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_logits_equal_transformers_over_the_whole_context(hf_folder, flags):
    folder, theirs = hf_folder(**flags)
    tokens = random_tokens((2, DIMS["n_positions"]))
    expected = torch_logits(theirs, tokens)
    logits = jax.jit(lambda m, t: m(t))(jaxgpt.from_pretrained(folder), tokens)
    assert logits.dtype == jnp.float32
    assert np.abs(expected).max() > 1  # a model that computes something
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-5


@pytest.mark.parametrize("flags", [f for f in FLAGS if f and "fast" not in str(f)], ids=str)
def test_every_flag_matters(hf_folder, flags):
    """Ignoring the flag would fail the test above, except for those that name what is computed anyway."""
    _, theirs = hf_folder(**flags)
    _, plain = hf_folder("plain")
    tokens = random_tokens((2, DIMS["n_positions"]))
    difference = np.abs(torch_logits(theirs, tokens) - torch_logits(plain, tokens)).max()
    same = flags in ({"reorder_and_upcast_attn": True}, {"activation_function": "gelu_pytorch_tanh"})
    assert (difference < 1e-5) == same


@pytest.mark.users_xla
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_torch(hf_folder, tied):
    folder, theirs = hf_folder(tie_word_embeddings=tied)
    tokens = random_tokens((2, DIMS["n_positions"]))
    batch = torch.tensor(tokens, dtype=torch.long)
    theirs(batch, labels=batch).loss.backward()
    model = jaxgpt.from_pretrained(folder)
    params = named_params(model)
    grads = jax.jit(jax.grad(lambda p: jaxgpt.next_token_loss(with_params(model, p), tokens).mean()))(params)
    expected = _as_ours({n: p.grad for n, p in theirs.named_parameters()}, model.config)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        scale = np.abs(expected[name]).max()
        assert scale > 1e-6, name
        if name.endswith("c_attn.bias"):  # the keys' bias cancels in the softmax: its true gradient is 0
            assert np.abs(expected[name][1]).max() < 1e-6 * max(1, scale)
        assert np.abs(np.asarray(grad) - expected[name]).max() <= 1e-4 * scale, name


@pytest.mark.parametrize("lr", [1e-4, pytest.param(1e-3, marks=pytest.mark.users_xla)])
def test_adamw_steps_equal_torch(hf_folder, lr):
    """At a fine-tuning rate with each side's own gradients; at ten times that with PyTorch's, three times in a row.

    Adam divides a gradient by its size, so that where it is all rounding error, so is the step.
    """
    folder, theirs = hf_folder()
    model = jaxgpt.from_pretrained(folder)
    params = named_params(model)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    their_tx = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    tx = make_optimizer(
        freeze.parse("full", model.config), params, optax.constant_schedule(lr), weight_decay=0.1, clip=1.0
    )
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its bias correction
        state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(1 if lr == 1e-4 else 3):
        tokens = random_tokens((4, DIMS["n_positions"]), seed=step)
        batch = torch.tensor(tokens, dtype=torch.long)
        their_tx.zero_grad()
        theirs(batch, labels=batch).loss.backward()
        if lr == 1e-4:
            gradient = jax.jit(jax.grad(lambda p, t: jaxgpt.next_token_loss(with_params(model, p), t).mean()))
            grads = gradient(params, tokens)
        else:
            grads = _as_ours({n: p.grad for n, p in theirs.named_parameters()}, model.config)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_tx.step()
        with jax.numpy_dtype_promotion("standard"):
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
    expected = _as_ours({n: p.detach() for n, p in theirs.named_parameters()}, model.config)
    for name, value in params.items():
        actual, wanted = np.asarray(value), expected[name]
        if lr == 1e-4 and name.endswith("c_attn.bias"):  # the keys' true gradient is 0: see the test above
            actual, wanted = actual[[0, 2]], wanted[[0, 2]]
        assert np.abs(actual - wanted).max() <= 1e-6, name


def test_outlier_dimensions_do_not_cancel_in_the_layer_norm(hf_folder):
    """GPT-2's residual stream has single dimensions in the thousands, where E[x^2] - E[x]^2 loses all digits."""
    folder, theirs = hf_folder()
    with torch.no_grad():
        theirs.transformer.wpe.weight[:, 7] += 3000
        theirs.transformer.wte.weight[:, 20] -= 1000
    theirs.save_pretrained(folder)
    tokens = random_tokens((1, DIMS["n_positions"]))
    expected = torch_logits(theirs, tokens)
    logits = np.asarray(jaxgpt.from_pretrained(folder)(tokens))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.users_xla
def test_the_bundled_model_equals_transformers(bundled_pair):
    ours, theirs = bundled_pair
    tokens = random_tokens((2, 256), vocab=4096)
    expected, logits = torch_logits(theirs, tokens), np.asarray(ours(tokens))
    assert np.abs(logits - expected).max() <= 2e-6 * np.abs(expected).max()
    assert jaxgpt.count_params(ours) == sum(p.numel() for p in theirs.parameters()) == 2_936_576


def test_the_124m_shape_counts_124439808_parameters():
    assert jaxgpt.count_params(jaxgpt.model.gpt.abstract(jaxgpt.GPTConfig())) == 124_439_808


def test_compute_in_bfloat16_keeps_float32_weights_and_logits(hf_folder):
    folder, theirs = hf_folder()
    model = jaxgpt.from_pretrained(folder, dtype="bfloat16")
    tokens = random_tokens((2, DIMS["n_positions"]))
    logits, expected = model(tokens), torch_logits(theirs, tokens)
    assert {p.dtype for p in named_params(model).values()} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    difference = np.abs(np.asarray(logits) - expected).max()
    assert 1e-4 < difference < 0.1 * np.abs(expected).max()


def test_no_position_sees_a_later_one(hf_folder):
    model = jaxgpt.from_pretrained(hf_folder()[0])
    tokens = random_tokens((1, 9))
    embedded = named_params(model)["tok_emb.embedding"]

    def logit(table, t):
        return with_params(model, named_params(model) | {"tok_emb.embedding": table})(tokens)[0, t, 5]

    for t in range(9):
        later = [i for i in tokens[0, t + 1 :] if i not in tokens[0, : t + 1] and i != 5]
        grad = np.asarray(jax.grad(logit)(embedded, t))
        assert np.abs(grad[tokens[0, t]]).max() > 0
        assert not np.abs(grad[later]).any()


def test_our_attention_equals_jax_nns():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 17, 3, 8)) for i in range(3))
    ours = einsum_attention(q, k, v, scale=0.3)
    theirs = jax.nn.dot_product_attention(q, k, v, scale=0.3, is_causal=True)
    assert np.abs(np.asarray(ours - theirs)).max() < 1e-6


def test_dropout_is_honoured_in_training_only(hf_folder):
    tokens = random_tokens((2, 20))
    for field in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        model = jaxgpt.from_pretrained(hf_folder(field, **{field: 0.5})[0])
        quiet, noisy = model(tokens), model(tokens, dropout_key=jax.random.key(0))
        assert np.abs(np.asarray(quiet - noisy)).max() > 0.1
        assert (noisy == model(tokens, dropout_key=jax.random.key(0))).all()
        assert (noisy != model(tokens, dropout_key=jax.random.key(1))).any()
    x = dropout(jnp.ones(100_000), 0.25, Keys(jax.random.key(0)))
    assert abs(float(x.mean()) - 1) < 0.01
    assert set(np.unique(np.asarray(x)).tolist()) == {0.0, float(np.float32(1 / 0.75))}


def test_dropout_of_attention_has_the_right_mean():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 6, 1, 4)) for i in range(3))
    draw = jax.vmap(lambda key: einsum_attention(q, k, v, scale=0.5, dropout_rate=0.3, keys=Keys(key)))
    mean = draw(jax.random.split(jax.random.key(9), 20_000)).mean(0)
    assert np.abs(np.asarray(mean - einsum_attention(q, k, v, scale=0.5))).max() < 0.05


@pytest.fixture(scope="module")
def bundled_pair():
    from conftest import TINY
    from transformers import GPT2LMHeadModel

    return jaxgpt.from_pretrained("tiny"), GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32).eval()


def _as_ours(tensors, config):
    """PyTorch's tensors under our names; the tables are judged by the logits above."""

    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    ours, same_config = to_ours(HF, tensors, config)
    assert same_config == config
    return {name: np.array(array) for name, array in ours.items()}  # a copy: PyTorch updates its own in place


def test_config_is_the_same_object_everywhere():
    assert jaxgpt.GPTConfig is convert.GPTConfig


def test_a_model_without_memory_has_the_shapes_of_one_with_it():
    for flags in ({}, {"tie_word_embeddings": False}, {"bias": False}):
        config = jaxgpt.GPTConfig(**(DIMS | flags))
        model = jaxgpt.GPT(config, rngs=jaxgpt.model.gpt.nnx.Rngs(0), dtype="bfloat16", param_dtype="float16")
        shapes = jaxgpt.model.gpt.abstract(config, dtype="bfloat16", param_dtype="float16")
        real, bare = jaxgpt.named_params(model), jaxgpt.named_params(shapes)
        assert {name: (p.shape, p.dtype) for name, p in real.items()} == {
            name: (p.shape, p.dtype) for name, p in bare.items()
        }
        assert shapes.dtype == model.dtype
        assert shapes is not jaxgpt.model.gpt.abstract(config, dtype="bfloat16", param_dtype="float16")
