"""Tokenizers as they lie beside checkpoints: what AutoTokenizer reads, and nanoGPT's characters; never their code."""

import base64
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import sentencepiece
from conftest import TINY, call, random_hf
from runs import WORDS
from transformers import AutoTokenizer

import jaxgpt
from jaxgpt.convert.source import tokenizer_files
from jaxgpt.tokenizer import KNOWN_CLASSES, panics_kept_out

CHINESE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"的一是不了在人有我他这中大来上国", "hello", "##s", "world"]
DIMS = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_inner": 64, "n_positions": 64}


def model_in(folder: Path, size: int, **config) -> Path:
    random_hf(**DIMS, vocab_size=size, bos_token_id=50256, eos_token_id=50256).save_pretrained(folder)
    if config:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | config))
    return folder


def bert_in(folder: Path, named: str) -> Path:
    """A GPT-2 with BERT's kind of tokenizer, as Chinese models have it; its class is named here, there or nowhere."""
    model_in(folder, 32, **({"tokenizer_class": "BertTokenizer"} if named == "config" else {}))
    (folder / "vocab.txt").write_text("\n".join(CHINESE))
    if named == "tokenizer_config":
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


@pytest.mark.parametrize("named", ["config", "tokenizer_config", "nowhere"])
def test_a_vocab_txt_is_read_and_travels_with_every_conversion(tmp_path, named):
    folder = bert_in(tmp_path / "bert", named)
    theirs = AutoTokenizer.from_pretrained(folder, tokenizer_type="bert")
    ours = jaxgpt.load_tokenizer(folder)
    text = "我是中国人 hellos world"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    call("convert", folder, tmp_path / "orbax", "--to=orbax")
    call("convert", tmp_path / "orbax", tmp_path / "hf", "--to=hf")
    assert (tmp_path / "hf" / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert jaxgpt.load_tokenizer(tmp_path / "hf")(text)["input_ids"] == theirs(text)["input_ids"]
    assert call("jaxgpt", "generate", tmp_path / "hf", "--prompt=我是", "--max-new-tokens=3").returncode == 0


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize("named", [None, *KNOWN_CLASSES])
def test_a_class_that_is_known_is_the_one_that_autotokenizer_takes(tmp_path, named, has_config):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    told = json.loads((folder / "tokenizer_config.json").read_text()) | {"extra_special_tokens": ["<note>"]}
    told = told | {"tokenizer_class": named} if named else {k: v for k, v in told.items() if k != "tokenizer_class"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    if not has_config:
        (folder / "config.json").unlink()
    ours, theirs = jaxgpt.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(ours) is type(theirs)
    saved = []
    for name, tokenizer in (("ours", ours), ("theirs", theirs)):
        tokenizer.save_pretrained(tmp_path / name)
        saved.append({file.name: file.read_text() for file in (tmp_path / name).iterdir()})
    assert saved[0] == saved[1]


def test_reading_a_gpt2_tokenizer_does_not_import_pytorch():
    code = "import sys, jaxgpt; jaxgpt.load_tokenizer('tiny'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_run_keeps_a_tokenizer_of_another_kind(tmp_path):
    folder = bert_in(tmp_path / "bert", "config")
    (tmp_path / "some.txt").write_text("我是中国人 他在这 hello world " * 100)
    flags = ("--steps=2", "--batch-size=4", "--eval-every=2", f"--cache={tmp_path}/cache")
    call("train", f"--model={folder}", f"--data={tmp_path}/some.txt", f"--out={tmp_path}/run", *flags, samples=False)
    text = "中国人 hello"
    assert (
        jaxgpt.load_tokenizer(tmp_path / "run")(text)["input_ids"] == jaxgpt.load_tokenizer(folder)(text)["input_ids"]
    )
    assert call("jaxgpt", "eval", tmp_path / "run", f"--data={tmp_path}/some.txt").stdout.startswith("loss")


def bpe_in(folder: Path) -> None:
    """Write the bundled tokenizer as GPT-2's was published: two files."""
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))


