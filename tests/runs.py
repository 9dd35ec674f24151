"""Runs of the training program: what tests of it share."""

import contextlib
import io
import json
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from convert.mapping import same
from train.__main__ import main

QUICK = ("--batch-size=8", "--steps=9", "--eval-every=4", "--checkpoint-every=3", "--log-every=1", "--lr=1e-3")


def train(*flags: str | Path) -> str:
    """`python -m train FLAGS` without a process of its own, which saves its imports; what it prints."""
    out, argv = io.StringIO(), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = ["train", *map(str, flags)]
    code = None
    try:
        # promotion as it is for users: Optax is not strict
        with contextlib.redirect_stdout(out), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            main()
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert code == 0, out.getvalue()
    return out.getvalue()


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
