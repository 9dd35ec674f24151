"""Two processes and one folder: one writes, the other is told, and nothing is lost."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import forked
import pytest
from conftest import call
from runs import QUICK, metrics

import jaxgpt
from jaxgpt.convert.disk import publish
from jaxgpt.convert.source import complete_steps
from jaxgpt.train.run.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from jaxgpt.train.run.lock import RunLock
RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


def train(*flags: object) -> forked.Forked:
    return forked.Forked(forked.RUN, *flags, stderr=subprocess.STDOUT)


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
    out = tmp_path / "r"
    call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK)
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
    while "model  " not in said:  # it has checked the folder, and compiles
        said += late.stdout.readline()
    late.send_signal(signal.SIGSTOP)
    assert not out.exists()
    call("train", *flags)
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


# conversions


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
