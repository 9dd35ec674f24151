"""Generation: transformers' tokens when greedy, the right distribution when not, refusals on the host."""

import numpy as np
import pytest
import torch
from conftest import TINY, random_tokens, run
from transformers import GPT2LMHeadModel

import jaxgpt


@pytest.fixture(scope="module")
def tiny():
    return jaxgpt.from_pretrained("tiny"), GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32).eval()


def test_greedy_text_equals_transformers_up_to_the_end_of_the_context(tiny):
    ours, theirs = tiny
    tokenizer = jaxgpt.load_tokenizer("tiny")
    prompt = np.asarray(tokenizer(["In the beginning", "My fellow citizens"], padding=False)["input_ids"][:1])
    room = 256 - prompt.shape[1]
    settings = {"max_new_tokens": room, "do_sample": False, "eos_token_id": None, "pad_token_id": 4095}
    expected = theirs.generate(torch.tensor(prompt), **settings)
    tokens = jaxgpt.generate(ours, prompt, max_new_tokens=room)
    assert tokens.shape == (1, 256)
    assert (np.asarray(tokens) == expected.numpy()).all()


def test_rows_of_a_batch_do_not_see_each_other(tiny):
    prompts = random_tokens((3, 5), vocab=4096)
    together = np.asarray(jaxgpt.generate(tiny[0], prompts, max_new_tokens=20))
    alone = [np.asarray(jaxgpt.generate(tiny[0], p[None], max_new_tokens=20))[0] for p in prompts]
    assert (together == np.stack(alone)).all()


def test_after_the_end_token_only_the_end_token_follows(tiny):
    prompts = random_tokens((2, 5), vocab=4096)
    free = np.asarray(jaxgpt.generate(tiny[0], prompts, max_new_tokens=30))
    end = int(free[0, 5 + 7])
    stopped = np.asarray(jaxgpt.generate(tiny[0], prompts, max_new_tokens=30, eos_id=end))
    for before, after in zip(free, stopped, strict=True):
        hits = np.flatnonzero(before[5:] == end)
        cut = 5 + hits[0] + 1 if hits.size else len(before)
        assert (after[:cut] == before[:cut]).all()
        assert (after[cut:] == end).all()


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8, "temperature": 2.0}]
)
def test_draws_follow_the_exact_distribution(hf_folder, settings):
    """Chi-squared over 100,000 draws of one token, against probabilities computed in NumPy."""
    settings = {"temperature": 1.0} | settings
    model = jaxgpt.from_pretrained(hf_folder()[0])
    prompt, draws = random_tokens((1, 5)), 100_000
    tokens = jaxgpt.generate(model, np.repeat(prompt, draws, 0), max_new_tokens=1, seed=3, **settings)
    counts = np.bincount(np.asarray(tokens)[:, -1], minlength=97)
    p = probabilities(np.asarray(model(prompt))[0, -1].astype(np.float64), **settings)
    assert counts[p == 0].sum() == 0
    often = p * draws >= 20
    observed, expected = counts[often], p[often] * draws
    if (~often & (p > 0)).any():
        observed, expected = np.append(observed, counts[~often].sum()), np.append(expected, p[~often].sum() * draws)
    freedom = len(expected) - 1
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5, (chi2, freedom)  # four standard deviations


def probabilities(logits, temperature, top_k=None, top_p=1.0):
    order = np.argsort(-logits, kind="stable")[:top_k]
    p = np.exp((logits[order] - logits.max()) / temperature)
    p /= p.sum()
    p[np.cumsum(p) - p >= top_p] = 0
    full = np.zeros_like(logits)
    full[order] = p / p.sum()
    return full


def test_equal_seeds_give_equal_texts_and_other_seeds_others(tiny):
    prompt = random_tokens((1, 5), vocab=4096)
    settings = {"max_new_tokens": 20, "temperature": 1.0}
    texts = [np.asarray(jaxgpt.generate(tiny[0], prompt, seed=seed, **settings)) for seed in (1, 1, 2)]
    assert (texts[0] == texts[1]).all()
    assert (texts[0] != texts[2]).any()


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([[]], {}, "non-empty"),
        ([1, 2], {}, "non-empty"),
        ([[1, 4096]], {}, "the model has 4096 rows"),
        ([[-1]], {}, "the model has 4096 rows"),
        (
            [[1]],
            {"max_new_tokens": 256},
            "max_new_tokens must be from 0 to 255, not 256: the prompt has 1 tokens, the context 256",
        ),
        ([[1]], {"temperature": -1}, "temperature must be"),
        ([[1]], {"temperature": float("nan")}, "temperature must be"),
        ([[1]], {"seed": -1}, "seed must be"),
        ([[1]], {"seed": 10**20}, "seed must be"),
        ([[1]], {"top_k": 0}, "top_k must be at least 1"),
        ([[1]], {"top_p": 0.0}, "top_p must be above 0"),
    ],
)
def test_what_can_not_be_generated_is_refused(tiny, prompt, settings, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.generate(tiny[0], np.asarray(prompt, np.int32), **{"max_new_tokens": 3, **settings})


def test_the_command_line():
    text = run("jaxgpt", "generate", "tiny", "--prompt=In the beginning", "--max-new-tokens=12").stdout
    assert text.startswith("In the beginning")
    assert len(text) > len("In the beginning\n")
    refused = run("jaxgpt", "generate", "nowhere/to/be", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
