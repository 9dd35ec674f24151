"""Thirty kills over one run, which comes out as if there had been none."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from runs import assert_same_run

from convert.source import complete_steps

KILLS, STEPS, SEED = 30, 200, 6
FLAGS = (
    "--freeze=gradual:head@0,last1@70,full@140", f"--steps={STEPS}", "--batch-size=4", "--accumulate=2", "--lr=1e-3",
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


def life(flags: list[str], writer: int) -> None:
    """One process of the run, from the command line to its end; what it says goes into a pipe."""
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as long as the program has not asked for signals
    for stream in (1, 2):
        os.dup2(writer, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    sys.argv = ["train", *flags]
    from train.__main__ import main

    main()


class Life:
    """A process of the run, forked from one that has imported everything."""

    def __init__(self, context, flags: list[str]):
        self._reader, writer = multiprocessing.Pipe(duplex=False)
        self.process = context.Process(target=_begin, args=(flags, writer))
        self.process.start()
        writer.close()
        self.text = b""

    def read_until(self, pattern: bytes, seconds: float) -> None:
        """Until what it says matches, it ends, or the time is over."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text) and time.monotonic() < end:
            if self._reader.poll(0.01):
                try:
                    self.text += os.read(self._reader.fileno(), 65536) or _over()
                except EOFError:
                    break

    def wait(self) -> int:
        self.read_until(rb"\Znever", 300)
        self.process.join(60)
        assert self.process.exitcode is not None, self.text.decode()
        return self.process.exitcode


def _over() -> bytes:
    raise EOFError


def _begin(flags, connection) -> None:
    life(flags, connection.fileno())


def test_thirty_kills_at_any_moment_change_nothing(small, chat, tmp_path):
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.loop", "transformers.models.auto.tokenization_auto"])
    flags = [f"--model={small}", f"--data={chat}", f"--cache={tmp_path}/cache", *FLAGS]
    whole = Life(context, [*flags, f"--out={tmp_path}/whole"])
    assert whole.wait() == 0, whole.text.decode()

    out, chance, codes, began = tmp_path / "killed", random.Random(SEED), [], time.monotonic()
    for kill in range(KILLS):
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[kill % 3]
        now = Life(context, [*flags, f"--out={out}"])
        if chance.random() < 0.25:
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
    print(f"{KILLS} kills in {time.monotonic() - began:.0f} s, exit codes {codes}, step {reached}")
    assert codes.count(0) <= 3  # else it was finished too early to be killed
    last = Life(context, [*flags, f"--out={out}"])
    assert last.wait() == 0, last.text.decode()
    assert_same_run(out, tmp_path / "whole", STEPS)
    for name in ("samples.md", "plots/updates.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert complete_steps(out)[-2:] == complete_steps(tmp_path / "whole")[-2:]
