"""What costs too much is refused before it does: patterns, headers, words without end, and files that are none."""

import builtins
import contextlib
import io
import json
import os
import re
import socket
import threading
import time
import zlib
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import TINY, call

import jaxgpt
from jaxgpt import freeze
from jaxgpt.arguments import check_stream
from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.errors import InputError
from jaxgpt.data.corpus import tokenise
from jaxgpt.data.sources import find
from jaxgpt.data.streams import sha256_of, stamp
from jaxgpt.data.token_ids import TokenFile
from jaxgpt.model.capture import make_capture
from jaxgpt.params import match
from jaxgpt.patterns import Pattern
from jaxgpt.training.step.optimizer import rate_factors

pytestmark = pytest.mark.bounded

# patterns

BACKTRACKING = [
    r"(a|aa)+x", r"(?:\w|\w\w|\w\w\w)*[^\w]", r"(\w|\w\w)+\.", r"((a|a?)+)+\1x", r"(a*a*)*(b|\Wa)", r"(a|b|ab|a)*c",
]  # fmt: skip


@pytest.mark.parametrize("pattern", BACKTRACKING)
def test_a_pattern_that_goes_back_and_forth_is_refused_or_known_not_to_match(pattern, monkeypatch):
    monkeypatch.setattr("jaxgpt.patterns.SECONDS", 0.1)
    names = ["a" * 60]
    for act in (
        lambda: Pattern(pattern).matching(names),
        lambda: match(((pattern, True), (".*", False)), names)[names[0]],
        lambda: rate_factors(["tok_emb." + "a" * 60], 1, 1.0, [rf"tok_emb\.{pattern}=2.0"]),
    ):
        try:
            assert not act()
        except InputError as error:
            message = str(error)
            assert "takes too long to match" in message or "no trainable parameter matches" in message


def test_a_pattern_is_stopped():
    for pattern in BACKTRACKING[:2]:
        with pytest.raises(InputError, match="takes too long to match"):
            Pattern(pattern).matching(["a" * 60])


@pytest.mark.parametrize("pattern", ["(", "a" * 10_001, "(?P<a>a)(?P<a>b)", "[z-a]", "a{2,1}", ".*{e}", "[[:alpha:]]"])
def test_what_is_no_pattern_is_refused(pattern):
    for act in (Pattern, make_capture, lambda text: freeze.parse(f"regex:{text}", jaxgpt.GPTConfig())):
        with pytest.raises(InputError, match="is not a regular expression"):
            act(pattern)


WRITTEN_OUT = [
    ".{1000000000}", "a{10000000,}", "(?:(?:(?:.{99}){99}){99}){99}", "(?=.{9999999})", "(?:" + "a" * 9000 + "){1000}",
    "[a-z]{" + "9" * 5000 + "}",
]  # fmt: skip
"""Patterns of which the engine makes as many copies as they count: gigabytes."""


@pytest.mark.parametrize("pattern", WRITTEN_OUT)
def test_a_pattern_that_is_large_when_it_is_written_out_is_refused(pattern, monkeypatch):
    monkeypatch.setattr("jaxgpt.patterns.regex.compile", None)
    for act in (Pattern, make_capture, lambda text: freeze.parse(f"lora:on={text}", jaxgpt.GPTConfig())):
        with pytest.raises(InputError, match="is not a regular expression"):
            act(pattern)


def test_patterns_mean_what_they_mean_to_python():
    names = ["tok_emb.embedding", "blocks.0.mlp.fc1.kernel", "blocks.10.mlp.fc1.bias", "ln_f.scale"]
    for text in (
        r"blocks\.\d+\..*",
        "(?i)TOK.*",
        r"(?!blocks).*",
        "[^.]+.[^.]+",
        r".*\.(kernel|bias)",
        "",
        r"l{1,2}n?_f.{,9}",
    ):
        assert Pattern(text).matching(names) == {name for name in names if re.fullmatch(text, name)}


# headers


