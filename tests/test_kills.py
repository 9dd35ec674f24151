"""Thirty kills over one run, which comes out as if there had been none."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from lives import live
from runs import assert_same_run

from jaxgpt.convert.source import complete_steps

KILLS, STEPS, SEED = 30, 100, 6
FLAGS = (
    "--freeze=gradual:head@0,last1@23,full@46", f"--steps={STEPS}", "--batch-size=4", "--accumulate=2", "--lr=1e-3",
    "--checkpoint-every=5", "--eval-every=11", "--log-every=1", "--keep=2", "--resume",
)  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    """A few hundred conversations, so that rows are packed."""
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    pairs = [(f"Say {a} and {b}.", f"{a}, {b}!") for a in "one two three four six".split() for b in "a b c d".split()]
    lines = [json.dumps({"instruction": ask, "output": say}) for ask, say in pairs * 10]
    path.write_text("\n".join(lines))
    return path


class Life:
    """A process of the run, forked from one that has imported everything."""

    def __init__(self, context, flags: list[str]):
        self._reader, writer = multiprocessing.Pipe(duplex=False)
        self.process = context.Process(target=live, args=(flags, writer))
        self.process.start()
        writer.close()
        self.text = b""
        self.read_until(b"begins", 60)

    def read_until(self, pattern: bytes, seconds: float) -> None:
        """Until what it says matches, it ends, or the time is over."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text) and time.monotonic() < end:
            if self._reader.poll(0.01):
                try:
                    self.text += os.read(self._reader.fileno(), 65536) or _over()
                except EOFError:
                    break

    def watch(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until something has happened, it ends, or the time is over."""
        end = time.monotonic() + seconds
        while not condition() and self.process.is_alive() and time.monotonic() < end:
            time.sleep(0.002)

    def wait(self) -> int:
        self.read_until(rb"\Znever", 300)
        self.process.join(60)
        assert self.process.exitcode is not None, self.text.decode()
        return self.process.exitcode


def _over() -> bytes:
    raise EOFError


def test_thirty_kills_at_any_moment_change_nothing(small, chat, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lives"])
    flags = [f"--model={small}", f"--data={chat}", f"--cache={tmp_path}/cache", *FLAGS]
    whole = Life(context, [*flags, f"--out={tmp_path}/whole"])
    assert whole.wait() == 0, whole.text.decode()

    out, chance, codes, saving, began = tmp_path / "killed", random.Random(SEED), [], 0, time.monotonic()
    for kill in range(KILLS):
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[kill % 3]
        now = Life(context, [*flags, f"--out={out}"])
        if number == signal.SIGKILL and kill % 2:  # during a save
            now.watch(lambda: any((out / "checkpoints").glob("*.orbax-checkpoint-tmp")), 60)
            saving += now.process.is_alive()
        elif chance.random() < 0.25:
            now.read_until(rb"\Znever", chance.uniform(0.0, 4.0))  # wherever that is
        else:
            steps = chance.randrange(1, 4)
            now.read_until(rb"(?s)(step +\d+/.*){%d}" % steps, 60)
            time.sleep(chance.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):
            os.kill(now.process.pid, number)
        codes.append(now.wait())
        assert codes[-1] in (-9, 75, -2, -15, 130, 0), now.text.decode()
        assert b"Traceback" not in now.text or number == signal.SIGKILL, now.text.decode()
    reached = max(complete_steps(out), default=0)
    assert saving == 5
    seconds = time.monotonic() - began
    print(f"{KILLS} kills, {saving} of them during a save, in {seconds:.0f} s, exit codes {codes}, step {reached}")
    assert codes.count(0) <= 3  # else it was finished too early to be killed
    last = Life(context, [*flags, f"--out={out}"])
    assert last.wait() == 0, last.text.decode()
    assert_same_run(out, tmp_path / "whole", STEPS)
    for name in ("samples.md", "plots/updates.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert complete_steps(out)[-2:] == complete_steps(tmp_path / "whole")[-2:]
