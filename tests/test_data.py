"""Text to batches: every token once, nothing held out is trained on, the same order always."""

import numpy as np
import pytest

import jaxgpt
from train.data import Data, Windows, eval_batches, load_data, train_batches

TOKENS = np.arange(1000, dtype=np.int32)


def test_windows_predict_every_token_once():
    windows = Windows(TOKENS, 37)
    targets = np.concatenate([windows[i][1:] for i in range(len(windows))])
    assert all(len(windows[i]) == 38 for i in range(len(windows)))
    assert (targets == np.arange(1, 1 + len(targets))).all()
    assert 1000 - 37 <= len(targets) + 1 <= 1000


def test_an_epoch_visits_every_window_once_in_an_order_the_seed_decides():
    data = Data("x", TOKENS, TOKENS)
    windows = len(Windows(TOKENS, 9))
    firsts = {}
    for seed in (0, 0, 1):
        batches = train_batches(data, 9, 3, seed)
        order = np.concatenate([batches[i][:, 0] for i in range(windows // 3)])
        assert sorted(order) == sorted(range(0, 9 * windows, 9))
        assert (order != np.sort(order)).any()
        assert np.array_equal(firsts.setdefault(seed, order), order)
    assert (firsts[0] != firsts[1]).any()


def test_batches_from_the_middle_are_the_batches_of_the_middle():
    batches = train_batches(Data("x", TOKENS, TOKENS), 9, 4, 0)
    tail = list(batches[50:60].to_iter_dataset())
    assert len(tail) == 10
    assert all((a == batches[i]).all() for a, i in zip(tail, range(50, 60), strict=True))


@pytest.mark.parametrize("n", [2, 10, 11, 37, 100, 109, 110])
def test_evaluation_weighs_every_held_out_token_once(n):
    batches = eval_batches(Data("x", TOKENS, TOKENS[:n]), 9, 3)
    targets = np.concatenate([ids[:, 1:][weights > 0] for ids, weights in batches])
    assert (targets == np.arange(1, n)).all()
    assert all(ids.shape == (3, 10) for ids, _ in batches)


def test_the_python_reference_is_enough_text_and_its_end_is_held_out():
    data = load_data(None, jaxgpt.load_tokenizer("tiny"), 256)
    total = len(data.train) + len(data.held_out)
    assert total > 150_000
    assert abs(len(data.held_out) / total - 0.1) < 0.001
    assert (data.train == 4095).sum() > 50  # topics end with the end of text


def test_a_folder_is_read_in_order_with_an_end_after_each_file(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in [("b.md", "second " * 50), ("a.txt", "first " * 50), ("sub/c.txt", "third"), ("x.py", "no")]:
        (tmp_path / name).write_text(text)
    tokenizer = jaxgpt.load_tokenizer("tiny")
    data = load_data(tmp_path, tokenizer, 16)
    text = tokenizer.decode(np.concatenate([data.train, data.held_out]))
    assert text == "first " * 50 + "<|endoftext|>" + "second " * 50 + "<|endoftext|>" + "third<|endoftext|>"


def test_the_digest_notices_another_text_and_another_split():
    digests = {
        Data("x", TOKENS[:900], TOKENS[900:]).digest,
        Data("x", TOKENS[:901], TOKENS[901:]).digest,
        Data("x", TOKENS[:899], TOKENS[900:]).digest,
    }
    assert len(digests) == 3
    assert Data("y", TOKENS[:900], TOKENS[900:]).digest in digests
