"""A run whose folder is renamed, replaced or removed notices it, and makes nothing anew."""

import re
import shutil

import forked
import pytest
from conftest import call
from runs import QUICK

from jaxgpt.convert.source import complete_steps
from jaxgpt.training.run.place import FolderGone, Place


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "r").mkdir()
    return tmp_path / "r"


def test_a_folder_that_is_changed_is_in_its_place(folder):
    place = Place(folder)
    place.check()  # nothing is remembered
    place.remember()
    (folder / "file").write_text("new")
    place.check()
    place.forget()


@pytest.mark.parametrize("fate", ["renamed", "replaced", "removed", "moved into another"])
def test_a_folder_that_is(folder, fate):
    place, new = Place(folder), folder.with_name("new")
    place.remember()
    if fate in ("replaced", "removed"):
        shutil.rmtree(folder)
    elif fate == "renamed":
        folder.rename(new)
    else:
        new.mkdir()
        folder.rename(new / "r")
    if fate == "replaced":
        folder.mkdir()  # it may have the number of the one before
    says = {"replaced": "was replaced while", "removed": "No such file", "renamed": f"was renamed to {new} while"}
    with pytest.raises(FolderGone, match=re.escape(says.get(fate, f"was renamed to {new}/r while"))):
        place.check()
    place.forget()


SCRIPT = """
import shutil, sys, time
from pathlib import Path
import jaxgpt.training.run.checkpoints, jaxgpt.training.run.logs
from jaxgpt.training.__main__ import main
out, new, when, fate = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
save, metrics = jaxgpt.training.run.checkpoints.Checkpoints.save, jaxgpt.training.run.logs.RunLog.metrics
def act():
    if not new.exists():
        out.rename(new)
        if fate == "replaced":
            out.mkdir(exist_ok=True)
            (out / "mine").write_text("mine")
def save_and_act(self, state, *rest):
    self.wait()
    if when == "before a save" and int(state.step) > 3:
        act()
    save(self, state, *rest)
    if when == "during a save" and int(state.step) > 3:
        act()
def write_and_act(self, step, *rest):
    if when == "between saves" and step == 5:
        while not (out / "checkpoints" / "3").exists():
            time.sleep(0.01)
        act()
    metrics(self, step, *rest)
jaxgpt.training.run.checkpoints.Checkpoints.save = save_and_act
jaxgpt.training.run.logs.RunLog.metrics = write_and_act
sys.argv = ["train", *sys.argv[5:]]
main()
"""


@pytest.mark.parametrize(
    ("when", "fate"), [("before a save", "renamed"), ("during a save", "replaced"), ("between saves", "replaced")]
)
def test_a_run_whose_folder_is(small, tmp_path, when, fate):
    out, new = tmp_path / "r", tmp_path / "new"
    flags = (f"--model={small}", f"--out={out}", "--freeze=head", *QUICK, "--eval-every=9")
    done = forked.run(SCRIPT, out, new, when, fate, *flags)
    assert done.returncode == 74, done.stderr
    said = " ".join(done.stderr.split())
    assert f"train: {out}: this folder was renamed to {new} while the run was using it: stopped after step " in said
    assert "Traceback" not in said
    assert complete_steps(new)[0] == 3
    if fate == "renamed":
        assert not out.exists()
    else:
        assert [path.name for path in out.rglob("*")] == ["mine"]
    flags = [flag.replace(str(out), str(new)) for flag in flags]
    call("train", *flags, "--resume")
    assert complete_steps(new)[-1] == 9
