"""A disk that is full at any write of a run: one line that names the file; the next start tidies up and goes on."""

import builtins
import contextlib
import io
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import call
from runs import QUICK, WORDS, assert_same_run

from jaxgpt.convert.digests import find_damage
from jaxgpt.convert.formats import orbax
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.run.checkpoints import Checkpoints
from jaxgpt.training.run.folder import RunFolder

SHORT = (
    f"--data={WORDS}", "--batch-size=8", "--steps=4", "--eval-every=2", "--checkpoint-every=2", "--log-every=1",
    "--lr=1e-3", "--freeze=first1",
)  # fmt: skip
ITEMS = ("params", "opt_state", "config", "eval_state", "base")


class Disk:
    """A disk that has room for all files but one."""

    def __init__(self, folder: Path, monkeypatch):
        self.full, self._folder = "", folder
        self.written: list[str] = []
        self._open, self._descriptor = io.open, os.open
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self.open)
        monkeypatch.setattr(os, "open", self.descriptor)

    def open(self, file, mode="r", *args, **how):
        """Open a file whose first letters fit on the disk."""
        opened = self._open(file, mode, *args, **how)
        return Full(opened) if mode[0] in "wax" and self._is_full(file) else opened

    def descriptor(self, path, flags, *args, **how):
        """Open a file that has no room for its name."""
        if flags & os.O_CREAT and self._is_full(path):
            raise OSError(28, "No space left on device", os.fspath(path))
        return self._descriptor(path, flags, *args, **how)

    def _is_full(self, file) -> bool:
        if isinstance(file, int) or not (path := Path(os.fsdecode(file))).is_relative_to(self._folder):
            return False
        name = re.sub(r"\.orbax-checkpoint-tmp|\.\S+\.[0-9a-f]{8}\.tmp/", "", str(path.relative_to(self._folder)))
        self.written.append(name)
        return name == self.full


