"""A run whose terminal is gone goes on, and keeps what it said in run.log."""

import signal
import subprocess
import time

import forked
import pytest
from conftest import call
from runs import QUICK, assert_same_run

from jaxgpt.convert.digests import find_damage
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.output import Log, Output
from jaxgpt.training.run.checkpoints import Checkpoints

FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
CLOSED = "import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None\n"


def flags(small, out) -> list[str]:
    return [f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK]


@pytest.mark.parametrize("n_lines", [1, 12])
def test_a_reader_that_has_seen_enough_ends_no_run(small, whole_run, tmp_path, n_lines):
    out = tmp_path / "r"
    run = forked.Forked(forked.RUN, *flags(small, out), samples=False)
    assert all(run.stdout.readline() for _ in range(n_lines))
    run.stdout.close()
    assert run.wait() == 0, run.stderr.read()
    assert_same_run(out, whole_run, 9)
    text = (out / "run.log").read_text()
    assert "the terminal is lost" in text
    assert "model       " in text  # from the beginning on
    assert "step 9/9" in text
    assert "9 steps in" in text  # and to its end


@pytest.mark.parametrize("streams", [FULL, CLOSED])
def test_an_output_that_is_full_or_closed_ends_no_run(small, tmp_path, streams):
    out = tmp_path / "r"
    run = forked.Forked(streams + forked.RUN, *flags(small, out), "--steps=3", samples=False)
    said = run.communicate()
    assert run.returncode == 0, said
    assert complete_steps(out)[-1] == 3
    assert "step 3/3" in (out / "run.log").read_text()


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path):
    """What libraries in C print would be written into it."""
    code = "from jaxgpt.convert.command_line.mistakes import one_clear_line\n"
    code += "with one_clear_line('train'):\n    sys.exit(open(sys.argv[1], 'w').fileno())"
    assert forked.run(CLOSED + code, tmp_path / "metrics.jsonl").returncode > 2


@pytest.mark.parametrize("moment", ["between steps", "while a checkpoint is written"])
def test_a_fault_of_ours_keeps_what_was_saved(small, whole_run, tmp_path, monkeypatch, moment):
    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        if moment == "between steps":

            def check(step, metrics):
                return metrics if step < 5 else {}["no such key"]

            patch.setattr("jaxgpt.training.loop.check_finite", check)
        else:
            save = Checkpoints.save

            def save_and_fail(self, state, *rest):
                save(self, state, *rest)
                return None if int(state.step) < 6 else {}["no such key"]

            patch.setattr(Checkpoints, "save", save_and_fail)
        done = call("train", *flags(small, out), check=False, samples=False)
    what = "train: a fault of jaxgpt, and not of your input (KeyError: 'no such key'): what was saved stays; "
    assert (done.returncode, done.stderr) == (70, f"{what}please report this with {out}/run.log\n")
    assert "Traceback" not in done.stdout
    assert "KeyError: 'no such key'" in (out / "run.log").read_text()
    steps = complete_steps(out)
    assert steps[-1] == (4 if moment == "between steps" else 6)
    assert [find_damage(out / "checkpoints" / str(step), step=step) for step in steps] == [""] * len(steps)
    call("train", "--resume", out, samples=False)
    assert_same_run(out, whole_run, 9)


def test_a_terminal_that_hangs_up_stops_the_run_after_a_step_and_saves_it(small, whole_run, tmp_path):
    out = tmp_path / "r"
    slow = "import time, jaxgpt.training.loop as loop\nmake = loop.device_train_batches\n"
    slow += "def slowly(*a, **k):\n    for b in make(*a, **k):\n        time.sleep(0.3)\n        yield b\n"
    slow += "loop.device_train_batches = slowly\n"
    run = forked.Forked(slow + forked.RUN, *flags(small, out), stderr=subprocess.STDOUT, samples=False)
    for line in run.stdout:
        if line.startswith("step 2/9"):
            break
    run.stdout.close()  # the terminal is gone
    run.send_signal(signal.SIGHUP)
    assert run.wait() == 75
    assert 2 <= complete_steps(out)[-1] < 9
    call("train", *flags(small, out), "--resume", samples=False)
    assert_same_run(out, whole_run, 9)
    assert (out / "run.log").read_text().count(" process ") == 2


def test_nohup_is_heeded(small, tmp_path):
    out = tmp_path / "r"
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    run = forked.Forked(ignored + forked.RUN, *flags(small, out), stderr=subprocess.STDOUT, samples=False)
    for line in run.stdout:
        if line.startswith("model "):
            run.send_signal(signal.SIGHUP)
            time.sleep(0.1)
    assert run.wait() == 0


def test_samples_steer_no_terminal_and_are_kept_as_they_are(small, tmp_path, monkeypatch):
    written = "a\x1b[2J sample\x9b1m"
    monkeypatch.setattr("jaxgpt.training.finetune.sample", lambda *_: written)
    done = call("train", *flags(small, tmp_path / "r"), "--steps=1")
    assert "a\\x1b[2J sample\\x9b1m" in done.stdout
    assert not set("\x1b\x9b") & set(done.stdout + done.stderr)
    assert (tmp_path / "r" / "samples.md").read_bytes().decode().count(written) == 2


def test_the_log_has_what_was_printed_but_for_what_is_drawn_over(tmp_path):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        def fileno(self):
            raise ValueError("there is none")

    log = Log()
    out = Output(Gone(), log)
    print("one", file=out)
    out.write("\r50%|#####     |")
    log.open(tmp_path / "run.log")
    print("zwei \udc80 京", file=out)
    log.close()
    first, *lines = (tmp_path / "run.log").read_text().splitlines()
    assert " process " in first
    assert lines == ["one(the terminal is lost: [Errno 32] Broken pipe; the run goes on)", "", "zwei \\udc80 京"]
    assert not out.isatty()
    assert out.encoding == "utf-8"


def test_a_link_in_the_place_of_the_log_is_not_followed(small, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (tmp_path / "victim").write_text("mine")
    (out / "run.log").symlink_to(tmp_path / "victim")
    refused = call("train", *flags(small, out), check=False)
    assert refused.returncode == 2  # it holds a file of a run, but no run.json
    assert (tmp_path / "victim").read_text() == "mine"