@pytest.mark.parametrize("beside", ["nothing", "a model", "generation_config.json"])
def test_a_vocabulary_and_merges_alone_are_gpt2_s(tmp_path, beside):
    if beside == "a model":
        model_in(tmp_path, 4096)
    if beside == "generation_config.json":
        (tmp_path / beside).write_text("{}")
    bpe_in(tmp_path)
    text = "In the beginning, God’s  heaven\n\tand 1234 earths…"
    assert jaxgpt.load_tokenizer(tmp_path)(text)["input_ids"] == jaxgpt.load_tokenizer("tiny")(text)["input_ids"]


@pytest.mark.parametrize("form", ["strings", "objects"])
def test_added_tokens_and_special_tokens_in_either_form(tmp_path, form):
    folder = tmp_path / "old"
    model_in(folder, 4100)
    bpe_in(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<|pad|>": 4096, "<|end|>": 4097}))
    marks = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
    if form == "objects":
        how = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        marks = {role: {"content": token, **how} for role, token in marks.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    for place in (folder, tmp_path / "hf"):
        found = jaxgpt.load_tokenizer(place)
        assert (found.pad_token_id, found.eos_token_id) == (4096, 4097)
        assert found("In the<|end|>")["input_ids"][-1] == 4097
        assert found.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi<|end|>"
        if place == folder:
            call("convert", folder, tmp_path / "hf", "--to=hf")
    assert tokenizer_files(tmp_path / "hf").keys() == tokenizer_files(folder).keys()


# sentencepiece's models

PIECES = {  # the file that each class has its vocabulary in, and how that was trained
    "T5Tokenizer": ("spiece.model", "unigram"),
    "LlamaTokenizer": ("tokenizer.model", "bpe"),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", "unigram"),
}


def pieces_in(folder: Path, kind: str, *, named: bool = True) -> Path:
    name, algorithm = PIECES[kind]
    folder.mkdir()
    (folder / "text").write_text("\n".join(f"the cat number {i} sat on mat {i * 7 % 13} and slept" for i in range(200)))
    told = {"vocab_size": 60, "model_type": algorithm, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "text"), model_prefix=str(folder / "made"), **told)
    (folder / "made.model").rename(folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    if named:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    return folder


@pytest.mark.parametrize("kind", PIECES)
def test_sentencepiece_s_vocabularies_are_read_and_travel(tmp_path, kind):
    folder, text = pieces_in(tmp_path / "pieces", kind), "the cat slept on number 7"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert jaxgpt.load_tokenizer(folder)(text)["input_ids"] == theirs(text)["input_ids"]
    model_in(tmp_path / "model", len(theirs))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).rename(folder / name)
    call("convert", folder, tmp_path / "orbax", "--to=orbax")
    call("convert", tmp_path / "orbax", tmp_path / "hf", "--to=hf")
    assert (tmp_path / "hf" / PIECES[kind][0]).read_bytes() == (folder / PIECES[kind][0]).read_bytes()
    assert jaxgpt.load_tokenizer(tmp_path / "hf")(text)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.bounded
@pytest.mark.parametrize("kind", PIECES)
def test_a_vocabulary_of_an_unknown_class_is_refused(tmp_path, kind):
    """transformers takes it for GPT-2's own tokenizer, without a word, and its ids are other ones."""
    folder = pieces_in(tmp_path / "pieces", kind, named=False)
    with pytest.raises(
        jaxgpt.InputError, match=rf"{PIECES[kind][0]} alone does not say how it is read: in tokenizer_config.json"
    ):
        jaxgpt.load_tokenizer(folder)


@pytest.mark.bounded
@pytest.mark.parametrize("content", ["AAAA", "", "////", "no base64!", "/////wAA"])
def test_a_map_of_characters_that_is_cut_off_never_reaches_the_library(tmp_path, content):
    """It would end the process, with pages of Rust's; one that is whole is read."""
    shutil.copytree(TINY, tmp_path / "tiny")
    file = tmp_path / "tiny" / "tokenizer.json"
    fields = json.loads(file.read_text())
    for text, is_whole in ((content, False), (base64.b64encode(bytes([8, 0, 0, 0, *b"12345678", 0])).decode(), True)):
        table = {"type": "Precompiled", "precompiled_charsmap": text}
        file.write_text(json.dumps(fields | {"normalizer": {"type": "Sequence", "normalizers": [table]}}))
        if is_whole:
            assert jaxgpt.load_tokenizer(tmp_path / "tiny")("a")["input_ids"]
        else:
            with pytest.raises(jaxgpt.InputError, match="its precompiled_charsmap is damaged"):
                jaxgpt.load_tokenizer(tmp_path / "tiny")


# nanoGPT's characters


def characters(path: Path, text: str = "\n !abcdefgh京é", **more) -> Path:
    letters = sorted(set(text))
    table = {
        "vocab_size": len(letters),
        "itos": dict(enumerate(letters)),
        "stoi": {c: i for i, c in enumerate(letters)},
    }
    path.write_bytes(pickle.dumps(table | more))
    return path


def test_nanogpt_s_characters_are_a_tokenizer_and_come_back(tmp_path):
    letters = sorted("\n !abcdefgh京é")
    model_in(tmp_path / "m", len(letters))
    characters(tmp_path / "m" / "meta.pkl")
    tokenizer, text = jaxgpt.load_tokenizer(tmp_path / "m"), "a bad京é\n  cab!"
    assert tokenizer(text)["input_ids"] == [letters.index(c) for c in text]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    (tmp_path / "some.txt").write_text("a bad cab\n" * 200)
    flags = ("--steps=2", "--batch-size=4", "--eval-every=2", f"--cache={tmp_path}/cache", "--prompt=a")
    call(
        "train", f"--model={tmp_path}/m", f"--data={tmp_path}/some.txt", f"--out={tmp_path}/run", *flags, samples=False
    )
    call("convert", tmp_path / "run", tmp_path / "hf", "--to=hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")(text)["input_ids"] == [letters.index(c) for c in text]
    refused = call("jaxgpt", "generate", tmp_path / "hf", "--prompt=xyz", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "can't encode 'xyz'" in refused.stderr


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit(7)",)


@pytest.mark.bounded
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"stoi": Evil()}), "exec"),
        (pickle.dumps({"itos": {0: "a"}}), r"not nanoGPT's table of characters \(stoi\)"),
        (pickle.dumps({"stoi": {"ab": 0}}), "not nanoGPT's table"),
        (pickle.dumps({"stoi": {"a": 0, "b": 7}}), "ids of its 2 characters are not 0 to 1"),
        (pickle.dumps({"stoi": {"a": [0]}}), "ids of its 1 characters"),
        (b"", "not a pickle that can be read"),
        (b"\x80\x04nonsense", "not a pickle that can be read"),
        (b"\x80\x04" + b"0" * 20_000_000, "more than 10,000,000 bytes"),
    ],
)
def test_a_table_of_characters_that_is_anything_else_is_refused(tmp_path, content, message):
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(jaxgpt.InputError, match=message):
        jaxgpt.load_tokenizer(tmp_path)


