"""Sources to tokens: the ids of whole texts, whatever they are cut into, and a cache that is never half."""

import hashlib
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import jaxgpt
from jaxgpt.data import corpus as corpus_module
from jaxgpt.data import pieces, token_files
from jaxgpt.data.corpus import tokenise
from jaxgpt.data.documents import Source, Texts
from jaxgpt.tokenizer import fingerprint

WORDS = "the a naïve 日本語 code, (x[1])... don't 3.14 🎉 e\u0301 <|endoftext|> end.\t==== ﬁ".split(" ")
GAPS = {
    "prose": [" "] * 8 + ["\n", "\n\n", "  "],
    "blank lines": ["\n" * 7, "\n \n", " \n", "\n    ", " "],
    "windows": [" ", "\r\n", "\r\n\r\n", "\r"],
    "unicode blanks": [" ", "\u00a0", "\u2028", "\u3000\n", "\x0b", "\x85", "\n"],
    "no line end": [" "] * 5 + ["  "],
    "nothing between": ["", "", "", "\n"],
    "nothing but words": [""],
}


def nasty(kind: str, n: int = 30_000, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice(GAPS[kind]) for _ in range(n // 5))


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.train_from_iterator(
        [nasty("prose", seed=9)], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def punctuated() -> PreTrainedTokenizerFast:
    """Like those that came after GPT-2's: line ends stick to the punctuation before them, and text is normalised."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator(
        [nasty("prose", seed=9), ".\n" * 500],
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {
    "gpt-2": lambda: jaxgpt.load_tokenizer("tiny"),
    "prefix space": lambda: metaspace("always"),
    "first space": lambda: metaspace("first"),
    "merges over words": punctuated,
}


@pytest.mark.parametrize("kind", GAPS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_are_those_of_the_whole_text_however_it_is_cut(name, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1500)
    tokenizer, text = TOKENIZERS[name](), nasty(kind)
    (tmp_path / "a.txt").write_text(text, newline="")
    corpus = tokenise(tmp_path / "a.txt", tokenizer, cache=tmp_path / "cache")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert corpus.tokens.tolist() == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
    assert corpus.ends.tolist() == [len(corpus.tokens)]
    assert corpus.n_bytes == len(text.encode())


def test_texts_are_cut_where_they_can_be():
    encode, _ = pieces.encoders(jaxgpt.load_tokenizer("tiny"))
    for kind, n in (("prose", 400_000), ("no line end", 400_000), ("windows", 400_000), ("nothing but words", 1)):
        text = nasty(kind, 400_000)
        found = list(pieces.Cutter(encode).pieces([text[i : i + 9999] for i in range(0, len(text), 9999)], "x"))
        assert "".join(found) == text
        assert (max(map(len, found)) < 2.5 * pieces.PIECE) == (n > 1)


def test_a_tokenizer_that_begins_every_text_with_a_space_is_soon_not_tried_any_more():
    tokenizer, calls = metaspace("always"), []
    encode, _ = pieces.encoders(tokenizer)
    cutter = pieces.Cutter(lambda text: calls.append(text) or encode(text))
    text = "line\n" * 600_000
    assert list(cutter.pieces([text], "x")) == [text]
    assert len(calls) <= 3 * pieces.DOUBTS
    assert len(list(pieces.Cutter(encode).pieces(["a line " * 100_000], "x"))) > 5  # but one before a space is enough


@pytest.mark.bounded
def test_a_text_that_can_not_be_cut_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(pieces, "LONGEST", 1_000_000)
    encode, _ = pieces.encoders(jaxgpt.load_tokenizer("tiny"))
    endless = iter(lambda: "\n" * 100_000, "")
    with pytest.raises(jaxgpt.InputError, match=r"my\.txt has 1\.0 MB without a point"):
        list(pieces.Cutter(encode).pieces(endless, "my.txt"))


def test_documents_end_with_the_end_of_text_and_know_where_they_come_from(tmp_path):
    (tmp_path / "b").mkdir()
    records = [{"text": "one"}, None, {"text": " \n"}, {"text": "two\n\nlines"}]
    lines = [json.dumps(record) if record else "" for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b" / "c.txt").write_text("three")
    tokenizer = jaxgpt.load_tokenizer("tiny")
    corpus = tokenise(tmp_path, tokenizer, cache=tmp_path / "cache")
    assert corpus.kind == "text"
    assert tokenizer.decode(corpus.tokens) == "one<|endoftext|>two\n\nlines<|endoftext|>three<|endoftext|>"
    begins = [0, *corpus.ends[:-1].tolist()]
    for position, where in zip(begins, ("a.jsonl, line 1", "a.jsonl, line 4", "c.txt"), strict=True):
        assert corpus.origin(position).endswith(where)
    assert [corpus.origin(end - 1) for end in corpus.ends] == [corpus.origin(begin) for begin in begins]
    assert len(corpus.turns(0)) == 0
    assert corpus.counts is None


def test_a_large_vocabulary_gets_four_bytes(tmp_path):
    tokenizer = jaxgpt.load_tokenizer("tiny")
    tokenizer.add_tokens([f"<extra {i}>" for i in range(70_000)])
    (tmp_path / "a.txt").write_text("The <extra 69999>")
    corpus = tokenise(tmp_path / "a.txt", tokenizer, cache=tmp_path / "cache")
    assert corpus.tokens.dtype == np.uint32
    assert corpus.tokens.max() == 4096 + 69_999
    assert tokenise(tmp_path / "a.txt", jaxgpt.load_tokenizer("tiny"), cache=tmp_path).tokens.dtype == np.uint16


def test_chats_know_what_counts_and_where_they_may_be_cut(tmp_path):
    from jaxgpt.chat import encode_chats, prepare_chat
    from jaxgpt.data.conversations import conversation_of

    chats = [
        {"messages": [{"role": role, "content": f"{role} {i}"} for role in ("user", "assistant")] * (i + 1)}
        for i in range(5)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, chats)))
    tokenizer = jaxgpt.load_tokenizer("tiny")
    prepare_chat(tokenizer)
    for _ in range(2):  # written, and read back
        corpus = tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache")
        assert corpus.kind == "chat"
        begin = 0
        for i, (chat, end) in enumerate(zip(chats, corpus.ends, strict=True)):
            (expected,) = encode_chats(tokenizer, [conversation_of(chat).messages])
            assert corpus.tokens[begin:end].tolist() == expected.ids
            assert corpus.counts[begin:end].tolist() == expected.counts
            assert (corpus.turns(i) - begin).tolist() == expected.turns
            assert len(expected.turns) == i + 1
            assert corpus.origin(begin).endswith(f"a.jsonl, line {i + 1}")
            begin = int(end)


def test_a_chat_that_can_not_be_encoded_is_named(tmp_path):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "system", "content": "no"}, *chat["messages"]]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [chat, chat, bad])))
    tokenizer = jaxgpt.load_tokenizer("tiny")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(jaxgpt.InputError, match=r"a\.jsonl, line 3: .*no system"):
        tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache")


# the cache


def entries(cache):
    return sorted(path.name for path in cache.iterdir())


def test_the_cache_is_found_again_by_contents_order_and_tokenizer_not_by_name(tmp_path, monkeypatch):
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    for name, text in (("a/1.txt", "first"), ("a/2.txt", "second"), ("b/8.txt", "first"), ("b/9.txt", "second"),
                       ("c/1.txt", "second"), ("c/2.txt", "first"), ("d/1.txt", "first"), ("e/1.md", "first"),
                       ("f/1.jsonl", "")):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    a = tokenise(tmp_path / "a", tokenizer, cache=cache)
    b = tokenise(tmp_path / "b", tokenizer, cache=cache)
    assert len(entries(cache)) == 1
    assert (a.digest, a.tokenizer_digest) == (b.digest, b.tokenizer_digest)
    assert b.origin(len(b.tokens) - 1) == str(tmp_path / "b" / "9.txt")
    c = tokenise(tmp_path / "c", tokenizer, cache=cache)
    assert c.digest != a.digest
    tokenise(tmp_path / "d", tokenizer, cache=cache)
    tokenise(tmp_path / "e", tokenizer, cache=cache)
    assert len(entries(cache)) == 3
    tokenizer.add_tokens(["fir"])
    d = tokenise(tmp_path / "d", tokenizer, cache=cache)
    assert 4096 in d.tokens
    assert len(entries(cache)) == 4
    monkeypatch.setattr("jaxgpt.data.corpus.write_tokens", None)  # what is there is not written again
    assert (tokenise(tmp_path / "d", tokenizer, cache=cache).tokens == d.tokens).all()


def test_a_fingerprint_changes_with_the_template_and_not_with_calls():
    tokenizer = jaxgpt.load_tokenizer("tiny")
    before = fingerprint(tokenizer)
    tokenizer("text " * 100, truncation=True, max_length=9, padding="max_length") if tokenizer.pad_token else tokenizer(
        "text " * 100, truncation=True, max_length=9
    )
    assert fingerprint(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert fingerprint(tokenizer) != before


DAMAGE = {
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "half of meta": lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text()[:50]),
    "a list": lambda entry: (entry / "meta.json").write_text("[]"),
    "deep": lambda entry: (entry / "meta.json").write_text("[" * 100_000),
    "short tokens": lambda entry: os.truncate(entry / "tokens.bin", 4),
    "odd tokens": lambda entry: os.truncate(entry / "tokens.bin", 3),
    "no ends": lambda entry: (entry / "ends.bin").unlink(),
    "empty ends": lambda entry: os.truncate(entry / "ends.bin", 0),
    "another version": lambda entry: (entry / "meta.json").write_text('{"version": 0}'),
    "an object array": lambda entry: (entry / "meta.json").write_text(
        (entry / "meta.json").read_text().replace('"<u2"', '"O"')
    ),
    "unread fields": lambda entry: (entry / "meta.json").write_text(
        (entry / "meta.json").read_text().replace('"unread": {}', '"unread": {"a": "b"}')
    ),
    "a file that is not there": lambda entry: (entry / "meta.json").write_text(
        (entry / "meta.json").read_text().replace('"as_text": null', '"as_text": 3')
    ),
    "bad records": lambda entry: (entry / "meta.json").write_text(
        (entry / "meta.json").read_text().replace('"first_bad": null', '"first_bad": [9, 1, "x"]')
    ),
    "a file": lambda entry: (shutil.rmtree(entry), entry.write_text("x")),
    "zeros": lambda entry: (entry / "tokens.bin").write_bytes(bytes((entry / "tokens.bin").stat().st_size)),
    "one bit": lambda entry: flip(entry / "tokens.bin", 5),
    "one bit of the ends": lambda entry: flip(entry / "ends.bin", 0),
    "a bit, and the old time": lambda entry: keeping_time(entry / "tokens.bin", lambda path: flip(path, 5)),
    "another file in its place": lambda entry: replace_file(entry / "tokens.bin"),
    "a pipe": lambda entry: ((entry / "tokens.bin").unlink(), os.mkfifo(entry / "tokens.bin")),
    "a pipe for a description": lambda entry: ((entry / "meta.json").unlink(), os.mkfifo(entry / "meta.json")),
    "a link": lambda entry: ((entry / "tokens.bin").rename(entry / "x"), (entry / "tokens.bin").symlink_to("x")),
    "another kind": lambda entry: (entry / "meta.json").write_text(
        (entry / "meta.json").read_text().replace('"bytes": 18', '"bytes": 19')
    ),
}


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def keeping_time(path: Path, change) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[::-1])


@pytest.mark.bounded
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_in_the_cache_is_written_again_and_said(name, tmp_path, caplog):
    (tmp_path / "a.txt").write_text("The end of a text.")
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    expected = tokenise(tmp_path / "a.txt", tokenizer, cache=cache).tokens.tolist()
    (entry,) = cache.iterdir()
    DAMAGE[name](entry)
    caplog.clear()
    assert tokenise(tmp_path / "a.txt", tokenizer, cache=cache).tokens.tolist() == expected
    assert "is damaged: the text is tokenised again" in caplog.text
    for _ in range(2):
        assert tokenise(tmp_path / "a.txt", tokenizer, cache=cache).tokens.tolist() == expected
        assert entries(cache) == [entry.name]


@pytest.mark.bounded
def test_an_entry_that_was_swapped_with_another_is_not_used(tmp_path):
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    expected = {}
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"The text {name}.")
        expected[name] = tokenise(tmp_path / name, tokenizer, cache=cache).tokens.tolist()
    one, two = cache.iterdir()
    one.rename(cache / "x")
    two.rename(one)
    (cache / "x").rename(two)
    for name, tokens in expected.items():
        assert tokenise(tmp_path / name, tokenizer, cache=cache).tokens.tolist() == tokens


def test_digests_are_compared_once_for_each_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The end of a text.")
    tokenizer, cache, n_compared = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache", []
    compare = token_files.hashlib.file_digest
    monkeypatch.setattr(token_files.hashlib, "file_digest", lambda *a: n_compared.append(a) or compare(*a))
    tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
    tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
    assert not n_compared  # they were made when it was written
    shutil.copytree(cache, tmp_path / "copy")
    tokenise(tmp_path / "a.txt", tokenizer, cache=tmp_path / "copy")
    assert len(n_compared) == 3  # tokens, ends, records
    tokenise(tmp_path / "a.txt", tokenizer, cache=tmp_path / "copy")
    assert len(n_compared) == 3


def test_an_entry_of_another_user_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The end of a text.")
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    expected = tokenise(tmp_path / "a.txt", tokenizer, cache=cache).tokens.tolist()
    (entry,) = cache.iterdir()
    uid = os.geteuid()
    monkeypatch.setattr(token_files.os, "geteuid", lambda: uid + 1)
    mine = tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
    assert mine.tokens.tolist() == expected
    assert Path(mine.tokens.filename).parent.name == f"{entry.name}-{uid + 1}"
    if uid == 0:
        monkeypatch.undo()
        os.chown(entry / "tokens.bin", 1, 1)
        again = tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
        assert again.tokens.tolist() == expected
        assert (entry / "tokens.bin").stat().st_uid == 0


def test_a_write_that_fails_leaves_nothing_and_leftovers_go_after_a_day(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"good text\n" * 500_000 + b"\xff")
    tokenizer, cache = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache"
    with pytest.raises(jaxgpt.InputError, match="byte 0xff at 5,000,000"):
        tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
    assert entries(cache) == []
    for name, age in ((".old.1234.tmp", 2 * token_files.DAY), (".new.1234.tmp", 0)):
        (cache / name).mkdir()
        (cache / name / "tokens.bin").touch()
        for path in (cache / name / "tokens.bin", cache / name):
            os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "a.txt").write_text("good")
    tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
    assert [name for name in entries(cache) if name.startswith(".")] == [".new.1234.tmp"]


def test_two_at_once_both_get_their_tokens(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The end.")
    tokenizer, cache, inner = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache", []
    write = corpus_module.write_tokens

    def slow(*args):
        if not inner:
            inner.append(None)
            inner[0] = tokenise(tmp_path / "a.txt", tokenizer, cache=cache)  # the other is quicker
        return write(*args)

    monkeypatch.setattr("jaxgpt.data.corpus.write_tokens", slow)
    outer = tokenise(tmp_path / "a.txt", tokenizer, cache=cache)
    assert outer.tokens.tolist() == inner[0].tokens.tolist()
    assert len(entries(cache)) == 1


def test_a_damaged_entry_that_another_process_moves_away_meanwhile_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The end.")
    tokenizer, cache, load = jaxgpt.load_tokenizer("tiny"), tmp_path / "cache", token_files.load
    expected = tokenise(tmp_path / "a.txt", tokenizer, cache=cache).tokens.tolist()
    (entry,) = cache.iterdir()
    (entry / "tokens.bin").write_bytes(b"")

    def load_and_lose(path, owner):
        found = load(path, owner)
        if len(entries(cache)) == 2 and path.exists() and not found:  # the new one is about to take its place
            path.rename(cache / ".other.old")
        return found

    monkeypatch.setattr(token_files, "load", load_and_lose)
    assert tokenise(tmp_path / "a.txt", tokenizer, cache=cache).tokens.tolist() == expected
    assert {*entries(cache)} == {entry.name, ".other.old"}


def test_a_cache_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "file").touch()
    with pytest.raises(jaxgpt.InputError, match=r"kept in .*file/cache \(Not a directory\): .* with cache=FOLDER"):
        tokenise(tmp_path / "a.txt", jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "file" / "cache")
    if os.path.exists("/dev/full"):
        writer = token_files.Writer(tmp_path, "key", "<u2")
        os.symlink("/dev/full", writer.folder / "full.bin")
        with (
            pytest.raises(jaxgpt.InputError, match="No space left on device"),
            token_files.writable(tmp_path),
            (writer.folder / "full.bin").open("wb", buffering=0) as full,
        ):
            full.write(b"x")
        writer.close()


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("before")
    write = corpus_module.write_tokens

    def change(*args):
        (tmp_path / "a.txt").write_text("and after")
        return write(*args)

    monkeypatch.setattr("jaxgpt.data.corpus.write_tokens", change)
    with pytest.raises(jaxgpt.InputError, match="changed while being read"):
        tokenise(tmp_path / "a.txt", jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_texts_in_memory_are_a_source(tmp_path):
    source = Source("mine", (Texts("mine", ["one", "", "two"]),))
    tokenizer = jaxgpt.load_tokenizer("tiny")
    corpus = tokenise(source, tokenizer, cache=tmp_path)
    assert tokenizer.decode(corpus.tokens) == "one<|endoftext|>two<|endoftext|>"
    assert corpus.origin(len(corpus.tokens) - 1) == "mine, text 3"


def test_long_work_is_announced_in_a_log_and_short_work_is_not(tmp_path, monkeypatch, capsys):
    class Slow(Texts):
        def documents(self, advance):
            time.sleep(0.5)
            yield from super().documents(advance)

    tokenizer = jaxgpt.load_tokenizer("tiny")
    tokenise(Source("quick", (Texts("quick", ["a"]),)), tokenizer, cache=tmp_path, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("jaxgpt.data.tokenise.LONG", 0.1)
    slow = Source("slow", (Slow("slow", ["one", "two"]),))
    tokenise(slow, tokenizer, cache=tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path)
    tokenise(slow, tokenizer, cache=tmp_path, progress=True)
    begin, end = capsys.readouterr().err.splitlines()
    assert begin == "tokenising slow …"
    assert re.fullmatch(r"tokenised slow: 2 documents, 5 tokens in \d+ s", end)


# token ids


def test_nanogpts_folder_is_read_as_it_is(tmp_path):
    ids = np.arange(4000, dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    ids[:100].tofile(tmp_path / "val.bin")
    (tmp_path / "input.txt").write_text("which is what they were made of")
    tokenizer = jaxgpt.load_tokenizer("tiny")
    corpus = tokenise(tmp_path, tokenizer, cache=tmp_path / "cache")
    assert corpus.tokens.path == tmp_path / "train.bin"
    assert np.array_equal(corpus.tokens, ids)
    assert np.array_equal(corpus.held_out.tokens, ids[:100])
    assert corpus.ends.tolist() == [4000]
    assert corpus.n_bytes == 0
    assert corpus.origin(3999) == str(tmp_path / "train.bin")
    assert not (tmp_path / "cache").exists()
    alone = tokenise(tmp_path / "val.bin", tokenizer)
    assert alone.digest == corpus.held_out.digest
    assert alone.held_out is None


def llm_c(ids, magic=20240520, version=1, dtype=np.uint16, n=None) -> bytes:
    """What llm.c's dev/data/data_common.py writes."""
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(ids) if n is None else n
    return header.tobytes() + np.asarray(ids, dtype).tobytes()


@pytest.mark.parametrize(
    "how", [{}, {"magic": 20240801, "version": 7, "dtype": np.uint32}], ids=["of GPT-2", "of Llama 3"]
)
def test_data_of_llm_c_is_read_without_its_header(how, tmp_path):
    ids = np.random.default_rng(0).integers(0, 4096, 3001)
    for name in ("train.bin", "val.bin", "raw.bin"):
        (tmp_path / name).write_bytes(llm_c(ids, **how) if name != "raw.bin" else ids.astype(np.uint16).tobytes())
    tokenizer = jaxgpt.load_tokenizer("tiny")
    for source in (tmp_path, tmp_path / "val.bin"):
        corpus = tokenise(source, tokenizer, cache=tmp_path / "cache")
        assert corpus.tokens.path == tmp_path / ("val.bin" if source.suffix else "train.bin")
        assert corpus.tokens[:].tolist() == ids.tolist() == tokenise(tmp_path / "raw.bin", tokenizer).tokens[:].tolist()
        assert corpus.ends.tolist() == [3001]
    before = hashlib.sha256(json.dumps([["bin", hashlib.sha256(llm_c(ids, **how)).hexdigest()]]).encode()).hexdigest()
    assert corpus.digest != before  # a run that learnt from the header, too, had other data


@pytest.mark.bounded
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            llm_c(range(9), n=10),
            "data of llm.c: its header states 10 token ids, which makes 1,044 bytes, but it has 1,042",
        ),
        (llm_c(range(9), n=8), "its header states 8 token ids, which makes 1,040 bytes, but it has 1,042"),
        (llm_c(range(9), n=-5), "its header states -5 token ids"),
        (llm_c([]), "its header states 0 token ids"),
        (llm_c(range(9))[:100], "its header states 9 token ids, which makes 1,042 bytes, but it has 100"),
        (llm_c(range(9), version=2), "data of llm.c of version 2; only version 1 can be read"),
        (
            llm_c(range(9), magic=20240326, version=3),
            "holds a model of llm.c, according to its header, and no data to learn from",
        ),
        (llm_c(range(9), magic=20240522), "holds a multiple-choice evaluation of llm.c"),
    ],
)
def test_a_header_of_llm_c_that_is_not_true_is_refused(content, message, tmp_path):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(
        jaxgpt.InputError, match=re.escape(f"x.bin {'is ' if 'data of' in message else ''}") + ".*"
    ) as said:
        tokenise(tmp_path / "x.bin", jaxgpt.load_tokenizer("tiny"))
    assert message in str(said.value)


@pytest.mark.bounded
@pytest.mark.parametrize(("content", "n"), [(b"", "0"), (b"abc", "3")])
def test_what_is_no_whole_number_of_token_ids_is_refused(tmp_path, content, n):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(jaxgpt.InputError, match=re.escape(f"x.bin has {n} bytes")):
        tokenise(tmp_path / "x.bin", jaxgpt.load_tokenizer("tiny"))
