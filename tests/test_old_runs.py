"""A run that an earlier version wrote goes on: `tests/old_run` is one of 0.1, stopped after step 4 of 6."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import call
from runs import metrics

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old_run(tmp_path, monkeypatch) -> Path:
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old" / "run"


def test_an_old_run_goes_on_as_it_would_have(old_run):
    """Its checkpoint has the old names; the losses after it are those that the old program found."""
    command = json.loads((old_run / "run.json").read_text())["command"]
    assert command.startswith("python -m train --model=model --data=words.txt --freeze=gradual:last1@0,full@3 ")
    done = call("train", *shlex.split(command)[3:], "--resume")
    assert "2 steps in " in done.stdout
    expected = [json.loads(line) for line in (OLD / "expected_metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(metrics(old_run), expected, strict=True):
        for name, value in ours.items():  # tests have another optimisation level of XLA
            assert value == theirs[name] or value == pytest.approx(theirs[name], rel=1e-5), name
