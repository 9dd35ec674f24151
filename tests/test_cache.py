"""Cached decoding: the logits of the whole forward pass, for every prompt length, bucket and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_tokens

import jaxgpt
from jaxgpt.cache import empty_cache
from jaxgpt.generate import _generate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from conftest import random_hf

    folder = tmp_path_factory.mktemp("cache") / "hf"
    random_hf().save_pretrained(folder)
    return jaxgpt.from_pretrained(folder)


def test_token_by_token_gives_the_logits_of_the_whole_for_every_prompt_length(model):
    """Of 41 tokens, the first n at once and the rest one at a time, for n from 1 to the whole context."""
    tokens = random_tokens((2, 41))
    whole = np.asarray(model(tokens))
    step = jax.jit(lambda tokens, cache: model.step(tokens, cache))
    for n in range(1, 42):
        logits, cache = step(tokens[:, :n], empty_cache(model.config, jnp.zeros(2, jnp.int32), 48))
        assert np.abs(logits - whole[:, n - 1]).max() <= 1e-5, n
        if n in (1, 7, 20, 40):
            for t in range(n, 41):
                logits, cache = step(tokens[:, t : t + 1], cache)
                assert np.abs(logits - whole[:, t]).max() <= 1e-5, (n, t)
            assert int(cache.length) == 41


def test_padding_before_a_prompt_changes_no_logit(model):
    """Rows of unequal length in one batch, each padded on the left with tokens that must not be seen."""
    lengths, slots = [3, 11, 17], 24
    tokens = random_tokens((3, 17), seed=5)
    texts = [random_tokens((n,), seed=n) for n in lengths]
    for row, text in enumerate(texts):
        tokens[row, 17 - len(text) :] = text
    start = jnp.asarray([17 - n for n in lengths], jnp.int32)
    logits, cache = model.step(tokens, empty_cache(model.config, start, slots))
    more = random_tokens((3, 5), seed=9)
    for i in range(6):
        for row, text in enumerate(texts):
            alone = model(np.concatenate([text, more[row, :i]])[None])[0, -1]
            assert np.abs(logits[row] - alone).max() <= 1e-5, (row, i)
        if i < 5:
            logits, cache = model.step(more[:, i : i + 1], cache)


def test_another_length_of_prompt_within_a_bucket_compiles_nothing(model):
    _generate.clear_cache()
    for length in (1, 5, 16):
        jaxgpt.generate(model, random_tokens((1, length)), max_new_tokens=9)
    assert _generate._cache_size() == 1
    jaxgpt.generate(model, random_tokens((1, 17)), max_new_tokens=9)
    assert _generate._cache_size() == 2


def test_the_loop_stops_when_every_row_has_ended(model):
    """A model whose every answer is the end token: nothing but it follows, and quickly."""
    prompts = random_tokens((2, 4))
    free = np.asarray(jaxgpt.generate(model, prompts, max_new_tokens=20))
    for row in range(2):
        end = int(free[row, 4])
        stopped = np.asarray(jaxgpt.generate(model, prompts[row : row + 1], max_new_tokens=20, eos_id=end))
        assert (stopped[0, 4:] == end).all()
        assert (stopped[0, :4] == prompts[row]).all()
