"""Several texts in a row, padding, and what the loss can be asked for: the numbers are those of each text alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import DIMS, random_tokens

import jaxgpt
from jaxgpt import named_params, with_params
from jaxgpt.model import segments

T = DIMS["n_positions"]
logits_of = jax.jit(lambda model, tokens, segments=None: model(tokens, segments=segments))


@pytest.fixture
def model(hf_folder):
    return jaxgpt.from_pretrained(hf_folder()[0])


def row_of(lengths: list[int]) -> np.ndarray:
    """Segment numbers of such lengths one after the other; a negative length is padding."""
    return np.concatenate([np.full(abs(n), i * (n > 0)) for i, n in enumerate(lengths, 1)]).astype(np.int32)[None]


ROWS = [[T], [5, 7, 1, T - 13], [1] * T, [-3, 20, T - 23], [20, -3, T - 23], [T - 9, -9], [-(T - 1), 1]]


@pytest.mark.users_xla
@pytest.mark.parametrize("lengths", ROWS, ids=str)
def test_texts_in_one_row_have_the_logits_that_they_have_alone(model, lengths):
    row, tokens = row_of(lengths), random_tokens((1, T))
    together = np.asarray(logits_of(model, tokens, row))
    begin = 0
    for n in lengths:
        if n > 0:
            alone = np.asarray(logits_of(model, tokens[:, begin : begin + n]))
            assert np.abs(together[:, begin : begin + n] - alone).max() <= 1e-5
        begin += abs(n)
    assert np.isfinite(together).all()


@pytest.mark.parametrize("pad", [1, 4, T - 3])
def test_padding_on_either_side_changes_no_logit(model, pad):
    n = T - pad
    tokens, padding = random_tokens((3, n)), random_tokens((3, pad), seed=5)
    expected = np.asarray(logits_of(model, tokens))
    for left in (True, False):
        parts, marks = [tokens, padding], [np.ones((3, n), np.int32), np.zeros((3, pad), np.int32)]
        if left:
            parts, marks = parts[::-1], marks[::-1]
        padded = logits_of(model, np.concatenate(parts, 1), np.concatenate(marks, 1))
        found = np.asarray(padded)[:, pad:] if left else np.asarray(padded)[:, :n]
        assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.users_xla
def test_no_gradient_crosses_from_one_text_to_another(model):
    row, tokens = jnp.asarray(row_of([10, -4, T - 14])), random_tokens((1, T))
    embedded = {}

    def late_stream(offsets):
        def shifted(ids):
            return embedded["real"](ids) + offsets

        embedded["real"] = model.tok_emb
        changed = with_params(model, named_params(model))
        changed.tok_emb = shifted
        positions = segments.positions(row)
        x = changed.hidden(tokens, positions, jaxgpt.model.capture.ForwardContext(segments=row))
        return jnp.sum(x[:, 14 + 5])

    reached = np.abs(np.asarray(jax.grad(late_stream)(jnp.zeros((1, T, DIMS["n_embd"]))))).sum((0, 2)) > 0
    assert reached.nonzero()[0].tolist() == list(range(14, 20))


def test_positions_begin_anew_in_each_segment():
    row = jnp.asarray([[3, 3, 3, 0, 0, 7, 3, 3], [0, 0, 1, 1, 1, 1, 1, 1]])
    assert segments.positions(row).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("dropout", [False, True])
def test_rematerialised_blocks_have_the_same_gradients_and_keep_little_for_them(hf_folder, dropout):
    """What is kept is counted before XLA: its CPU backend drops the barriers that make it matter."""
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.3 * dropout)
    model = jaxgpt.from_pretrained(hf_folder(n_layer=3, **rates)[0])
    tokens, key = random_tokens((8, T)), jax.random.key(0) if dropout else None

    def loss_of(remat):
        def loss(params):
            found = jaxgpt.next_token_loss(with_params(model, params), tokens, dropout_key=key, remat=remat)
            return found.mean()

        return loss

    plain, again = (jax.jit(jax.value_and_grad(loss_of(remat)))(named_params(model)) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-6 * max(1, np.abs(np.asarray(a)).max())

    def kept(remat):
        residuals = jax.eval_shape(lambda p: jax.vjp(loss_of(remat), p)[1], named_params(model))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    assert kept(True) < 0.4 * kept(False)


@pytest.mark.parametrize("n_padding", [0, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_pytorch_s(hf_folder, smoothing, n_padding):
    model = jaxgpt.from_pretrained(hf_folder()[0])
    tokens = random_tokens((3, T), vocab=97 - n_padding)
    if n_padding:
        model = _padded(model, n_padding)
    logits = torch.tensor(np.asarray(model(tokens[:, :-1])))[..., : 97 - n_padding]
    theirs = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 97 - n_padding), torch.tensor(tokens[:, 1:].reshape(-1)).long(),
        label_smoothing=smoothing, reduction="none",
    )  # fmt: skip
    ours = jaxgpt.next_token_loss(model, tokens, label_smoothing=smoothing)
    assert np.abs(np.asarray(ours).reshape(-1) - theirs.numpy()).max() <= 1e-5


def _padded(model, n):
    copy = with_params(model, named_params(model))
    copy.config = dataclasses.replace(model.config, n_padding=n)
    return copy
