"""`jaxgpt.train` is `jaxgpt train`: the same run bit for bit, mistakes in Python's words, and it ends no process."""

import inspect
import os
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from runs import WORDS, assert_same_run

import jaxgpt
from jaxgpt.convert.command_line.flags import defaults_of, flags_of
from jaxgpt.convert.command_line.mistakes import in_arguments
from jaxgpt.training.failures import NonFiniteLoss
from jaxgpt.training.settings import Settings

QUICK = {"data": WORDS, "batch_size": 8, "steps": 9, "eval_every": 4, "checkpoint_every": 3, "log_every": 1, "lr": 1e-3}
"""`runs.QUICK`, in Python's words."""


@pytest.fixture(autouse=True)
def undrawn():
    """The report takes as long as the rest of a short run."""
    with mock.patch("jaxgpt.training.finetune._write_report"):
        yield


def test_it_is_the_run_of_the_command_with_every_number_in_reach(small, whole_run, tmp_path, capsys):
    steps, evaluations = [], []
    run = jaxgpt.train(
        small, freeze="first1", out=tmp_path / "r", **QUICK, verbose=False,
        on_step=lambda step, metrics: steps.append((step, metrics["loss"])),
        on_evaluate=lambda step, loss: evaluations.append((step, loss)),
    )  # fmt: skip
    assert_same_run(run.folder, whole_run, 9)
    assert capsys.readouterr().out == ""
    assert "9 steps in" in (run.folder / "run.log").read_text()
    assert run.is_finished
    assert run.step == run.info.steps == 9
    assert run.evaluations == dict(evaluations)
    assert list(run.evaluations) == [0, 4, 8, 9]
    metrics = run.metrics
    assert metrics["step"].tolist() == [*range(10)]
    assert np.isnan(metrics["loss"][0])
    assert [*zip(metrics["step"].tolist(), metrics["loss"].tolist(), strict=True)][1:] == steps
    assert run.best_step == min(run.evaluations, key=run.evaluations.get)
    updates = run.updates
    assert updates["step"].tolist() == [*range(1, 10)]
    assert (updates["blocks.0"] == 0).all()
    assert (updates["blocks.1"] > 0).all()
    assert "## After 9 steps" in run.samples
    kept = jaxgpt.named_params(run.model)
    assert (kept["tok_emb.embedding"] == jaxgpt.named_params(jaxgpt.from_pretrained(small))["tok_emb.embedding"]).all()
    assert run.tokenizer("a b")["input_ids"]
    assert "9 of 9 steps" in repr(run)
    assert "9 of 9 steps" in run._repr_html_()


@pytest.mark.parametrize("asks", ["on_step", "on_evaluate"])
def test_a_callback_stops_a_run_that_resumes_bit_for_bit(small, whole_run, tmp_path, asks, capsys):
    def look(step, _):
        print("seen", step)
        return step == 4

    run = jaxgpt.train(small, freeze="first1", out=tmp_path / "r", **QUICK, verbose=False, **{asks: look})
    assert not run.is_finished
    assert run.step in (4, 5)  # the one under way
    assert "seen 4" in capsys.readouterr().out  # although the run is quiet
    again = jaxgpt.train(resume=str(run.folder), verbose=False)
    assert again.is_finished
    assert_same_run(run.folder, whole_run, 9)


