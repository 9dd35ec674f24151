"""Generation: transformers' tokens when greedy, the right distribution when not, refusals on the host."""

import numpy as np
import pytest
import torch
from conftest import call, random_hf, random_tokens, run, write_cut
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt.params import named_params, with_params


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A folder with half of the context of the usual one, which PyTorch takes long to fill."""
    return write_cut(tmp_path_factory.mktemp("half") / "hf", 128)


@pytest.fixture(scope="module")
def tiny(cut):
    """Three blocks of the bundled model, here and in PyTorch."""
    return jaxgpt.from_pretrained(cut), GPT2LMHeadModel.from_pretrained(cut, dtype=torch.float32).eval()


PROMPTS = ["In the beginning", "My fellow citizens, it is", "A", "The king said unto his servants: bring me the book"]


def test_greedy_text_equals_transformers_up_to_the_end_of_the_context(tiny):
    ours, theirs = tiny
    prompt = np.asarray(jaxgpt.load_tokenizer("tiny")(PROMPTS[:1])["input_ids"])
    expected = greedy(theirs, prompt, max_new_tokens=128 - prompt.shape[1])
    tokens = jaxgpt.generate(ours, prompt, max_new_tokens=128 - prompt.shape[1])
    assert tokens.shape == (1, 128)
    assert (tokens == expected).all()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_of_unequal_prompts_equals_transformers_for_100_tokens(tiny, penalty):
    """One batch against one prompt at a time, and with the repetition penalty, which must not see padding."""
    ours, theirs = tiny
    prompts = jaxgpt.load_tokenizer("tiny")(PROMPTS)["input_ids"]
    assert len({len(prompt) for prompt in prompts}) == 4
    rows = jaxgpt.generate(ours, prompts, max_new_tokens=100, repetition_penalty=penalty)
    for prompt, row in zip(prompts, rows, strict=True):
        assert (row == greedy(theirs, [prompt], max_new_tokens=100, repetition_penalty=penalty)[0]).all()
    if penalty == 1:
        batched = greedy(theirs, prompts, max_new_tokens=100)  # as transformers pads it: on the left, with a mask
        assert all((row[-100:] == expected[-100:]).all() for row, expected in zip(rows, batched, strict=True))


def greedy(model, prompts, **settings):
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings |= {"do_sample": False, "eos_token_id": None, "pad_token_id": 4095}
    return model.generate(tokens, attention_mask=mask, **settings).numpy()


def test_rows_of_unequal_length_end_with_the_end_token(tiny):
    prompts = [[1, 2, 3], [7], [4, 5]]
    free = jaxgpt.generate(tiny[0], prompts, max_new_tokens=30)
    end = int(free[1][8])
    for before, after in zip(free, jaxgpt.generate(tiny[0], prompts, max_new_tokens=30, eos_id=end), strict=True):
        n = len(prompts[[len(p) + 30 for p in prompts].index(len(before))])
        hits = np.flatnonzero(before[n:] == end)
        assert (after == before[: n + hits[0] + 1 if hits.size else None]).all()


def test_samples_of_a_prompt_lie_side_by_side_and_differ(tiny):
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 4}
    rows = jaxgpt.generate(tiny[0], [[5, 6], [7, 8, 9]], num_samples=3, **settings)
    assert [row[: 2 + (i > 2)].tolist() for i, row in enumerate(rows)] == [[5, 6]] * 3 + [[7, 8, 9]] * 3
    assert len({tuple(row) for row in rows}) == 6
    alone = jaxgpt.generate(tiny[0], [[5, 6]], num_samples=3, **settings)
    assert all((row == same).all() for row, same in zip(rows, alone, strict=False))


def test_rows_of_a_batch_do_not_see_each_other(tiny):
    prompts = random_tokens((3, 5), vocab=4096)
    together = np.asarray(jaxgpt.generate(tiny[0], prompts, max_new_tokens=20))
    alone = [np.asarray(jaxgpt.generate(tiny[0], p[None], max_new_tokens=20))[0] for p in prompts]
    assert (together == np.stack(alone)).all()


def test_after_the_end_token_only_the_end_token_follows(tiny):
    prompts = random_tokens((3, 5), vocab=4096)
    free = np.asarray(jaxgpt.generate(tiny[0], prompts, max_new_tokens=30))
    end = int(free[0, 5 + 7])
    stopped = np.asarray(jaxgpt.generate(tiny[0], prompts, max_new_tokens=30, eos_id=end))
    for before, after in zip(free, stopped, strict=True):
        hits = np.flatnonzero(before[5:] == end)
        cut = 5 + hits[0] + 1 if hits.size else len(before)
        assert (after[:cut] == before[:cut]).all()
        assert (after[cut:] == end).all()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A model whose cache is small for many rows."""
    folder = tmp_path_factory.mktemp("narrow")
    random_hf(n_layer=1, n_embd=12, n_head=1, n_inner=8).save_pretrained(folder)
    return jaxgpt.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"repetition_penalty": 3.0},
        {"top_k": 9, "top_p": 0.8, "temperature": 2.0},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5, "repetition_penalty": 0.5},
    ],
)
def test_draws_follow_the_exact_distribution(narrow, settings):
    """Chi-squared over 100,000 draws of one token, against probabilities computed in NumPy."""
    settings = {"temperature": 1.0} | settings
    prompt, draws = random_tokens((1, 5)), 100_000
    tokens = jaxgpt.generate(narrow, prompt, num_samples=draws, max_new_tokens=1, seed=3, **settings)
    counts = np.bincount(tokens[:, -1], minlength=97)
    p = probabilities(np.asarray(narrow(prompt))[0, -1].astype(np.float64), prompt[0], **settings)
    assert counts[p == 0].sum() == 0
    often = p * draws >= 20
    observed, expected = counts[often], p[often] * draws
    if (~often & (p > 0)).any():
        observed, expected = np.append(observed, counts[~often].sum()), np.append(expected, p[~often].sum() * draws)
    freedom = len(expected) - 1
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5, (chi2, freedom)  # four standard deviations