# code beside a tokenizer, and broken files

CODE = "import pathlib; pathlib.Path({!r}).touch()\nclass Evil: pass\n"
"""It is copied before it runs, so that it has to know where to leave its mark."""


@pytest.mark.bounded
@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize("local", ["PreTrainedTokenizerFast", "Evil"])
def test_code_beside_a_tokenizer_never_runs_nor_is_asked_about(tmp_path, has_config, local):
    folder = model_in(tmp_path / "m", 4096)
    if not has_config:
        (folder / "config.json").unlink()
    shutil.copy(TINY / "tokenizer.json", folder)
    fields = {"tokenizer_class": local, "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "evil.py").write_text(CODE.format(str(tmp_path / "RAN")))
    exec((folder / "evil.py").read_text(), {})  # it does leave one
    (tmp_path / "RAN").unlink()
    with contextlib.suppress(jaxgpt.InputError):
        jaxgpt.load_tokenizer(folder)
    assert not [*tmp_path.rglob("RAN")]
    code = f"import jaxgpt; jaxgpt.load_tokenizer({str(folder)!r})"
    asked = forked.run("import io, sys; sys.stdin = io.StringIO('y\\n' * 9)\n" + code)  # whoever is asked says yes
    assert not [*tmp_path.rglob("RAN")]
    assert "[y/N]" not in asked.stdout + asked.stderr


@pytest.mark.bounded
@pytest.mark.parametrize("content", ["{}", "{", "[]", '{"model": {"type": "BPE"}}', "null"])
def test_a_broken_tokenizer_is_one_line(tmp_path, content):
    folder = model_in(tmp_path / "m", 4096)
    (folder / "tokenizer.json").write_text(content)
    done = call("jaxgpt", "generate", folder, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the tokenizer can't be read" in done.stderr


SOUND = (TINY / "tokenizer.json").read_bytes()
MERGES = "#version: 0.2\na b\n"
BROKEN: dict[str, dict[str, str | bytes]] = {
    "half a tokenizer.json": {"tokenizer.json": SOUND[:50_000]},
    "no UTF-8": {"tokenizer.json": b"\xff\xfe\0" * 99},
    "deep": {"tokenizer.json": "[" * 100_000},
    "an endless id": {"tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {"a": 1e400}, "unk_token": "a"}}'},
    "a negative id": {"tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}'},
    "a text as an id": {"vocab.json": '{"a": "x", "b": 1, "ab": 2}', "merges.txt": MERGES},
    "a list as a vocabulary": {"vocab.json": "[1, 2]", "merges.txt": MERGES},
    "half a vocabulary": {"vocab.json": '{"a": 0, "b', "merges.txt": MERGES},
    "an empty vocabulary": {"vocab.json": "{}", "merges.txt": ""},
    "a vocabulary of noise": {"vocab.json": b"\0\xff" * 99, "merges.txt": MERGES},
    "a merge of one": {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "#version: 0.2\na\n"},
    "a merge of what is unknown": {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": MERGES},
    "merges of noise": {"vocab.json": '{"a": 0, "b": 1, "ab": 2}', "merges.txt": b"\xff\0" * 99},
    "a broken configuration": {"tokenizer.json": SOUND, "tokenizer_config.json": "{"},
    "a list as a configuration": {"tokenizer.json": SOUND, "tokenizer_config.json": "[]"},
    "added tokens of no kind": {"tokenizer.json": SOUND, "tokenizer_config.json": '{"added_tokens_decoder": {"x": 3}}'},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return model_in(tmp_path_factory.mktemp("model") / "m", 4096)


@pytest.mark.bounded
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_of_a_tokenizer_are_one_line_to_every_command(model, tmp_path, name, capfd):
    folder = Path(shutil.copytree(model, tmp_path / "m"))
    for file, content in BROKEN[name].items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "out"
    commands = (
        ("jaxgpt", "generate", folder),
        ("jaxgpt", "eval", folder, f"--data={WORDS}"),
        ("train", f"--model={folder}", f"--out={out}"),
    )
    for command in commands:
        done = call(*command, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert str(folder) in done.stderr
        assert not out.exists()
    assert capfd.readouterr().err == ""


def test_what_is_said_while_a_tokenizer_is_read_is_lost_only_if_that_fails(capfd):
    for fails in (False, True):
        with contextlib.suppress(KeyError), panics_kept_out():
            os.write(2, b"a warning\n")
            if fails:
                raise KeyError
        assert capfd.readouterr().err == ("" if fails else "a warning\n")


def test_where_nothing_is_a_tokenizer_the_files_are_named(tmp_path):
    with pytest.raises(
        jaxgpt.InputError, match=r"no tokenizer found: there is none of tokenizer\.json, vocab\.json, vo"
    ):
        jaxgpt.load_tokenizer(model_in(tmp_path / "m", 30))
