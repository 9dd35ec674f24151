"""Cached decoding: the logits of the whole forward pass, for every prompt length, bucket and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_tokens

import jaxgpt
from jaxgpt.generation.decode import decode, prefill
from jaxgpt.generation.generate import Stream
from jaxgpt.model.cache import empty_cache


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from conftest import random_hf

    folder = tmp_path_factory.mktemp("cache") / "hf"
    random_hf().save_pretrained(folder)
    return jaxgpt.from_pretrained(folder)


@pytest.mark.users_xla
def test_token_by_token_gives_the_logits_of_the_whole(model):
    """Of 41 tokens, the first n at once and the rest one at a time."""
    tokens = random_tokens((2, 41))
    whole = np.asarray(model(tokens))
    step = jax.jit(lambda tokens, cache: model.step(tokens, cache))
    for n in (1, 7, 20, 40):
        _, cache = step(tokens[:, :n], empty_cache(model.config, jnp.zeros(2, jnp.int32), 48))
        for t in range(n, 41):
            logits, cache = step(tokens[:, t : t + 1], cache)
            assert np.abs(logits - whole[:, t]).max() <= 1e-5, (n, t)
        assert int(cache.length) == 41


def test_a_prompt_of_any_length_has_the_logits_of_the_whole(hf_folder):
    """Of one block, which is compiled for every length; `test_token_by_token…` has more blocks."""
    model = jaxgpt.from_pretrained(hf_folder(n_layer=1)[0])
    tokens = random_tokens((2, 41))
    whole = np.asarray(model(tokens))
    step = jax.jit(lambda tokens, cache: model.step(tokens, cache))
    for n in range(1, 42):
        logits, _ = step(tokens[:, :n], empty_cache(model.config, jnp.zeros(2, jnp.int32), 48))
        assert np.abs(logits - whole[:, n - 1]).max() <= 1e-5, n


@pytest.mark.users_xla
def test_padding_before_a_prompt_changes_no_logit(model):
    """Rows of unequal length in one batch, each padded on the left with tokens that must not be seen."""
    lengths, slots = [3, 11, 17], 24
    tokens = random_tokens((3, 17), seed=5)
    texts = [random_tokens((n,), seed=n) for n in lengths]
    for row, text in enumerate(texts):
        tokens[row, 17 - len(text) :] = text
    start = jnp.asarray([17 - n for n in lengths], jnp.int32)
    step = jax.jit(lambda tokens, cache: model.step(tokens, cache))
    logits, cache = step(tokens, empty_cache(model.config, start, slots))
    more = random_tokens((3, 5), seed=9)
    alone = [np.asarray(model(np.concatenate([text, more[row]])[None]))[0] for row, text in enumerate(texts)]
    for i in range(6):
        for row, n in enumerate(lengths):
            assert np.abs(logits[row] - alone[row][n - 1 + i]).max() <= 1e-5, (row, i)
        if i < 5:
            logits, cache = step(more[:, i : i + 1], cache)


def test_lengths_within_a_bucket_and_other_numbers_of_a_sampler_compile_nothing(model):
    prefill.clear_cache(), decode.clear_cache()
    settings = {"top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
    for length, new, temperature in ((1, 9, 0.5), (5, 16, 2), (16, 3, 1.5)):
        prompt = random_tokens((1, length))
        jaxgpt.generate(model, prompt, max_new_tokens=new, temperature=temperature, **settings)
    assert (prefill._cache_size(), decode._cache_size()) == (1, 1)
    jaxgpt.generate(model, random_tokens((1, 17)), max_new_tokens=9, temperature=1.0, **settings)
    assert (prefill._cache_size(), decode._cache_size()) == (2, 2)


def test_decoding_stops_when_every_row_has_ended(model):
    """A row whose first answer is the end token is answered by the prompt's pass alone."""
    prompts = random_tokens((2, 4))
    free = jaxgpt.generate(model, prompts, max_new_tokens=20)
    for row in range(2):
        stream = Stream(model, prompts[row : row + 1], max_new_tokens=20, eos_id=int(free[row, 4]), every=5)
        assert [new.shape for new in stream] == [(1, 1)]
    assert [new.shape for new in Stream(model, prompts, max_new_tokens=13, every=5)] == [(2, 1), (2, 5), (2, 5), (2, 2)]


def test_new_tokens_come_as_they_would_all_at_once_and_rows_can_be_ended(model):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    whole = jaxgpt.generate(model, prompts, max_new_tokens=20)
    stream = Stream(model, prompts, max_new_tokens=20, every=4)
    pieces = []
    for i, new in enumerate(stream):
        pieces.append(new)
        stream.end(np.asarray([True, i == 2]))
    assert sum(piece.shape[1] for piece in pieces) == 9  # 1 + 4 + 4, and then every row was ended
    assert (np.concatenate(pieces, 1)[1] == whole[1][5:14]).all()
