"""Two processes and one folder: one writes, the other is told, and nothing is lost."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import TINY, call
from runs import QUICK, assert_same_run, metrics, unfinished

import jaxgpt
from jaxgpt.convert.disk import publish
from jaxgpt.convert.mapping import same
from jaxgpt.convert.source import complete_steps
from jaxgpt.data.corpus import tokenise
from jaxgpt.training.run.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from jaxgpt.training.run.lock import RunLock
RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


def train(*flags: object) -> forked.Forked:
    return forked.Forked(forked.RUN, *flags, stderr=subprocess.STDOUT, samples=False)


def test_a_lock_ends_with_its_process(tmp_path):
    holder = forked.Forked(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(jaxgpt.InputError, match=rf"is in use by another process \(process {holder.pid} on \S+\)"):
        RunLock(tmp_path).take()
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path)
    lock.take()
    lock.take()  # once
    assert (tmp_path / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
    lock.give_back()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_made_by_its_lock(tmp_path):
    lock = RunLock(tmp_path / "none")
    lock.take()
    lock.give_back()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"run\.lock"):
        RunLock(tmp_path / "run").take()
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--resume", "--force", "--resume-anyway"])
def test_a_run_that_goes_on_is_left_alone(small, whole_run, tmp_path, flag):
    out = Path(shutil.copytree(whole_run, tmp_path / "r"))
    holder = forked.Forked(HOLD, out)
    assert holder.stdout.readline() == "held\n"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    refused = call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, flag, check=False)
    assert refused.returncode == 2
    assert re.fullmatch(rf"train: --out: \S+ is in use by another process \(process {holder.pid} on \S+\): [^\n]*\n",
                        " ".join(refused.stderr.split()) + "\n")  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    holder.kill()


def test_a_run_that_came_meanwhile_is_not_deleted(small, tmp_path):
    """B is stopped before its folder is there; A finishes in that folder; B goes on."""
    out = tmp_path / "X"
    flags = (f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK)
    late = train(*flags)
    said = ""
    for line in late.stdout:
        said += line
        if "model  " in line:  # it has checked the folder, and compiles
            break
    else:
        pytest.fail(f"it has ended: {said}")
    late.send_signal(signal.SIGSTOP)
    assert not out.exists()
    call("train", *flags, samples=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    late.send_signal(signal.SIGCONT)
    said += late.communicate()[0]
    assert late.returncode == 2, said
    assert "holds a run already" in " ".join(said.split())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


PAIRS: list[tuple[str, ...]] = [(), ("--resume",), ("--resume", "--force")]
N_PAIRS = int(os.environ.get("JAXGPT_TEST_PAIRS", len(PAIRS)))
"""Pairs of starts; 30 of them take ten minutes."""


def test_two_starts_at_once_lose_no_checkpoint_and_write_no_line_twice(small, tmp_path):
    """Fresh, resumed and forced, at random offsets: one of them finishes, and what is there is whole."""
    chance = random.Random(5)
    for i in range(N_PAIRS):
        pair = PAIRS[i % len(PAIRS)]
        out = tmp_path / f"r{i}"
        flags = [f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK]
        extra = [pair[0] if pair else "", pair[-1] if pair else ""]
        first = train(*flags, *filter(None, extra[:1]))
        time.sleep(chance.uniform(0, 4) if i else 0)
        second = train(*flags, *filter(None, extra[1:]))
        said = [process.communicate()[0] for process in (first, second)]
        codes = {first.returncode, second.returncode}
        assert codes <= {0, 2}, said
        assert 0 in codes, said
        assert "Traceback" not in "".join(said)
        assert complete_steps(out)[-1] == 9
        assert [line["step"] for line in metrics(out)] == list(range(10))
        assert json.loads((out / "run.json").read_text())["steps"] == 9


def test_two_resumptions_at_once_go_on_once(small, whole_run, tmp_path):
    out = unfinished(whole_run, tmp_path / "r")
    both = [forked.Forked(forked.RUN, "--resume", out, samples=False) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0]), said
    for process, (_, error) in zip(both, said, strict=True):
        assert process.returncode == 0 or re.fullmatch(
            r"train: --out: \S+ is in use by another process \(process \d+ on \S+\): [^\n]*\n", error
        )
    assert sum("9 steps in" in text or "3 steps in" in text for text, _ in said) == 1, said
    assert_same_run(out, whole_run, 9)
    assert not (out / "run.lock").exists()


# conversions and caches

MEETING = """
import os, sys, time
from pathlib import Path
import {module} as module
wait, place, name = time.sleep, Path(sys.argv.pop(1)), "{function}"
original = getattr(module, name)
def meet(*args, **how):
    (place / str(os.getpid())).touch()
    for _ in range(3000):
        if len(list(place.iterdir())) > 1:
            break
        wait(0.01)
    return original(*args, **how)