def test_an_interrupt_stops_a_run_and_not_the_program(small, whole_run, tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(step, _):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    run = jaxgpt.train(small, freeze="first1", out=tmp_path / "r", **QUICK, on_step=interrupt)
    assert run.step in (2, 3)
    assert signal.getsignal(signal.SIGINT) is handler
    ends = mock.patch("jaxgpt.training.finetune.prepare", side_effect=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with ends, pytest.raises(KeyboardInterrupt):  # nothing is written yet
        jaxgpt.train(out=tmp_path / "unwritten")
    assert not (tmp_path / "unwritten").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    jaxgpt.train(resume=run.folder)
    assert_same_run(run.folder, whole_run, 9)


def test_a_thread_may_train_and_what_a_callback_raises_is_the_callers(small, tmp_path):
    found = []

    def work():
        def look(step, _):
            raise KeyError("mine")

        try:
            jaxgpt.train(small, freeze="first1", out=tmp_path / "r", **QUICK, on_step=look)
        except KeyError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    streams = sys.stdout, sys.stderr
    thread.start()
    thread.join()
    assert found[0].args == ("mine",)
    assert not getattr(found[0], "__notes__", [])  # it is no fault of ours
    assert (sys.stdout, sys.stderr) == streams
    assert not jaxgpt.Run(tmp_path / "r").is_finished


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"freze": "full"}, "jaxgpt.train has no argument freze: did you mean freeze?"),
        ({"compile_only": True}, "no argument compile_only"),
        ({"steps": "3"}, "steps: must be an integer, not '3'"),
        ({"steps": 0}, "steps: must be from 1 to"),
        ({"steps": True}, "steps: must be an integer, not True"),
        ({"lr": "1e-3"}, "lr: must be a number"),
        ({"lr": float("nan")}, "lr: must be above 0"),
        ({"force": "yes"}, "force: must be True or False"),
        ({"optimizer": "adam"}, "optimizer: must be adamw or adafactor"),
        ({"dtype": jnp.float16}, "dtype: must be float32 or bfloat16, not 'float16'"),
        ({"model": 3}, "model: must be a text, not 3"),
        ({"track": ["tensorboard", "comet"]}, "track: must be tensorboard or"),
        ({"steps": 2, "epochs": 1}, "steps= and epochs= contradict each other"),
        ({"data": "/no/such/file"}, "data: /no/such/file is neither"),
        ({"resume": "/no/such/run"}, "resume=/no/such/run: no run is there; to start one, use out=/no/such/run"),
        ({"freeze": "frist6", "data": WORDS}, "freeze: strategy 'frist6': unknown strategy: did you mean first6?"),
    ],
)
def test_mistakes_speak_of_arguments(given, says, tmp_path):
    with pytest.raises(jaxgpt.InputError) as error:
        jaxgpt.train(**{"out": tmp_path / "r", **given} if "resume" not in given else given)
    assert says in str(error.value)
    assert "--" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_a_run_that_is_there_is_left_alone(whole_run):
    with pytest.raises(jaxgpt.InputError, match="resume=True goes on with it, force=True deletes it"):
        jaxgpt.train(out=whole_run)
    with pytest.raises(jaxgpt.InputError, match=r"freeze= was first1 and is last1.*resume_anyway=True"):
        jaxgpt.train(resume=whole_run, freeze="last1")
    with pytest.raises(jaxgpt.InputError, match=r"can't be read as the run\.json of a run"):
        jaxgpt.Run(whole_run.parent / "nothing")


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_streams_as_they_were(small, tmp_path):
    streams = sys.stdout, sys.stderr
    nan = NonFiniteLoss(1, "the loss", float("nan"))
    ends = mock.patch("jaxgpt.training.loop.check_finite", side_effect=nan)
    with ends, pytest.raises(jaxgpt.TrainingError, match=r"at step 1: .* Try a smaller lr= or a longer warmup="):
        jaxgpt.train(small, out=tmp_path / "r", **QUICK)
    assert (sys.stdout, sys.stderr) == streams


def test_every_flag_is_an_argument_with_its_default_and_help():
    parameters, defaults = inspect.signature(jaxgpt.train).parameters, defaults_of(Settings)
    for name, described in flags_of(Settings).items():
        if described.group == "compile":
            assert name not in parameters
            continue
        assert f"\n    {name}: " in jaxgpt.train.__doc__
        assert name == "model" or parameters[name].default == defaults[name]
    assert "--" not in jaxgpt.train.__doc__.replace("--eval-every=10", "")


def test_values_of_python_are_those_of_the_flags():
    from jaxgpt.training.from_python import checked

    made = checked(
        {
            "steps": np.int64(3), "lr": 1, "model": Path("a/b"), "dtype": jnp.bfloat16, "lr_scale": [r"a=2"],
            "track": "tensorboard", "resume": True, "mesh": None, "out": "x", "weight_decay": np.float32(0.5),
        }
    )  # fmt: skip
    assert made == {
        "steps": 3, "lr": 1.0, "model": "a/b", "dtype": "bfloat16", "lr_scale": ("a=2",), "track": ("tensorboard",),
        "resume": True, "mesh": None, "out": Path("x"), "weight_decay": 0.5,
    }  # fmt: skip
    assert [type(made[name]) for name in ("steps", "lr", "weight_decay")] == [int, float, float]


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("--force deletes it; --out=OTHER leaves it", "force=True deletes it; out=OTHER leaves it"),
        ("--data: a.txt is empty", "data: a.txt is empty"),
        ("--no-standalone, or '--force' as written", "standalone=False, or '--force' as written"),
        ("give --add-tokens.", "give add_tokens=."),
        ("(--steps 3)", "(steps= 3)"),
        ("--unknown stays, as a--force does", "--unknown stays, as a--force does"),
    ],
)
def test_flags_in_a_message_become_arguments(flags, arguments):
    switches = {"force": True, "out": False, "data": False, "standalone": True, "add_tokens": False, "steps": False}
    assert in_arguments(flags, switches) == arguments
