"""Many kills over one run, which comes out as if there had been none."""

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from conftest import call
from runs import QUICK, assert_same_run

from jaxgpt import convert
from jaxgpt.convert.source import complete_steps

KILLS = (
    ("before the first step", signal.SIGKILL), ("before the first step", signal.SIGINT),
    ("between steps", signal.SIGKILL), ("between steps", signal.SIGTERM),
    ("during a save", signal.SIGKILL), ("during a save", signal.SIGINT),
)  # fmt: skip
"""At each moment one that ends the process, and one that asks it to stop: what may ask, `StopSignals` hears alike."""

READING = """
import sys, threading, time
import jaxgpt.loading, jaxgpt.training.run.base
from jaxgpt.training.__main__ import main
what, at, *flags = sys.argv[1:]
module, name = {"read": (jaxgpt.loading, "_put"), "digested": (jaxgpt.training.run.base, "digest")}[what]
original, lock, count = getattr(module, name), threading.Lock(), 0

def counted(*args, **how):
    global count
    with lock:
        count += 1
        if count == int(at):
            print("now", flush=True)
            time.sleep(600)
    return original(*args, **how)

setattr(module, name, counted)
sys.argv = ["train", *flags]
main()
"""
"""A run that goes no further than to one of the parameters of its base."""

STEPS, SEED = 30, 6
FLAGS = (
    "--freeze=gradual:last1@0,full@11", f"--steps={STEPS}", "--batch-size=4", "--accumulate=2", "--lr=1e-3",
    "--checkpoint-every=3", "--eval-every=7", "--log-every=1", "--keep=2", "--resume",
)  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    """A few hundred conversations, so that rows are packed."""
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    pairs = [(f"Say {a} and {b}.", f"{a}, {b}!") for a in "one two three four six".split() for b in "a b c d".split()]
    lines = [json.dumps({"instruction": ask, "output": say}) for ask, say in pairs * 10]
    path.write_text("\n".join(lines))
    return path


def saves(run: Path) -> set[tuple[str, int]]:
    """The checkpoints that are being written, or were when a kill came."""
    found = set()
    for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


class Life:
    """A process of the run, and what it says."""

    def __init__(self, flags: list[str]):
        self.text = ""
        self.process = forked.Forked(forked.RUN, *flags, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.text += line

    def watch(self, condition: Callable[[], bool]) -> None:
        """Wait until something has happened, or the process ends."""
        while not condition() and self.process.poll() is None:
            time.sleep(0.002)

    def wait(self) -> int:
        code = self.process.wait()
        self._reader.join()
        return code


def test_kills_at_any_moment_change_nothing(small, chat, tmp_path):
    flags = [f"--model={small}", f"--data={chat}", f"--cache={tmp_path}/cache", *FLAGS]
    said = call("train", *flags, f"--out={tmp_path}/whole", report=True).stdout
    first_step = re.search(r"^step +1/", said, re.M).start()

    out, chance, codes, saving = tmp_path / "killed", random.Random(SEED), [], 0
    for moment, number in KILLS:
        left, now = saves(out), Life([*flags, f"--out={out}"])
        if moment == "during a save":
            now.watch(lambda life=now, old=left: re.search(r"step +\d+/", life.text) and saves(out) - old)
            saving += now.process.poll() is None
        elif moment == "before the first step":
            said = chance.randrange(first_step)
            now.watch(lambda life=now, n=said: len(life.text) >= n)
            time.sleep(chance.uniform(0, 0.3))
        else:
            steps = chance.randrange(1, 4)
            now.watch(lambda life=now, n=steps: len(re.findall(r"step +\d+/", life.text)) >= n)
            time.sleep(chance.uniform(0, 0.1))
        now.process.send_signal(number)
        codes.append(now.wait())
        assert codes[-1] in (-9, 75, -2, -15, 130, 0), now.text
        assert "Traceback" not in now.text or number == signal.SIGKILL, now.text
    print(f"exit codes {codes}, step {max(complete_steps(out), default=0)}")
    assert saving == 2
    assert codes.count(0) <= 1  # else it was finished too early to be killed
    call("train", *flags, f"--out={out}", report=True)
    assert_same_run(out, tmp_path / "whole", STEPS)
    for name in ("samples.md", "plots/updates.svg"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert complete_steps(out)[-2:] == complete_steps(tmp_path / "whole")[-2:]


def test_a_kill_while_the_base_is_read_leaves_the_run_as_it_was(small, tmp_path):
    flags = [f"--model={small}", "--freeze=last1", *QUICK, "--keep=9"]
    call("train", *flags, f"--out={tmp_path}/whole")
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    for later in (6, 8, 9):
        shutil.rmtree(run / "checkpoints" / str(later))
    before = contents(run)
    n_read = len(convert.read(small).params)
    n_left = len(convert.read(run).base.digests)
    for what, at in (("read", 1), ("read", n_read // 2), ("digested", 1), ("digested", n_left // 2)):
        life = forked.Forked(READING, what, at, f"--resume={run}", stderr=subprocess.STDOUT)
        said = ""
        for line in life.stdout:
            said += line
            if line == "now\n":
                break
        life.kill()
        assert life.wait() == -signal.SIGKILL, said
        assert contents(run) == before, (what, at)
    call("train", f"--resume={run}")
    assert_same_run(run, tmp_path / "whole", 9)


def contents(run: Path) -> dict[Path, bytes]:
    """All files of a run, but for its lock, which a kill leaves there."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