setattr(module, name, meet)
"""
"""Two processes call a function at the same moment: each waits for the other."""


def two_at_once(code: str, module: str, function: str, *args: object, tmp_path: Path, **how) -> list[forked.Forked]:
    place = tmp_path.with_suffix(".meeting")
    place.mkdir()
    text = MEETING.format(module=module, function=function) + code
    both = [forked.Forked(text, place, *args, **how) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert len(list(place.iterdir())) == 2, said
    return [
        subprocess.CompletedProcess(args, process.returncode, *said) for process, said in zip(both, said, strict=True)
    ]


@pytest.mark.parametrize("form", ["hf", "lesson"])
def test_two_conversions_to_one_target_write_it_once(tmp_path, form):
    target = tmp_path / ("out.pt" if form == "lesson" else "out")
    both = two_at_once(
        forked.CONVERT, "jaxgpt.convert.export", "publish", TINY, target, f"--to={form}", tmp_path=tmp_path,
        imports=forked.CONVERSION,
    )  # fmt: skip
    one, other = sorted(both, key=lambda done: done.returncode)
    assert (one.returncode, other.returncode) == (0, 2), (one, other)
    assert re.fullmatch(rf"convert: {target} exists already[^\n]*\n", other.stderr), other.stderr
    assert [*tmp_path.iterdir()] == [target]
    told = {"n_head": 4, "activation": "gelu_new"} if form == "lesson" else {}
    written, expected = jaxgpt.convert.read(target, **told).params, jaxgpt.convert.read(TINY).params
    assert written.keys() == expected.keys()
    assert all(same(np.asarray(array), np.asarray(expected[name])) for name, array in written.items())


TOKENISE = """
import hashlib, jaxgpt
from jaxgpt.data.corpus import tokenise
tokens = tokenise(sys.argv[1], jaxgpt.load_tokenizer("tiny"), cache=Path(sys.argv[2])).tokens
print(hashlib.sha256(tokens.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("there", ["nothing", "a damaged entry"])
def test_two_processes_and_one_token_cache_both_have_the_tokens(tmp_path, there):
    text, cache = tmp_path / "a.txt", tmp_path / "cache"
    text.write_text("The end of a text. " * 500)
    expected = tokenise(text, jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "alone").tokens.tobytes()
    if there == "nothing":
        cache.mkdir()
    else:
        shutil.copytree(tmp_path / "alone", cache)
        [tokens] = cache.glob("*/tokens.bin")
        tokens.write_bytes(bytes(tokens.stat().st_size))
    both = two_at_once(TOKENISE, "jaxgpt.data.corpus", "write_tokens", text, cache, tmp_path=tmp_path)
    assert [done.returncode for done in both] == [0, 0], both
    assert {done.stdout.strip() for done in both} == {hashlib.sha256(expected).hexdigest()}
    assert [path.name for path in cache.iterdir()] == [path.name for path in (tmp_path / "alone").iterdir()]
    again = tokenise(text, jaxgpt.load_tokenizer("tiny"), cache=cache)
    assert again.tokens.tobytes() == expected


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_another_process_wrote_meanwhile_is_not_replaced(tmp_path, kind):
    new, there = tmp_path / "new", tmp_path / "there"
    for path in (new, there):
        if kind == "folder":
            path.mkdir()
        (path / "x" if kind == "folder" else path).write_text(path.name)
    with pytest.raises(jaxgpt.InputError, match="exists already"):
        publish(new, there, replaces=False)
    content = Path(there / "x" if kind == "folder" else there)
    assert content.read_text() == "there"
    publish(new, there, replaces=True)
    assert content.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
