"""Runs of the training program: what tests of it share."""

import json
from pathlib import Path

import numpy as np

from convert.mapping import same

QUICK = ("--batch-size=8", "--steps=9", "--eval-every=4", "--checkpoint-every=3", "--log-every=1", "--lr=1e-3")


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl, without the fields that the machine decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["tokens_per_s"], line["peak_memory"]
    return lines


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, parameters and moments."""
    from orbax import checkpoint as ocp

    found = {}
    for item in ("params", "opt_state"):
        tree = ocp.StandardCheckpointer().restore((folder / "checkpoints" / str(step) / item).absolute())
        found |= {f"{item}/{name}": np.asarray(array) for name, array in tree.items()}
    return found


def assert_same_run(a: Path, b: Path, step: int) -> None:
    assert metrics(a) == metrics(b)
    updates = [[json.loads(line) for line in (run / "updates.jsonl").read_text().splitlines()] for run in (a, b)]
    assert updates[0] == updates[1]
    ours, theirs = arrays(a, step), arrays(b, step)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 40
    for name in ours:
        assert same(ours[name], theirs[name]), name
