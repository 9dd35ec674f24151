"""Signals: noticed within seconds whatever the run is doing, and nothing is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, call
from runs import QUICK, assert_same_run, metrics

from jaxgpt.convert.source import complete_steps

PATCHED = """
import sys, time
from jaxgpt.train.__main__ import main
import jaxgpt.train.finetune
{patch}
sys.argv = ["train", *{flags!r}]
main()
"""
"""A run in which something takes so long that a signal comes while it is under way."""


def slow(patch: str, flags: list[str]) -> subprocess.Popen:
    code = PATCHED.format(patch=patch, flags=[str(flag) for flag in flags])
    return subprocess.Popen(
        [sys.executable, "-uc", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def signal_at(process: subprocess.Popen, pattern: str, number: int) -> tuple[str, float]:
    """Sends a signal once a line matches; what it said, and the seconds until it ended."""
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            break
    time.sleep(0.3)
    process.send_signal(number)
    began = time.monotonic()
    said += process.stdout.read()
    process.wait(60)
    return said, time.monotonic() - began


@pytest.fixture
def flags(small, tmp_path):
    return [f"--model={small}", f"--out={tmp_path}/r", "--freeze=first1", *QUICK]


COMPILING = """
import jaxgpt.train.step.phases
# neither Python's handlers nor an exception can interrupt a call like XLA's compiler
import ctypes
def compile(self, index):
    print("compiling", flush=True)
    ctypes.PyDLL(None).sleep(1)  # holds the GIL, too
    ctypes.CDLL(None).sleep(25)
jaxgpt.train.step.phases.PhaseCompiler._compile = compile
"""
LOADING = """
import jaxgpt.train.setup
def load(*args, **kwargs):
    print("loading", flush=True)
    while True:
        try:
            time.sleep(30)
        except BaseException:  # a callback that swallows KeyboardInterrupt
            pass
jaxgpt.train.setup.load_data = load
"""


@pytest.mark.parametrize(
    ("patch", "said", "number"),
    [(COMPILING, "compiling", signal.SIGTERM), (LOADING, "loading", signal.SIGINT)],
    ids=["compile", "load"],
)
def test_before_the_first_step_a_signal_ends_at_once_and_leaves_nothing(flags, tmp_path, patch, said, number):
    text, seconds = signal_at(slow(patch, flags), f"^{said}$", number)
    process_left = re.search("stopped, and nothing is lost", text)
    assert process_left, text
    assert seconds < 10
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


SLOW_EVALUATION = """
import jaxgpt.train.report.console
real = jaxgpt.train.report.console.make_eval_step
def make(model):
    step = real(model)
    def one(*args):
        time.sleep(0.5 if calls else 0)
        return step(*args)
    return one
jaxgpt.train.report.console.make_eval_step = make
calls = []
import jaxgpt.train.loop
evaluate = jaxgpt.train.loop.TrainLoop._evaluate
def say(self):
    print("evaluating", self.step, flush=True)
    calls.append(1)
    evaluate(self)
jaxgpt.train.loop.TrainLoop._evaluate = say
"""


def test_a_signal_during_an_evaluation_leaves_it_to_the_resumed_run(flags, tmp_path):
    call("train", *flags[:1], f"--out={tmp_path}/whole", *flags[2:])
    process = slow(SLOW_EVALUATION, flags)
    text, seconds = signal_at(process, "^evaluating 4$", signal.SIGTERM)
    assert process.returncode == 75, text
    assert seconds < 10
    assert "stopped at step 4, which is saved" in text
    assert complete_steps(tmp_path / "r")[-1] == 4
    assert all(line["eval_loss"] is None or line["step"] == 0 for line in metrics(tmp_path / "r"))
    call("train", *flags, "--resume")
    assert_same_run(tmp_path / "r", tmp_path / "whole", 9)
    eval_state = [
        json.loads((tmp_path / name / "checkpoints" / "9" / "eval_state" / "metadata").read_text())
        for name in ("r", "whole")
    ]
    assert eval_state[0] == eval_state[1]
    assert eval_state[0]["best_step"] in (4, 8, 9)


SLOW_THAW = """
import jaxgpt.train.step.phases, threading
real = jaxgpt.train.step.phases.PhaseCompiler._compile
def compile(self, index):
    if index:
        print("compiling ahead", flush=True)
        import ctypes
        ctypes.CDLL(None).sleep(40)
    return real(self, index)
jaxgpt.train.step.phases.PhaseCompiler._compile = compile
"""


def test_a_signal_while_the_next_phase_compiles_saves_and_does_not_wait_for_it(flags, small, tmp_path):
    gradual = [flag for flag in flags if "freeze" not in flag] + ["--freeze=gradual:head@0,full@5"]
    call("train", *(flag.replace(f"{tmp_path}/r", f"{tmp_path}/whole") for flag in gradual))
    process = slow(SLOW_THAW, gradual)
    text, seconds = signal_at(process, "^step 4/9", signal.SIGTERM)
    assert process.returncode == 75, text
    assert seconds < 15
    assert "stopped at step 5, which is saved" in text
    assert complete_steps(tmp_path / "r")[-1] == 5
    call("train", *gradual, "--resume")
    assert_same_run(tmp_path / "r", tmp_path / "whole", 9)


def test_a_second_signal_ends_at_once(flags, tmp_path):
    saving = "lambda *a: (print('saving', flush=True), time.sleep(60))"
    patch = f"import jaxgpt.train.loop; jaxgpt.train.loop.Checkpoints.save = {saving}"
    process = slow(patch, flags)
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGTERM)
    while "saving" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert "--resume goes on from the newest checkpoint" in process.stdout.read()


def test_handlers_are_given_back(monkeypatch):
    from jaxgpt.train.signals import StopSignals

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        stop.at_once = False
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested.wait(5)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