def probabilities(logits, prompt, temperature, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    seen = logits[prompt]
    logits[prompt] = np.where(seen > 0, seen / repetition_penalty, seen * repetition_penalty)
    order = np.argsort(-logits, kind="stable")[:top_k]
    p = np.exp((logits[order] - logits.max()) / temperature)
    p /= p.sum()
    p[np.cumsum(p) - p >= top_p] = 0
    p[p < min_p * p.max()] = 0
    full = np.zeros_like(logits)
    full[order] = p / p.sum()
    return full


def test_equal_seeds_give_equal_texts_and_other_seeds_others(tiny):
    prompt = random_tokens((1, 5), vocab=4096)
    settings = {"max_new_tokens": 20, "temperature": 1.0}
    texts = [np.asarray(jaxgpt.generate(tiny[0], prompt, seed=seed, **settings)) for seed in (1, 1, 2)]
    assert (texts[0] == texts[1]).all()
    assert (texts[0] != texts[2]).any()


@pytest.mark.parametrize("tied", [True, False])
def test_padding_is_never_drawn_and_changes_no_draw(hf_folder, tied):
    """Rows that would win every time, were they not masked; there are 112, so top_k must count the 97 tokens."""
    plain = jaxgpt.from_pretrained(hf_folder(n_layer=1, tie_word_embeddings=tied)[0])
    wide, prompts = loud(jaxgpt.resize_vocab(plain, 97, pad_multiple=16)), random_tokens((50, 5))
    assert (np.asarray(wide(prompts))[:, -1].argmax(-1) >= 97).all()
    several = (
        {},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1e30},  # every token is as likely as any other
        {"temperature": 1e-3},
        {"temperature": 1e30, "top_p": 1.0},
        {"temperature": 1e30, "top_k": 97},
        {"temperature": 1e30, "top_k": 112},
        {"temperature": 2.0, "top_k": 10**6, "top_p": 0.9},
    )
    for i, settings in enumerate(several if tied else several[:3]):
        # a thousand draws each; those of later tokens, for which another program is compiled, are drawn alike
        n = {"max_new_tokens": 20} if i < 3 else {"max_new_tokens": 1, "num_samples": 20}
        expected, tokens = (
            np.asarray(jaxgpt.generate(model, prompts, seed=7, **n, **settings)) for model in (plain, wide)
        )
        assert tokens.max() < 97, settings
        assert (tokens == expected).all(), settings


def loud(model, first: int = 97):
    """The model with large rows from `first` on: for any state, half of them have the largest logits of all."""
    params, D = jaxgpt.named_params(model), model.config.n_embd
    signs = np.where(np.arange(model.config.vocab_size - first)[:, None] % 2, 50, -50)
    rows = (signs * np.ones((1, D))).astype(np.float32)
    params["tok_emb.embedding"] = params["tok_emb.embedding"].at[first:].set(rows)
    if "lm_head.kernel" in params:
        params["lm_head.kernel"] = params["lm_head.kernel"].at[:, first:].set(rows.T)
    return jaxgpt.with_params(model, params)


