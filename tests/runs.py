"""Runs of the training program: what tests of it share."""

import json
import shutil
from pathlib import Path

import numpy as np

from jaxgpt import convert
from jaxgpt.convert.mapping import same

WORDS = Path(__file__).parent / "old_run" / "words.txt"
"""A small text: the default one takes most of the time of a short run."""

QUICK = (
    f"--data={WORDS}", "--batch-size=8", "--steps=9", "--eval-every=4", "--checkpoint-every=3", "--log-every=1",
    "--lr=1e-3",
)  # fmt: skip


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl, without the fields that the machine decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["tokens_per_s"], line["peak_memory"]
    return lines


def unfinished(run: Path, folder: Path) -> Path:
    """Copy a run of `QUICK` without its last checkpoints: it goes on from step 6."""
    shutil.copytree(run, folder)
    for step in (8, 9):
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a run at a step, parameters and moments, whatever devices wrote them, and those in its base."""
    checkpoint = convert.read(folder / "checkpoints" / str(step))
    left_out = {name: checkpoint.params[name] for name in (checkpoint.base.digests if checkpoint.base else ())}
    found = {f"params/{name}": np.asarray(array) for name, array in left_out.items()}
    return found | {
        f"{item}/{name}": array for item in ("params", "opt_state") for name, array in held(folder, step, item).items()
    }


def held(folder: Path, step: int, item: str) -> dict[str, np.ndarray]:
    """Every array that a checkpoint itself holds in one of its items."""
    from orbax import checkpoint as ocp

    path = (folder / "checkpoints" / str(step) / item).absolute()
    names = ocp.PyTreeCheckpointHandler().metadata(path).tree
    how = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=how))


def without_digests(step: Path) -> None:
    """Make a checkpoint what an earlier version wrote."""
    (step / "digests.json").unlink()
    told = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(told | {"custom_metadata": {}}))


def assert_same_run(a: Path, b: Path, step: int, at_least: int = 30) -> None:
    assert metrics(a) == metrics(b)
    updates = [[json.loads(line) for line in (run / "updates.jsonl").read_text().splitlines()] for run in (a, b)]
    assert updates[0] == updates[1]
    ours, theirs = arrays(a, step), arrays(b, step)
    assert ours.keys() == theirs.keys()
    assert len(ours) > at_least
    for name in ours:
        assert same(ours[name], theirs[name]), name
