"""Runs and conversions in folders of any name that the file system takes: what they write can be read again."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import call
from etils.epath.gpath import PosixGPath
from runs import WORDS, arrays, assert_same_run

from jaxgpt import convert
from jaxgpt.convert.formats import orbax
from jaxgpt.convert.mapping import same

FLAGS = (f"--data={WORDS}", "--batch-size=4", "--steps=4", "--checkpoint-every=2", "--eval-every=4", "--context=16")
NAMES = ("[!a]*?", "a b %20 ü€" + "ü" * 56, "x\ny\t'\"$(id)", "runs[0]/deep [1]/{a,b}/lr=[1e-3]")


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    call("train", f"--model={small}", "--freeze=last1", f"--out={out}", *FLAGS)
    return out


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_run_in_a_folder_of_any_name_is_read_resumed_and_converted(small, plain, tmp_path, name):
    out = tmp_path / name
    call("train", f"--model={small}", "--freeze=last1", f"--out={out}", *FLAGS)
    assert_same_run(out, plain, 4)
    shutil.rmtree(out / "checkpoints" / "4")
    call("train", "--resume", out)
    assert_same_run(out, plain, 4)
    for form in ("orbax", "hf"):
        target = tmp_path / f"{name}-{form}"
        call("convert", out, target, f"--to={form}")
        written, whole = convert.read(target).params, arrays(plain, 4)
        assert all(same(np.asarray(array), whole[f"params/{name}"]) for name, array in written.items())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("nothing is merged", "what was saved is incomplete: Orbax has not joined its parts"),
        ("an array is missing", "what was saved can't be read"),
    ],
)
def test_what_can_t_be_read_is_never_called_a_checkpoint(small, tmp_path, monkeypatch, damage, says):
    """The run ends with one line, and code 74."""
    if damage == "nothing is merged":  # as Orbax does in such a folder, without a word
        monkeypatch.setattr(PosixGPath, "glob", lambda self, pattern: iter(()))
    else:
        confirm = orbax.confirm

        def lose(checkpoint, names, is_alone):
            for file in (checkpoint / "params").rglob("*"):
                if file.is_file() and "ocdbt.process_0" in str(file):
                    file.unlink()
            for file in (checkpoint / "params" / "d").glob("*"):
                file.unlink()
            confirm(checkpoint, names, is_alone=is_alone)

        monkeypatch.setattr(orbax, "confirm", lose)
    out = tmp_path / "run"
    # the program leaves at once, which this process has to outlive
    monkeypatch.setattr("jaxgpt.training.signals.StopSignals.leave", lambda self, code: sys.exit(int(code)))
    done = call("train", f"--model={small}", "--freeze=last1", f"--out={out}", *FLAGS, check=False)
    assert done.returncode == 74
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr
    assert not [path for path in (out / "checkpoints").iterdir() if path.name.isdecimal()]
    assert json.loads((out / "run.json").read_text())["settings"]["steps"] == 4
