"""Tokenizers: one that is not the model's is refused, and tokens are added to one that is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, word_level
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import jaxgpt
from jaxgpt.tokenizer import add_tokens, check_vocabulary, vocabulary_size

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


def test_a_vocabulary_is_measured_by_its_largest_id_not_by_its_length():
    holes = word_level({"a": 0, "b": 1, "c": 97})
    assert (len(holes), vocabulary_size(holes), vocabulary_size(jaxgpt.load_tokenizer("tiny"))) == (3, 98, 4096)
    check_vocabulary(holes, jaxgpt.GPTConfig(vocab_size=98, eos_token_id=None))
    with pytest.raises(jaxgpt.InputError, match="has 98 tokens, the model only 97 embedding rows; extend"):
        check_vocabulary(holes, jaxgpt.GPTConfig(vocab_size=97, eos_token_id=None))


def test_padding_is_no_row_for_a_token():
    padded = replace(CONFIG, n_padding=1, eos_token_id=None)
    with pytest.raises(
        jaxgpt.InputError, match=r"has 4,096 tokens, the model only 4,095 embedding rows \(and 1 of pad"
    ):
        check_vocabulary(jaxgpt.load_tokenizer("tiny"), padded)
    small = word_level({"a": 0})
    check_vocabulary(small, padded, np.asarray([4094]))
    with pytest.raises(jaxgpt.InputError, match=r"from 5 to 4095: the model has 4,095 embedding rows \(and 1 of pad"):
        check_vocabulary(small, padded, np.asarray([5, 4095]))


def test_an_end_of_text_with_another_id_is_refused():
    with pytest.raises(jaxgpt.InputError, match="has the id 4095 in the tokenizer and 50256 in the model"):
        check_vocabulary(jaxgpt.load_tokenizer("tiny"), jaxgpt.GPTConfig(eos_token_id=50256))


def test_ids_without_a_row_are_refused():
    with pytest.raises(
        jaxgpt.InputError,
        match="ids must be from 0 to 4095, but range from 5 to 4096: the model has 4,096 embedding rows; extend",
    ):
        check_vocabulary(jaxgpt.load_tokenizer("tiny"), CONFIG, np.asarray([5, 4096]))


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("ids", [[[1, 97]], [[-1, 5]], [[2**31 - 1, 0]]])
def test_a_model_refuses_ids_that_it_does_not_have(hf_folder, make, ids):
    """They would give NaN. A traced function can't know them, and does what it did."""
    model = jaxgpt.from_pretrained(hf_folder()[0])
    tokens = make(np.asarray(ids, np.int32))
    with pytest.raises(jaxgpt.InputError, match=r"token ids must be from 0 to 96, but range from -?\d+ to \d+"):
        model(tokens)
    with pytest.raises(jaxgpt.InputError, match="token ids must be from 0 to"):
        jaxgpt.next_token_loss(model, jnp.pad(tokens, ((0, 0), (0, 1))))
    forward = jax.jit(lambda model, tokens: model(tokens))
    traced = str(jax.make_jaxpr(forward)(model, tokens))
    assert "callback" not in traced
    assert forward(model, tokens).shape == (1, 2, 97)
    fine = make(np.asarray([[0, 96]], np.int32))
    np.testing.assert_allclose(model(fine), forward(model, fine), atol=1e-5)


# add_tokens


def test_added_tokens_have_one_id_are_never_split_and_survive(tmp_path):
    tokenizer = jaxgpt.load_tokenizer("tiny")
    new = add_tokens(tokenizer, ["<|user|>", "<|endoftext|>", "<| é 北 |>", "<|assistant|>"])
    assert new == ("<|user|>", "<| é 北 |>", "<|assistant|>")
    assert add_tokens(tokenizer, ["<|user|>"]) == ()
    assert add_tokens(tokenizer, ["<|late|>"]) == ("<|late|>",)
    model = jaxgpt.resize_vocab(jaxgpt.from_pretrained("tiny"), tokenizer, pad_multiple=64)
    assert model.config.n_tokens == vocabulary_size(tokenizer) == 4096 + len(new) + 1
    jaxgpt.save_pretrained(model, tmp_path / "hf", tokenizer=tokenizer)
    jaxgpt.save(model, tmp_path / "orbax", tokenizer=tokenizer)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*new, "<|late|>")}
    assert sorted(ids.values()) == list(range(4096, 4096 + len(ids)))
    for again in (tokenizer, jaxgpt.load_tokenizer(tmp_path / "hf"), jaxgpt.load_tokenizer(tmp_path / "orbax")):
        check_vocabulary(again, model.config)
        assert {"<|endoftext|>", *ids} <= set(again.all_special_tokens)
        for token, i in ids.items():
            for text in (f"{token}hi", f"hi{token}", f"hi {token}  hi", f"{token}{token}", f"x{token}x"):
                found = again(text)["input_ids"]
                assert found.count(i) == text.count(token)
                assert again.decode(found) == text
                assert again.decode(found, skip_special_tokens=True) == text.replace(token, "")
        assert add_tokens(again, list(ids)) == ()


def test_what_the_tokenizer_has_is_left_as_it_is():
    tokenizer = jaxgpt.load_tokenizer("tiny")
    text = "The theatre and the end"
    before = tokenizer(text)["input_ids"]
    assert "the" in tokenizer.get_vocab()
    assert add_tokens(tokenizer, ["the", "<|endoftext|>"]) == ()
    assert tokenizer(text)["input_ids"] == before
    assert tokenizer.decode(before, skip_special_tokens=True) == text
    assert len(tokenizer) == 4096


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([""], "'' is empty"),
        (["<|a|>", 5], "5 is not a string"),
        ([" <|a|>"], "white space around it"),
        (["<|a|>\n"], "white space around it"),
        (["\u3000"], "white space around it"),
        (["<|a|>", "<|b|>", "<|a|>"], r"'<\|a\|>' is given twice"),
        (["<|a\udcff|>"], r"'<\|a\\udcff\|>' is not valid UTF-8"),
        ("<|a|>", "s must be a list, not the text"),
    ],
)
def test_what_is_no_token_is_refused_before_anything_is_added(tokens, message):
    tokenizer = jaxgpt.load_tokenizer("tiny")
    with pytest.raises(jaxgpt.InputError, match=f"^new token.*{message}"):
        add_tokens(tokenizer, tokens)
    assert len(tokenizer) == 4096


def test_a_new_token_never_shares_an_id():
    """The tokenizers library counts a vocabulary with holes, and gives the next token an id that is taken."""
    holes = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0, "b": 1, "c": 3}, [])))
    with pytest.raises(jaxgpt.InputError, match=r"a new token would get the id 3, which is taken"):
        add_tokens(holes, ["<|user|>"])


def test_a_folder_without_a_tokenizer_says_so(hf_folder):
    with pytest.raises(jaxgpt.InputError, match="no tokenizer found"):
        jaxgpt.load_tokenizer(hf_folder()[0])
    assert (TINY / "tokenizer.json").is_file()
