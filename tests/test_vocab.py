"""The vocabulary: a tokenizer that is not the model's is refused, and a larger one can be made to fit."""

import numpy as np
import pytest
from conftest import TINY, random_tokens, torch_logits
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt.tokenizer import check_vocabulary

CONFIG = jaxgpt.GPTConfig(vocab_size=4096, eos_token_id=4095)


def test_the_bundled_tokenizer_is_the_bundled_models():
    tokenizer = jaxgpt.load_tokenizer("tiny")
    check_vocabulary(tokenizer, CONFIG, np.asarray([0, 4095]))
    text = "The king’s naïve café — 北京 \U0001f600\n\n\ttabs  and   spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_and_the_way_out_works(tmp_path):
    tokenizer = jaxgpt.load_tokenizer("tiny")
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"])
    with pytest.raises(jaxgpt.InputError, match=r"has 4,098 tokens, the model only 4,096 .*jaxgpt\.resize_vocab"):
        check_vocabulary(tokenizer, CONFIG)
    jaxgpt.save_pretrained(
        jaxgpt.resize_vocab(jaxgpt.from_pretrained("tiny"), tokenizer), tmp_path / "new", tokenizer=tokenizer
    )
    model, again = jaxgpt.from_pretrained(tmp_path / "new"), jaxgpt.load_tokenizer(tmp_path / "new")
    ids = again("<|user|>hello<|assistant|>")["input_ids"]
    assert (ids[0], ids[-1]) == (4096, 4097)
    check_vocabulary(again, model.config, np.asarray(ids))


def test_an_end_of_text_with_another_id_is_refused():
    with pytest.raises(jaxgpt.InputError, match="is 4095 to the tokenizer and 50256 to the model"):
        check_vocabulary(jaxgpt.load_tokenizer("tiny"), jaxgpt.GPTConfig(eos_token_id=50256))


def test_ids_without_a_row_are_refused():
    with pytest.raises(jaxgpt.InputError, match="ids up to 4,096, the model has 4,096 rows"):
        check_vocabulary(jaxgpt.load_tokenizer("tiny"), CONFIG, np.asarray([5, 4096]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["mean", "normal"])
def test_new_rows_start_at_the_mean_and_old_ones_stay(tmp_path, hf_folder, tied, init):
    folder, theirs = hf_folder(tie_word_embeddings=tied)
    model = jaxgpt.from_pretrained(folder)
    bigger = jaxgpt.resize_vocab(model, 99, init=init, pad_multiple=16)
    assert bigger.config.vocab_size == 112
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


def test_shrinking_is_refused():
    model = jaxgpt.from_pretrained("tiny")
    with pytest.raises(jaxgpt.InputError, match="would cut trained ones away"):
        jaxgpt.resize_vocab(model, 4000)
    with pytest.raises(jaxgpt.InputError, match="not mean or normal"):
        jaxgpt.resize_vocab(model, 5000, init="zeros")


def test_a_folder_without_a_tokenizer_says_so(hf_folder):
    with pytest.raises(jaxgpt.InputError, match="no tokenizer lies there"):
        jaxgpt.load_tokenizer(hf_folder()[0])
    assert (TINY / "tokenizer.json").is_file()