class Full:
    """A file that takes five letters more."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, text):
        self._file.write(text[:5])
        raise OSError(28, "No space left on device")


@pytest.fixture
def leaves(monkeypatch):
    """The program leaves at once, which this process has to outlive, and the threads of Orbax must not."""
    opened = []

    class Watched(Checkpoints):
        def __init__(self, *args, **how):
            super().__init__(*args, **how)
            opened.append(self)

    def leave(self, code):
        while opened:
            with contextlib.suppress(Exception):
                opened.pop().close()
        sys.exit(int(code))

    monkeypatch.setattr("jaxgpt.training.finetune.Checkpoints", Watched)
    monkeypatch.setattr("jaxgpt.training.signals.StopSignals.leave", leave)


def assert_full(done, file: Path, kept: str, said: str) -> None:
    assert done.returncode == 74, done.stderr
    assert re.fullmatch(
        rf"train: {file}\S*: No space left on device: (stopped after step \d; )?{kept}\n", done.stderr
    ), done.stderr
    assert "Traceback" not in done.stdout
    assert said == ""


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "r"
    call("train", f"--model={small}", f"--out={out}", *SHORT, report=True, samples=False)
    return out


def test_a_disk_that_is_full_at_any_write_of_a_run(small, undisturbed, tmp_path, monkeypatch, capfd, leaves):
    """The files are those that a run writes; each fails in turn, and the run goes on from there in the end."""
    out = tmp_path / "r"
    flags = ("train", f"--model={small}", f"--out={out}", *SHORT)
    disk = Disk(out, monkeypatch)
    monkeypatch.setattr("jaxgpt.convert.digests.SECONDS_TO_WAIT", 1)  # for a file that Orbax could not write
    disk.full = "run.lock"
    done = call(*flags, check=False, samples=False)  # nothing is begun
    assert (done.returncode, done.stderr) == (2, f"train: {out}/run.lock: No space left on device\n")
    assert [*out.iterdir()] == []
    for name in ("run.tmp", "metrics.jsonl", "samples.tmp", "tokenizer/tokenizer_config.json"):
        disk.full, disk.written = name, []
        done = call(*flags, *["--resume"] * out.exists(), check=False, samples=False)
        assert name in disk.written
        assert_full(done, out / re.split(r"[./]", name)[0], "there is no checkpoint there", capfd.readouterr().err)
    disk.full = "checkpoints/4/digests.json"
    done = call(*flags, "--resume", check=False, samples=False)
    assert_full(done, out / "checkpoints" / "4", "the newest checkpoint is that of step 2", capfd.readouterr().err)

    # what is written from then on
    disk.full, disk.written = "", []
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    disk._folder = whole
    call("train", "--resume", whole, report=True, samples=False)
    disk._folder = out
    names = list(dict.fromkeys(disk.written))
    handlers = {name: re.sub(rf"checkpoints/4/({'|'.join(ITEMS)})/|plots/\w+", "ANY/", name) for name in names}
    assert len(set(handlers.values())) >= 13, handlers
    for name in {handler: name for name, handler in handlers.items()}.values():
        if name in ("run.lock", "run.log"):  # the one is above; a run goes on without the other
            continue
        shutil.rmtree(out / "checkpoints" / "4", ignore_errors=True)
        disk.full = name
        done = call("train", "--resume", out, check=False, report="svg" in name or "html" in name, samples=False)
        step = 4 if name.startswith(("samples", "plots", "report")) else 2
        kept = f"the newest checkpoint is that of step {step}"
        assert_full(done, out / re.split(r"[./]", name)[0], kept, capfd.readouterr().err)
        assert find_damage(out / "checkpoints" / str(step), step=step) == ""
    disk.full = ""
    call("train", "--resume", out, report=True, samples=False)
    assert_same_run(out, undisturbed, 4)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in undisturbed.iterdir())


def test_leftovers_are_removed_and_other_files_are_not(small, whole_run, tmp_path):
    out = Path(shutil.copytree(whole_run, tmp_path / "r"))
    for step in (8, 9):
        shutil.rmtree(out / "checkpoints" / str(step))
    names = ["run.tmp", "metrics.tmp", "updates.tmp", "samples.tmp", ".report.html.0123abcd.tmp"]
    mine = ["notes.tmp", ".tokenizer.mine.tmp", "run.tmp.bak", ".report.html.0123abcd"]
    for name in names + mine:
        (out / name).write_text("half")
    (out / ".tokenizer.89abcdef.tmp").mkdir()
    (out / ".tokenizer.89abcdef.tmp" / "tokenizer.json").write_text("{")
    call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume", report=True, samples=False)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole_run.iterdir()} | set(mine)


def test_a_tokenizer_that_does_not_fit_on_the_disk_is_an_error_of_the_system(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "vocab.json").write_text("{}")
            raise Exception("No space left on device (os error 28)")  # as the tokenizers package does

    with pytest.raises(OSError, match=r"No space left on device: '.*/tokenizer'"):
        RunFolder(tmp_path).save_tokenizer(Tokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["lost", "cut", "binary"])
def test_what_the_files_of_a_run_have_lost_is_said(small, whole_run, tmp_path, damage):
    out = Path(shutil.copytree(whole_run, tmp_path / "r"))
    for step in (8, 9):
        shutil.rmtree(out / "checkpoints" / str(step))
    for name in ("metrics.jsonl", "updates.jsonl", "samples.md"):
        if damage == "lost":
            (out / name).unlink()
        elif damage == "cut":
            lines = (out / name).read_bytes().splitlines(keepends=True)
            (out / name).write_bytes(b"".join(lines[1:3]))
        else:
            (out / name).write_bytes(b"\xff\x00{[" * 99)
    done = call(
        "train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume", report=True, samples=False
    )
    lost = {"lost": ("6 of 6", 0, "6 of 6", 1), "cut": ("4 of 6", 0, "4 of 6", 1), "binary": ("6 of 6", 0, "6 of 6", 1)}
    metrics, first, updates, second = lost[damage]
    goes_on = "; plots and report go on without what is lost"
    assert [line for line in done.stdout.splitlines() if " has lost " in line] == [
        f"{out}/metrics.jsonl has lost {metrics} lines; the first is that of step {first}{goes_on}",
        f"{out}/updates.jsonl has lost {updates} lines; the first is that of step {second}{goes_on}",
        f"{out}/samples.md has lost the text from before training{goes_on}",
    ]
    assert complete_steps(out)[-1] == 9
    assert (out / "report.html").exists()


def test_what_orbax_only_logs_is_said_once_in_one_line(caplog, monkeypatch):
    noise, log = orbax.Noise(), logging.getLogger("absl")
    monkeypatch.setattr(log, "filters", [])  # runs in this process that were refused still listen
    noise.listen()
    with noise.said_once():
        for step in (3, 3):
            try:
                raise PermissionError(13, "Permission denied", "/r/checkpoints/3")
            except PermissionError:
                log.exception("[process=0][step=%d] Failed to remove checkpoint\nand more", step)
    text = "Failed to remove checkpoint: [Errno 13] Permission denied: '/r/checkpoints/3'"
    assert [record.getMessage() for record in caplog.records] == [text]
    caplog.clear()
    with contextlib.suppress(OSError), noise.said_once():
        log.error("one of many")
        raise OSError("full")
    noise.close()
    assert caplog.records == []
    log.error("after its end")
    assert len(caplog.records) == 1
