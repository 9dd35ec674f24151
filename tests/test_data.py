"""Source to batches: every token once, nothing held out is trained on, one order for a seed, whole texts kept apart."""

import json
import re
from collections import Counter
from dataclasses import replace

import grain
import numpy as np
import pytest

import jaxgpt
from jaxgpt.chat import prepare_chat
from jaxgpt.convert.errors import InputError
from jaxgpt.training.data.device_batches import eval_batches, row_order, train_batches
from jaxgpt.training.data.load import load_data
from jaxgpt.training.data.packing import make_pieces, pack
from jaxgpt.training.data.rows import Windows
from jaxgpt.training.settings import Settings

TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def tokenizer():
    tokenizer = jaxgpt.load_tokenizer("tiny")
    prepare_chat(tokenizer)
    return tokenizer


@pytest.fixture
def settings(tmp_path):
    return Settings(cache=tmp_path / "cache")


def chats(path, lengths) -> str:
    """Conversations of so many turns; each word says whose it is."""
    with path.open("w") as file:
        for i, turns in enumerate(lengths):
            messages = []
            for turn in range(turns):
                messages += [
                    {"role": "user", "content": f"ask {i} {turn}"},
                    {"role": "assistant", "content": f"say {i} {turn}"},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return str(path)


# rows of a stream


def test_windows_predict_every_token_once():
    windows = Windows(TOKENS, 0, 1000, 37)
    targets = np.concatenate([windows[i]["tokens"][1:] for i in range(len(windows))])
    assert all(len(windows[i]["tokens"]) == 38 for i in range(len(windows)))
    assert all((windows[i]["weights"] == 1).all() for i in range(len(windows)))
    assert (targets == np.arange(1, 1 + len(targets))).all()
    assert 1000 - 37 <= len(targets) + 1 <= 1000


def test_windows_of_a_part_see_nothing_of_the_rest():
    windows = Windows(TOKENS, 100, 200, 9, tail=True)
    seen = {int(t) for i in range(len(windows)) for t in windows[i]["tokens"][1:][windows[i]["weights"] > 0]}
    assert seen == set(range(101, 200))
    assert windows.begins(2) == [118, 127]


def test_an_epoch_visits_every_window_once_in_an_order_the_seed_decides():
    windows = Windows(TOKENS, 0, 1000, 9)
    firsts = {}
    for seed in (0, 0, 1):
        batches = train_batches(windows, 3, seed)
        order = np.concatenate([batches[i]["tokens"][:, 0] for i in range(len(windows) // 3)])
        assert sorted(order) == sorted(range(0, 9 * len(windows), 9))
        assert (order != np.sort(order)).any()
        assert np.array_equal(firsts.setdefault(seed, order), order)
    assert (firsts[0] != firsts[1]).any()


def test_every_epoch_has_an_order_of_its_own_and_every_row_once():
    order = row_order(Windows(TOKENS, 0, 1000, 9), 0)
    epochs = [[order[i + 111 * epoch] for i in range(111)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(111)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_from_the_middle_are_the_batches_of_the_middle():
    batches = train_batches(Windows(TOKENS, 0, 1000, 9), 4, 0)
    tail = list(batches[50:60].to_iter_dataset())
    assert len(tail) == 10
    assert all((a["tokens"] == batches[i]["tokens"]).all() for a, i in zip(tail, range(50, 60), strict=True))


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_batches(workers):
    batches = train_batches(Windows(TOKENS, 0, 1000, 9), 4, 0)[:60]
    found = list(batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=8)))
    assert len(found) == 60
    for i, batch in enumerate(found):
        assert all(np.array_equal(batch[name], x) for name, x in batches[i].items())


def test_of_a_batch_only_ones_own_rows_are_read_and_together_they_are_the_batch():
    class Counted(Windows):
        read = 0

        def __getitem__(self, i):
            self.read += 1
            return super().__getitem__(i)

    whole = train_batches(Windows(TOKENS, 0, 1000, 9), 4, 0)
    for i in (0, 1, 30):
        parts = []
        for own in (np.asarray([0, 3]), np.asarray([1, 2])):
            rows = Counted(TOKENS, 0, 1000, 9)
            parts.append((own, train_batches(rows, 4, 0, own)[i]))
            assert rows.read == 2
        for name, x in whole[i].items():
            together = np.empty_like(x)
            for own, part in parts:
                together[own] = part[name]
            assert np.array_equal(together, x)


@pytest.mark.parametrize("n", [2, 10, 11, 37, 100, 109, 110])
def test_evaluation_weighs_every_held_out_token_once(n):
    batches = [*eval_batches(Windows(TOKENS, 0, n, 9, tail=True), 3)]
    targets = np.concatenate([batch["tokens"][:, 1:][batch["weights"] > 0] for batch in batches])
    assert (targets == np.arange(1, n)).all()
    assert all(batch["tokens"].shape == (3, 10) for batch in batches)


# what a source becomes


def test_the_python_reference_is_enough_text_and_its_end_is_held_out(tokenizer, settings):
    data = load_data(settings, tokenizer, 256)
    train, held_out = data.train.rows.n_tokens, data.held_out.rows.n_tokens
    assert train + held_out == len(data.train.corpus.tokens) > 150_000
    assert abs(held_out / (train + held_out) - 0.1) < 0.001
    assert (np.asarray(data.train.corpus.tokens) == 4095).sum() > 50  # topics end with the end of text
    assert data.held_out.rows.begins(0)[0] == train


def test_a_folder_is_read_in_order_with_an_end_after_each_file(tmp_path, tokenizer, settings):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    for name, text in [("b.md", "second " * 50), ("a.txt", "first " * 50), ("sub/c.txt", "third"), ("x.py", "no")]:
        (folder / name).write_text(text)
    data = load_data(replace(settings, data=str(folder)), tokenizer, 16)
    text = tokenizer.decode(data.train.corpus.tokens)
    assert text == "first " * 50 + "<|endoftext|>" + "second " * 50 + "<|endoftext|>" + "third<|endoftext|>"


def test_a_file_of_its_own_is_evaluated_on_and_all_of_data_is_trained_on(tmp_path, tokenizer, settings):
    (tmp_path / "a.txt").write_text("train " * 200)
    (tmp_path / "b.txt").write_text("evaluate " * 200)
    data = load_data(replace(settings, data=str(tmp_path / "a.txt"), eval_data=str(tmp_path / "b.txt")), tokenizer, 16)
    assert data.train.rows.n_tokens == len(data.train.corpus.tokens)
    assert "evaluate" in tokenizer.decode(data.held_out.rows[0]["tokens"])
    assert data.info.held_out_sha256 != data.info.sha256


def test_too_little_text_is_refused_with_its_numbers(tmp_path, tokenizer, settings):
    (tmp_path / "a.txt").write_text("few words")
    with pytest.raises(InputError, match=r"has 4 tokens, of which \d are .*: too few for one context of 16"):
        load_data(replace(settings, data=str(tmp_path / "a.txt")), tokenizer, 16)
    path = chats(tmp_path / "one.jsonl", [1])
    with pytest.raises(InputError, match="holds a single text, so that nothing is left to hold out"):
        load_data(replace(settings, data=path), tokenizer, 64)


def test_what_is_held_out_of_conversations_is_whole_conversations(tmp_path, tokenizer, settings):
    data = load_data(replace(settings, data=chats(tmp_path / "c.jsonl", [1] * 40)), tokenizer, 32)
    ends = set(data.train.corpus.ends.tolist()) | {0}
    begins = [begin for i in range(len(data.held_out.rows)) for begin in data.held_out.rows.begins(i)]
    trained = [begin for i in range(len(data.train.rows)) for begin in data.train.rows.begins(i)]
    assert set(begins) <= ends
    assert set(trained) <= ends
    assert max(trained) < min(begins)
    assert len(begins) + len(trained) == 40
    assert 1 <= len(begins) <= 5


# packed rows


@pytest.mark.parametrize("seed", [0, 1])
def test_packing_puts_every_piece_into_one_row_and_leaves_little_room(seed):
    lengths = np.random.default_rng(seed).integers(2, 65, 5000)
    rows = pack(lengths, 64, seed)
    assert Counter(piece for row in rows for piece in row) == Counter(range(5000))
    used = [sum(int(lengths[piece]) for piece in row) for row in rows]
    assert max(used) <= 64
    assert sum(used) / (64 * len(rows)) > 0.99
    assert pack(lengths, 64, seed) == rows
    assert pack(lengths, 64, seed + 1) != rows


def test_a_packed_row_says_where_each_text_is_and_what_counts(tmp_path, tokenizer, settings):
    data = load_data(replace(settings, data=chats(tmp_path / "c.jsonl", [2] * 30)), tokenizer, 64)
    for i in range(len(data.train.rows)):
        row = data.train.rows[i]
        tokens, weights, segments = row["tokens"], row["weights"], row["segments"]
        assert tokens.shape == segments.shape == (65,)
        assert weights.shape == (64,)
        numbers = sorted(set(segments.tolist()) - {0})
        assert numbers == list(range(1, len(data.train.rows.begins(i)) + 1))
        for number, begin in zip(numbers, data.train.rows.begins(i), strict=True):
            text = tokenizer.decode(tokens[segments == number])
            said = tokenizer.decode(tokens[1:][(segments[1:] == number) & (weights == 1)])
            k = data.train.corpus.ends.searchsorted(begin, side="right")
            assert text == (
                f"<|user|> ask {k} 0 <|assistant|> say {k} 0<|endoftext|>"
                f"<|user|> ask {k} 1 <|assistant|> say {k} 1<|endoftext|>"
            )
            assert said == f" say {k} 0<|endoftext|> say {k} 1<|endoftext|>"
            assert data.train.corpus.origin(begin).endswith(f"c.jsonl, line {k + 1}")
        assert not weights[segments[1:] == 0].any()


def test_an_epoch_of_packed_rows_has_every_conversation_once(tmp_path, tokenizer, settings):
    data = load_data(replace(settings, data=chats(tmp_path / "c.jsonl", [1, 2, 3] * 20)), tokenizer, 64)
    order = row_order(data.train.rows, 3)
    begins = Counter(begin for i in range(len(data.train.rows)) for begin in data.train.rows.begins(order[i]))
    documents = len(begins)
    assert set(begins.values()) == {1}
    assert begins.keys() == {0, *data.train.corpus.ends[: documents - 1].tolist()}


def test_a_conversation_that_is_too_long_is_cut_after_a_turn_and_it_is_said(tmp_path, tokenizer, settings):
    source = chats(tmp_path / "c.jsonl", [1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    data = load_data(replace(settings, data=source), tokenizer, 64)
    assert "1 of 10 conversations are cut after a turn, to fit the context" in data.train.notes
    begin = int(data.train.corpus.ends[0])
    (row,) = (data.train.rows[i] for i in range(len(data.train.rows)) if begin in data.train.rows.begins(i))
    number = next(
        n for n in set(row["segments"].tolist()) if "ask 1 0" in tokenizer.decode(row["tokens"][row["segments"] == n])
    )
    text = tokenizer.decode(row["tokens"][row["segments"] == number])
    assert text.endswith("<|endoftext|>")
    turns = text.count("<|user|>")
    assert 1 <= turns < 9
    assert f"say 1 {turns - 1}<|endoftext|>" in text
    whole = len(tokenizer(text)["input_ids"]) + 16
    assert whole > 65  # another turn would not have fitted


def test_a_conversation_whose_first_turn_is_too_long_is_left_out_and_it_is_said(tmp_path, tokenizer, settings):
    source = tmp_path / "c.jsonl"
    long = json.dumps({"instruction": "word " * 100, "output": "yes"})
    source.write_text("\n".join([long, *[json.dumps({"instruction": f"n {i}", "output": "yes"}) for i in range(20)]]))
    data = load_data(replace(settings, data=str(source)), tokenizer, 32)
    assert re.match(
        r"1 of \d+ conversations are LEFT OUT: their first turn that counts in the loss ends beyond",
        data.train.notes[0],
    )


@pytest.mark.parametrize(("rows", "of"), [("packed", 5), ("padded", 12)])
def test_whole_texts_side_by_side_or_one_to_a_row(tmp_path, tokenizer, settings, rows, of):
    source = tmp_path / "t.jsonl"
    source.write_text("".join(json.dumps({"text": f"a text of its own {i}"}) + "\n" for i in range(13)))
    data = load_data(replace(settings, data=str(source), rows=rows), tokenizer, 32)
    assert sum(len(data.train.rows.begins(i)) for i in range(len(data.train.rows))) == 12
    assert len(data.train.rows) <= of
    assert (len(data.train.rows) == 12) == (rows == "padded")
    (note,) = data.train.notes
    assert "12 documents in" in note
    assert "is padding" in note


def test_a_long_text_in_packed_rows_has_every_token_predicted_once(tokenizer, settings, tmp_path):
    source = tmp_path / "t.jsonl"
    texts = ["word " * 100, "short", "other " * 70, "held out"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = load_data(replace(settings, data=str(source), rows="packed"), tokenizer, 32)
    predicted = sum(int(data.train.rows[i]["weights"].sum()) for i in range(len(data.train.rows)))
    assert predicted == int(data.train.corpus.ends[2]) - 3
    assert make_pieces(data.train.corpus, range(3), 33).lengths.max() == 33


def test_train_on_all_counts_every_token_but_the_first(tmp_path, tokenizer, settings):
    source = chats(tmp_path / "c.jsonl", [1] * 20)
    some, every = (
        load_data(replace(settings, data=source, train_on=what), tokenizer, 64).train for what in ("assistant", "all")
    )
    for i in range(len(every.rows)):
        row = every.rows[i]
        first = np.flatnonzero(np.diff(row["segments"], prepend=0))
        expected = row["segments"] > 0
        expected[first] = False
        assert np.array_equal(row["weights"], expected[1:].astype(np.float32))
        assert some.rows[i]["weights"].sum() < row["weights"].sum()


def test_conversations_are_never_a_stream(tmp_path, tokenizer, settings):
    source = chats(tmp_path / "c.jsonl", [1] * 20)
    with pytest.raises(InputError, match="stream cuts texts anywhere, which conversations don't allow"):
        load_data(replace(settings, data=source, rows="stream"), tokenizer, 64)


def test_weight_0_has_no_weight_in_the_rows_and_a_conversation_is_cut_where_something_counts(
    tmp_path, tokenizer, settings
):
    source = tmp_path / "c.jsonl"
    turns = [
        {"role": role, "content": f"{word} {i}"}
        for i in range(9)
        for role, word in (("user", "ask"), ("assistant", "say"))
    ]
    weighed = [turn | {"weight": 0} if turn["content"] in ("say 0", "say 3", "say 4") else turn for turn in turns]
    source.write_text("".join(json.dumps({"messages": weighed}) + "\n" for _ in range(20)))
    data = load_data(replace(settings, data=str(source)), tokenizer, 40)
    for i in range(len(data.train.rows)):
        row = data.train.rows[i]
        said = tokenizer.decode(row["tokens"][1:][row["weights"] == 1])
        assert said == " say 1<|endoftext|> say 2<|endoftext|>"  # not after 3, which fits and does not count
        assert tokenizer.decode(row["tokens"][row["segments"] == 1]).endswith(" say 2<|endoftext|>")
    every = load_data(replace(settings, data=str(source), train_on="all"), tokenizer, 40)
    assert "say 0" in tokenizer.decode(every.train.rows[0]["tokens"][1:][every.train.rows[0]["weights"] == 1])


def test_settings_say_how_records_are_read_and_remarks_name_each_source_once(tmp_path, tokenizer, settings):
    for name, words in (("a.jsonl", "train"), ("b.csv", "evaluate")):
        rows = [{"content": f"{words} {i} " * 9, "id": str(i)} for i in range(30)]
        lines = ["content,id", *(f"{row['content']},{row['id']}" for row in rows), "x"]
        text = "\n".join(map(json.dumps, rows)) + "\n{" if name == "a.jsonl" else "\n".join(lines)
        (tmp_path / name).write_text(text)
    how = replace(settings, data=str(tmp_path / "a.jsonl"), text_field="content", skip_bad_records=True)
    unread = "fields that are not read: 'id' in 30 records"
    bad = f"1 bad record is left out: {tmp_path}/a.jsonl, line 31: not JSON: Expecting property name"
    data = load_data(how, tokenizer, 16)
    assert data.remarks[0] == unread
    assert data.remarks[1].startswith(bad)
    assert len(data.remarks) == 2
    assert data.info.notes == [*data.remarks, *data.train.notes]
    data = load_data(replace(how, eval_data=str(tmp_path / "b.csv")), tokenizer, 16)
    assert data.remarks[2] == f"held out: {unread}"
    assert (
        data.remarks[3]
        == f"held out: 1 bad record is left out: {tmp_path}/b.csv, line 32: 1 fields, but the header has 2"
    )
    assert "evaluate" in tokenizer.decode(data.held_out.rows[0]["tokens"])
    with pytest.raises(
        InputError, match=r"^--data: .*a\.jsonl, line 31: .* \(skip_bad_records=True leaves bad records out"
    ):
        load_data(replace(how, skip_bad_records=False), tokenizer, 16)
    with pytest.raises(InputError, match=r"^--data: .*a\.jsonl, line 1: neither a text nor a conversation"):
        load_data(replace(how, text_field=None, skip_bad_records=False), tokenizer, 16)


def test_a_field_of_nothing_is_refused(tmp_path, tokenizer, settings):
    (tmp_path / "a.txt").write_text("one " * 200)
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": "one " * 200}))
    how = replace(settings, text_field="body")
    for data, name in ((None, "the Python language reference"), (str(tmp_path / "a.txt"), r".*a\.txt")):
        with pytest.raises(InputError, match=rf"^text_field='body' names a field, but {name} has no records"):
            load_data(replace(how, data=data), tokenizer, 16)
    load_data(replace(how, data=str(tmp_path / "a.txt"), eval_data=str(tmp_path / "b.jsonl")), tokenizer, 16)


def test_its_info_notices_other_contents_and_another_tokenizer(tmp_path, tokenizer, settings):
    (tmp_path / "a.txt").write_text("one " * 200)
    a = load_data(replace(settings, data=str(tmp_path / "a.txt")), tokenizer, 16).info
    (tmp_path / "a.txt").write_text("two " * 200)
    b = load_data(replace(settings, data=str(tmp_path / "a.txt")), tokenizer, 16).info
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    c = load_data(replace(settings, data=str(tmp_path / "b.txt")), tokenizer, 16).info
    assert a.sha256 != b.sha256 == c.sha256
    assert a.tokenizer == b.tokenizer
    tokenizer.add_tokens(["more"])
    assert load_data(replace(settings, data=str(tmp_path / "b.txt")), tokenizer, 16).info.tokenizer != a.tokenizer
