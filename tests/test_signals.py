"""Signals: noticed at once whatever the run is doing, and nothing is lost."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from conftest import call
from forked import Forked
from runs import QUICK, assert_same_run, metrics

from jaxgpt.convert.source import complete_steps

PATCHED = """
import sys, time
from jaxgpt.training.__main__ import main
import jaxgpt.training.finetune
{patch}
sys.argv = ["train", *{flags!r}]
main()
"""
"""A run in which something takes so long that a signal comes while it is under way."""


def slow(patch: str, flags: list[str]) -> Forked:
    return Forked(
        PATCHED.format(patch=patch, flags=[str(flag) for flag in flags]), stderr=subprocess.STDOUT, samples=False
    )


def signal_at(process: Forked, pattern: str, number: int) -> str:
    """Send a signal once a line matches, and return what the process said until it ended.

    It would sleep for 600 s more: that it ends by itself shows that it did not wait for what is under way.
    """
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            break
    time.sleep(0.3)
    process.send_signal(number)
    return said + process.communicate(timeout=120)[0]


@pytest.fixture
def flags(small, tmp_path):
    return [f"--model={small}", f"--out={tmp_path}/r", "--freeze=first1", *QUICK]


COMPILING = """
import jaxgpt.training.step.phases
# neither Python's handlers nor an exception can interrupt a call like XLA's compiler
import ctypes
def compile(self, index):
    print("compiling", flush=True)
    ctypes.PyDLL(None).sleep(1)  # holds the GIL, too
    ctypes.CDLL(None).sleep(600)
jaxgpt.training.step.phases.PhaseCompiler._compile = compile
"""
LOADING = """
import jaxgpt.training.setup
def load(*args, **kwargs):
    print("loading", flush=True)
    while True:
        try:
            time.sleep(600)
        except BaseException:  # a callback that swallows KeyboardInterrupt
            pass
jaxgpt.training.setup.load_data = load
"""


@pytest.mark.parametrize(
    ("patch", "said", "number"),
    [(COMPILING, "compiling", signal.SIGTERM), (LOADING, "loading", signal.SIGINT)],
    ids=["compile", "load"],
)
def test_before_the_first_step_a_signal_ends_at_once_and_leaves_nothing(flags, tmp_path, patch, said, number):
    process = slow(patch, flags)
    text = signal_at(process, f"^{said}$", number)
    assert process.returncode == 75, text
    assert "stopped before the first step; nothing was written" in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


SLOW_EVALUATION = """
import jaxgpt.training.evaluation
real = jaxgpt.training.evaluation.make_eval_step
def make(*of):
    step = real(*of)
    def one(*args):
        for stop in asked:
            stop.requested.wait(600)  # between two batches of the evaluation the signal comes
        return step(*args)
    return one
jaxgpt.training.evaluation.make_eval_step = make
asked = []
import jaxgpt.training.loop
evaluate = jaxgpt.training.loop.TrainLoop._evaluate
def say(self):
    print("evaluating", self.step, flush=True)
    asked.append(self._stop)
    evaluate(self)
jaxgpt.training.loop.TrainLoop._evaluate = say
"""


def test_a_signal_during_an_evaluation_leaves_it_to_the_resumed_run(flags, whole_run, tmp_path):
    process = slow(SLOW_EVALUATION, flags)
    text = signal_at(process, "^evaluating 4$", signal.SIGXCPU)
    assert process.returncode == 75, text
    assert "stopped after step 4, which is saved" in text
    assert complete_steps(tmp_path / "r")[-1] == 4
    assert all(line["eval_loss"] is None or line["step"] == 0 for line in metrics(tmp_path / "r"))
    call("train", *flags, "--resume", samples=False)
    assert_same_run(tmp_path / "r", whole_run, 9)
    eval_state = [
        json.loads((run / "checkpoints" / "9" / "eval_state" / "metadata").read_text())
        for run in (tmp_path / "r", whole_run)
    ]
    assert eval_state[0] == eval_state[1]
    assert eval_state[0]["best_step"] in (4, 8, 9)


SLOW_THAW = """
import jaxgpt.training.step.phases, threading
real = jaxgpt.training.step.phases.PhaseCompiler._compile
def compile(self, index):
    if index:
        print("compiling ahead", flush=True)
        import ctypes
        ctypes.CDLL(None).sleep(600)
    return real(self, index)
jaxgpt.training.step.phases.PhaseCompiler._compile = compile
"""


def test_a_signal_while_the_next_phase_compiles_saves_and_does_not_wait_for_it(flags, small, tmp_path):
    gradual = [flag for flag in flags if "freeze" not in flag] + ["--freeze=gradual:head@0,full@5"]
    call("train", *(flag.replace(f"{tmp_path}/r", f"{tmp_path}/whole") for flag in gradual), samples=False)
    process = slow(SLOW_THAW, gradual)
    text = signal_at(process, "^step 4/9", signal.SIGUSR1)
    assert process.returncode == 75, text
    assert "stopped after step 5, which is saved" in text
    assert complete_steps(tmp_path / "r")[-1] == 5
    call("train", *gradual, "--resume", samples=False)
    assert_same_run(tmp_path / "r", tmp_path / "whole", 9)


SLOW_MEASURING = """
from jaxgpt.training.step import spec
spec.MEASUREMENTS, spec.WORTH_A_PROGRAM, real = 2, 0, spec.StepSpec.lower
def lower(self, phase, measures=True):
    if measures:
        import ctypes
        ctypes.CDLL(None).sleep(600)
    return real(self, phase, measures)
spec.StepSpec.lower = lower
"""


def test_a_signal_while_the_step_that_measures_compiles_saves_and_does_not_wait_for_it(flags, tmp_path):
    process = slow(SLOW_MEASURING, flags)  # of nine steps the fifth and, as there is no tenth, no other one measures
    text = signal_at(process, "^step 5: waiting while the program that measures updates is compiled", signal.SIGUSR1)
    assert process.returncode == 75, text
    assert "stopped after step 4, which is saved" in text
    assert complete_steps(tmp_path / "r")[-1] == 4


def test_a_second_signal_ends_at_once(flags, tmp_path):
    saving = "lambda *a: (print('saving', flush=True), time.sleep(600))"
    patch = f"import jaxgpt.training.loop; jaxgpt.training.loop.Checkpoints.save = {saving}"
    process = slow(patch, flags)
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGTERM)
    while "saving" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert re.search(r"to resume from the newest checkpoint: jaxgpt train --resume \S+", process.stdout.read())


def test_handlers_are_given_back(monkeypatch):
    from jaxgpt.training.signals import StopSignals

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        stop.exits_at_once = False
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested.wait(5)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
