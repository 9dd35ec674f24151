"""A disk that is full at any write of a run: one line that names the file; the next start tidies up and goes on."""

import contextlib
import logging
import re
import shutil
from pathlib import Path

import forked
import pytest
from conftest import call
from runs import QUICK, assert_same_run

from jaxgpt.convert.formats import orbax
from jaxgpt.convert.source import complete_steps
from jaxgpt.train.run.folder import RunFolder

SCRIPT = """
import sys
from pathlib import Path
from jaxgpt.train.__main__ import main
written, opened = sys.argv[1], Path.open
class Full:
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
def open(self, mode="r", *args, **kwargs):
    file = opened(self, mode, *args, **kwargs)
    return Full(file) if written in self.name and mode[0] in "wax" else file
Path.open = open
sys.argv = ["train", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize(
    ("written", "named", "kept"),
    [
        ("run.tmp", "run.tmp", "there is no checkpoint there"),
        ("metrics.jsonl", "metrics.jsonl", "there is no checkpoint there"),
        ("digests.json", "checkpoints/4.orbax-checkpoint-tmp/digests.json", "there is no checkpoint there"),
        ("report.html", "report.html", "the newest checkpoint is that of step 9"),
    ],
)
def test_a_disk_that_is_full_at(small, whole_run, tmp_path, written, named, kept):
    out = tmp_path / "r"
    flags = (f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK)
    done = forked.run(
        SCRIPT, written, *flags, "--checkpoint-every=4" if "digests" in written else "--checkpoint-every=3", report=True
    )
    assert done.returncode == 74, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.endswith("…")]  # what is under way
    assert re.fullmatch(
        rf"train: {out}/{named}: No space left on device: (stopped after step \d; )?{kept}", " ".join(said)
    )
    if "digests" not in written:
        call("train", *flags, "--resume", report=True)
        assert_same_run(out, whole_run, 9)
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole_run.iterdir())


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
    call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume", report=True)
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
    done = call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume", report=True)
    lost = {"lost": ("6 of 6", 0, "6 of 6", 1), "cut": ("4 of 6", 0, "4 of 6", 1), "binary": ("6 of 6", 0, "6 of 6", 1)}
    metrics, first, updates, second = lost[damage]
    goes_on = "; plots and report go on without it"
    assert [line for line in done.stdout.splitlines() if " has lost " in line] == [
        f"{out}/metrics.jsonl has lost {metrics} lines: that of step {first} is the first{goes_on}",
        f"{out}/updates.jsonl has lost {updates} lines: that of step {second} is the first{goes_on}",
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