def test_a_prompt_of_padding_is_refused(hf_folder):
    wide = jaxgpt.resize_vocab(jaxgpt.from_pretrained(hf_folder()[0]), 97, pad_multiple=16)
    jaxgpt.generate(wide, np.asarray([[96]]), max_new_tokens=1)
    with pytest.raises(jaxgpt.InputError, match="must be from 0 to 96, but range from 1 to 97"):
        jaxgpt.generate(wide, np.asarray([[1, 97]]), max_new_tokens=1)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([[]], {}, "non-empty"),
        ([1, 2], {}, "non-empty"),
        ([[1, 4096]], {}, "prompt ids must be from 0 to 4095, but range from 1 to 4096"),
        ([[-1]], {}, "prompt ids must be from 0 to 4095, but range from -1 to -1"),
        (
            [[1]],
            {"max_new_tokens": 128},
            "max_new_tokens must be from 0 to 127, not 128: the prompt has 1 tokens, the context 128",
        ),
        ([[1]], {"temperature": -1}, "temperature must be"),
        ([[1]], {"temperature": float("nan")}, "temperature must be"),
        ([[1]], {"seed": -1}, "seed must be"),
        ([[1]], {"seed": 10**20}, "seed must be"),
        ([[1]], {"top_k": 0}, "top_k must be from 1"),
        ([[1]], {"top_p": 0.0}, "top_p must be from 1e-30 to 1, not 0"),
        ([[1]], {"min_p": 1.5}, "min_p must be from 1e-30 to 1"),
        ([[1]], {"repetition_penalty": 0.0}, "repetition_penalty must be from"),
        ([[1]], {"num_samples": 0}, "num_samples must be from 1"),
        ([[1]], {"max_new_tokens": 4.5}, "max_new_tokens must be an integer, not 4.5"),
        ([[1]], {"top_k": 2.0, "temperature": 1}, "top_k must be an integer"),
        ([[1]], {"seed": 1.5}, "seed must be an integer"),
        ([[1]], {"eos_id": 1.5}, "eos_id must be an integer"),
        ([[1]], {"eos_id": -5}, "eos_id must be from 0"),
        ([[1]], {"temperature": None}, "temperature must be a number"),
        ([[1]], {"temperature": 1e300}, r"temperature must be from 0 to 1e\+30"),
        ([[1]], {"repetition_penalty": "2" * 400}, "repetition_penalty must be from"),
    ],
)
def test_what_can_not_be_generated_is_refused(tiny, prompt, settings, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.generate(tiny[0], np.asarray(prompt, np.int32), **{"max_new_tokens": 3, **settings})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "non-empty"),
        ([[1], []], "non-empty"),
        ([[0.5]], "integers, not float64"),
        ([[1, 2], [3.5]], "integers, not float64"),
        ([[1, [2, 3]]], "a list of lists"),
        (None, "a list of lists"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(tiny, prompts, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.generate(tiny[0], prompts, max_new_tokens=3)


def test_the_command_line(cut):
    text = run("jaxgpt", "generate", cut, "--prompt=In the beginning", "--max-new-tokens=12").stdout
    assert text.startswith("In the beginning")
    assert len(text) > len("In the beginning\n")
    refused = call("jaxgpt", "generate", "nowhere/to/be", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_the_command_line_says_only_what_the_tokenizer_knows(tmp_path, tiny, cut):
    """As of a nanoGPT file: more rows than tokens, and nothing in it that says so."""
    tokenizer = jaxgpt.load_tokenizer("tiny")
    wide = loud(jaxgpt.resize_vocab(tiny[0], 4160), 4096)
    prompt = np.asarray([tokenizer("In the beginning")["input_ids"]])
    assert np.asarray(jaxgpt.generate(wide, prompt, max_new_tokens=1)).max() >= 4096
    jaxgpt.save_pretrained(wide, tmp_path / "wide", tokenizer=tokenizer)
    arguments = ("--prompt=In the beginning", "--max-new-tokens=12")
    assert (
        call("jaxgpt", "generate", tmp_path / "wide", *arguments).stdout
        == call("jaxgpt", "generate", cut, *arguments).stdout
    )
    tokenizer.add_tokens([f"<|{i}|>" for i in range(65)])
    jaxgpt.save_pretrained(wide, tmp_path / "other", tokenizer=tokenizer)
    refused = call("jaxgpt", "generate", tmp_path / "other", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "the tokenizer has 4,161 tokens, the model only 4,160 embedding rows" in refused.stderr


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 5, "num_samples": 2}])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_said_and_writes_nothing(tiny, settings, broken):
    params = dict(named_params(tiny[0]))
    params["ln_f.scale"] = params["ln_f.scale"].at[0].set(broken)
    with pytest.raises(jaxgpt.InputError, match="the model's logits are not finite: its weights are not"):
        jaxgpt.generate(with_params(tiny[0], params), [[1, 2, 3]], max_new_tokens=4, **settings)