def header(entries: str) -> bytes:
    return len(entries).to_bytes(8, "little") + entries.encode()


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
HEADERS = {
    "a million empty tensors": lambda: header("{" + ",".join(f'"t{i}":{EMPTY}' for i in range(10**6)) + "}"),
    "lists in the metadata": lambda: header('{"__metadata__":{"a":[' + "[]," * 6_000_000 + "[]]}}"),
    "100,000 names": lambda: header("{" + ",".join(f'"t{i}":{EMPTY}' for i in range(10**5)) + "}"),
    "a name of 30 MB": lambda: header('{"' + "a" * 30_000_000 + f'":{EMPTY}' + "}"),
    "a long shape": lambda: header('{"a":{"dtype":"F32","shape":[' + "1," * 2_000_000 + '1],"data_offsets":[0,4]}}'),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_costs_too_much_is_refused(name, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HEADERS[name]())
    with pytest.raises(InputError, match=r"more than|longer than"):
        open_contents(tmp_path)


@pytest.mark.parametrize("n", [2_000, 200_000])
def test_an_index_of_very_many_shards_is_refused(n, tmp_path):
    weight_map = {f"t{i}": f"s{i}.safetensors" for i in range(n)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="no GPT-2 has more than"):
        open_contents(tmp_path)


# words without end


def bomb(word: bytes, n: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(word * 2**16) for _ in range(n // (len(word) * 2**16))) + packer.flush()


PEAK = """
import re, sys
from pathlib import Path
import jaxgpt
from jaxgpt.data.corpus import tokenise
tokenizer = jaxgpt.load_tokenizer("tiny")
tokenizer("a")
Path("/proc/self/clear_refs").write_text("5")
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
try:
    tokenise(sys.argv[1], tokenizer, cache=Path(sys.argv[2]))
except jaxgpt.InputError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", lambda: bomb(b"a", 2**26)),
        ("a.txt.gz", lambda: bomb("\N{GRINNING FACE}".encode(), 2**26)),
        ("a.jsonl.gz", lambda: record_bomb(2**25)),
        ("a.txt", lambda: b"word " * 5000 + b"\t" * 2**23),
    ],
    ids=["a letter", "a face", "a record", "tabs after words"],
)
def test_a_text_of_one_word_takes_little_memory(name, content, tmp_path):
    (tmp_path / name).write_bytes(content())
    done = forked.run(PEAK, tmp_path / name, tmp_path / "cache")
    said, peak = done.stdout.splitlines()
    assert "without a point where this tokenizer can split it" in said
    assert int(peak) < 300_000


def record_bomb(n: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(b'{"text": "' + b"a" * n + b'"}\n') + packer.flush()


def test_a_conversation_without_end_is_refused(tmp_path):
    messages = [{"role": "user", "content": "a" * 2**20}, {"role": "assistant", "content": "b"}]
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [json.dumps({"messages": m}) for m in (short, messages)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    tokenizer = jaxgpt.load_tokenizer("tiny")
    jaxgpt.chat.prepare_chat(tokenizer)
    with pytest.raises(InputError, match=r"line 2: the conversation has 1,048,577 characters"):
        tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache")
    corpus = tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache", skip_bad_records=True)
    assert len(corpus.ends) == 1


# files that are none


def folder_with(path: Path, make) -> Path:
    path.mkdir()
    (path / "a.txt").write_text("a text")
    make(path / "b.txt")
    return path


NONE = {
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
}


@pytest.mark.parametrize("name", NONE)
def test_a_folder_of_data_with_what_is_no_file_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    folder = folder_with(Path("data"), NONE[name])
    with pytest.raises(InputError, match=r"data/b\.txt is no file that can be read"):
        find(folder)
    for single in ("train.bin", "val.bin"):
        (folder / "train.bin").unlink(missing_ok=True)
        (folder / "train.bin").write_bytes(bytes(64))
        (folder / single).unlink(missing_ok=True)
        NONE[name](folder / single)
        with pytest.raises(InputError, match=r"can't be read|neither a file nor"):
            tokenise(folder, jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "cache")


def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    folder = folder_with(tmp_path / "data", lambda path: (path.parent / "inner").mkdir())

    def scandir(path, scan=os.scandir):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"inner: Permission denied"):
        find(folder)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_data_that_is_a_pipe_or_may_not_be_read_is_one_line(command, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "secret.txt").write_text("a text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "secret.txt").write_text("a text")
    before = sorted(tmp_path.rglob("*"))

    def without(open_it):
        def refuse(path, *args, **how):
            if str(path).endswith("secret.txt"):
                raise PermissionError(13, "Permission denied", str(path))
            return open_it(path, *args, **how)

        return refuse

    for module in (os, io, builtins):
        monkeypatch.setattr(module, "open", without(module.open))
    denied = "Permission denied"
    messages = {"pipe.txt": "can't be read|neither a file nor", "secret.txt": denied, "folder": denied}
    for name, message in messages.items():
        start = ["train", f"--out={tmp_path}/r"] if command == "train" else ["jaxgpt", "eval", TINY]
        done = call(*start, f"--data={tmp_path / name}", f"--cache={tmp_path}/cache", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert re.search(rf"{tmp_path / name}\S*.*({message})", done.stderr)
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_a_file_that_grows_while_it_is_read_has_an_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 200_000)
    stop = threading.Event()

    def grow():
        with path.open("ab") as file:
            while not stop.is_set():
                file.write(b"word " * 10_000)
                file.flush()
                time.sleep(0.001)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        with pytest.raises(InputError, match="changed while being read: try again"):
            tokenise(path, jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "cache")
    finally:
        stop.set()
        thread.join()

    def grow_by(n: int) -> None:
        with path.open("ab") as file:
            file.write(bytes(n))

    with pytest.raises(InputError, match="changed while being read: try again"):
        sha256_of(path, grow_by)


CHANGES = {
    "shorter": lambda path: os.truncate(path, 1000),
    "longer": lambda path: path.open("ab").write(b"12"),
    "other ids": lambda path: path.open("r+b").write(b"12"),
    "gone": lambda path: path.unlink(),
    "another file": lambda path: (path.unlink(), path.write_bytes(bytes(200_000))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_token_ids_that_change_while_they_are_used_are_named(name, tmp_path):
    path = tmp_path / "train.bin"
    np.arange(100_000, dtype="<u2").tofile(path)
    tokens = TokenFile(path, "<u2", 0, stamp(path))
    assert tokens[5:7].tolist() == [5, 6]
    time.sleep(0.01)  # a clock of a file system may be coarse
    CHANGES[name](path)
    with pytest.raises((OSError, InputError), match=r"train\.bin"):
        tokens[90_000:90_010]


def test_a_part_of_a_file_of_token_ids_is_that_of_an_array(tmp_path):
    ids = np.arange(1000, dtype="<u4")
    path = tmp_path / "train.bin"
    path.write_bytes(bytes(1024) + ids.tobytes())
    tokens = TokenFile(path, "<u4", 1024, stamp(path))
    assert len(tokens) == 1000
    assert tokens.shape == (1000,)
    assert tokens.dtype == ids.dtype
    assert np.array_equal(np.asarray(tokens), ids)
    assert np.asarray(tokens, np.int64).dtype == np.int64
    for part in (slice(0, 5), slice(990, 2000), slice(-7, None), slice(5, 5), slice(9, 3), slice(1000, 1001)):
        assert np.array_equal(tokens[part], ids[part]), part
    with pytest.raises(ValueError, match="has no step"):
        tokens[::2]


def test_token_ids_that_are_truncated_in_the_middle_of_a_look_do_not_end_the_process(tmp_path):
    """A look at a mapped file does, and a check before it leaves some microseconds."""
    path = tmp_path / "train.bin"
    done = forked.run(f"""
import os, threading
from pathlib import Path
from jaxgpt.data.streams import stamp
from jaxgpt.data.token_ids import TokenFile
path = Path({str(path)!r})
path.write_bytes(bytes(2**22))
tokens, looks, changed = TokenFile(path, "<u2", 0, stamp(path)), 0, 0
def change():
    for i in range(300):
        os.truncate(path, 1000 if i % 2 else 2**22)
thread = threading.Thread(target=change)
thread.start()
while thread.is_alive():
    looks += 1
    try:
        assert len(tokens[2**20:]) == 2**20
    except OSError:
        changed += 1
print(0 < changed <= looks)
""")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_long_sequence_of_token_ids_is_checked_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxgpt.arguments.PART", 100)
    path, parts = tmp_path / "train.bin", []

    class Recorded(TokenFile):
        def __getitem__(self, part):
            parts.append(part)
            return super().__getitem__(part)

    ids = np.full(250, 7, "<u2")
    for at in (None, 0, 99, 100, 249):
        if at is not None:
            ids[at] = 4096
        ids.tofile(path)
        parts.clear()
        with pytest.raises(InputError, match="0 to 4095") if at is not None else contextlib.nullcontext():
            check_stream(Recorded(path, "<u2", 0, stamp(path)), 4096)
        assert all(part.stop - part.start == 100 for part in parts)
        assert len(parts) == (3 if at is None else at // 100 + 1)
        ids[:] = 7


def test_a_run_whose_data_changes_stops_with_one_line(small, tmp_path):
    path = tmp_path / "train.bin"
    (np.arange(40_000) % 4000).astype("<u2").tofile(path)
    code = f"""
import os, jaxgpt.training.loop as loop
make = loop.device_train_batches
def changing(*args, **how):
    for i, batch in enumerate(make(*args, **how)):
        if i == 2:
            os.truncate({str(path)!r}, 1000)
        yield batch
loop.device_train_batches = changing
"""
    flags = [f"--model={small}", f"--data={path}", f"--out={tmp_path / 'run'}", "--context=16", "--batch-size=4"]
    done = forked.run(code + forked.RUN, *flags, "--steps=300")
    assert done.returncode == 74, done.stderr
    assert "train.bin: it has changed since it was opened: stopped after step" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_pipe_in_the_place_of_a_config_does_not_hang(tmp_path):
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        folder = tmp_path / name
        folder.mkdir()
        for file in TINY.iterdir():
            if file.name != name:
                (folder / file.name).symlink_to(file)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
        os.mkfifo(folder / name)
        assert call("convert", folder, check=False).returncode in (0, 2)
