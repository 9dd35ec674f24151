"""New tokens and an untied head, from the command line to transformers."""

import json
import shutil

import numpy as np
import pytest
from conftest import call, random_tokens, torch_logits
from runs import QUICK, assert_same_run
from transformers import AutoTokenizer, GPT2LMHeadModel

import jaxgpt
from jaxgpt import named_params


@pytest.fixture(scope="module")
def extended(small, tmp_path_factory):
    """A run with two new tokens, a head of its own, and a text that uses them."""
    folder = tmp_path_factory.mktemp("extended")
    text = folder / "chat.txt"
    text.write_text("<|user|>Who is it?<|assistant|>It is I.\n" * 200)
    flags = [
        f"--model={small}", *QUICK, f"--data={text}", "--add-tokens=<|user|>,<|assistant|>", "--untie-head",
        "--freeze=head",
    ]  # fmt: skip
    out = folder / "run"
    return out, flags, call("train", *flags, f"--out={out}", report=True, samples=False).stdout


def test_new_tokens_are_said_trained_and_masked(small, extended):
    out, _, text = extended
    assert "<|user|>, <|assistant|>: new; their embeddings start at the mean of the others, " in text
    assert ", and stay there: the token embedding is frozen (+new-tokens in --freeze trains them)" in text
    assert "padding     126 embedding rows stand for no token" in text
    assert "the token embedding itself" not in text
    model, tokenizer = jaxgpt.from_pretrained(out), jaxgpt.load_tokenizer(out)
    assert (model.config.vocab_size, model.config.n_padding, model.config.tie_word_embeddings) == (4224, 126, False)
    assert tokenizer("<|user|>hi<|assistant|>")["input_ids"][::2] == [4096, 4097]
    before = np.asarray(named_params(jaxgpt.from_pretrained(small))["tok_emb.embedding"])
    after = named_params(model)
    assert np.array_equal(after["tok_emb.embedding"][:4096], before)  # frozen: only the copy trains
    assert not np.array_equal(after["lm_head.kernel"][:, :4096], before.T)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    assert json.loads((out / "plots" / "embedding.json").read_text())["n_new"] == 2


def test_transformers_reads_the_export_with_the_same_logits_and_ids(extended, tmp_path):
    out, _, _ = extended
    call("convert", out, tmp_path / "hf", "--to=hf")
    theirs, info = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    assert not theirs.config.tie_word_embeddings
    tokens = random_tokens((2, 20), 4098)
    assert np.abs(torch_logits(theirs.eval(), tokens) - np.asarray(jaxgpt.from_pretrained(out)(tokens))).max() < 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("<|assistant|>")["input_ids"] == [4097]


def test_an_extended_run_resumes_bitwise_and_goes_on_elsewhere(extended, tmp_path):
    whole, flags, _ = extended
    out = tmp_path / "resumed"
    shutil.copytree(whole, out)
    for step in (6, 9):
        shutil.rmtree(out / "checkpoints" / str(step))
    call("train", *flags, f"--out={out}", "--resume", samples=False)
    assert_same_run(out, whole, 9)
    # its tokens are the model's now: nothing is added to a run that starts from it
    flags = [f"--model={whole}", *flags[1:], f"--out={tmp_path / 'next'}", "--steps=1"]
    again = call("train", *flags, samples=False).stdout
    assert "<|user|>, <|assistant|>: in the vocabulary already" in again
    assert ": new; their embeddings" not in again
    assert jaxgpt.from_pretrained(tmp_path / "next").config == jaxgpt.from_pretrained(whole).config
