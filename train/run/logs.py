"""The files of a run that grow: metrics, updates and samples, one writer and one reader."""

import contextlib
import json
import math
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax

from jaxgpt.convert.errors import InputError, writing
from jaxgpt.convert.json_input import field, open_file, parse_json
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.step.spec import measure_every
from jaxgpt.training.step.step import REWARDS
from jaxgpt.training.tracking.trackers import Trackers

LONGEST = 10**6
"""Bytes of a line of a log, at most; what is longer is cut off, and no line."""


@dataclass(frozen=True)
class MetricsLine:
    """One line of metrics.jsonl."""

    step: int
    loss: float | None
    """Mean of the batch, in nats per token; None before the first step, as for the next two that can be None."""
    eval_loss: float | None
    """Mean of the held-out part, where it was evaluated after this step."""
    lr: float | None
    grad_norm: float | None
    tokens_per_s: float | None
    trainable_params: int
    peak_memory: int
    """Most bytes in use so far: of the first device, or on a CPU of this process."""


FURTHER = (*REWARDS, "eval_reward_accuracy", "ema_eval_loss")
"""Further fields of a line, where preferences are learned or a moving average is kept."""


class RunLog:
    """Writes the files, and tells trackers; a line that a kill cut off is no line."""

    def __init__(self, run: RunFolder, trackers: Trackers | None = None):
        self._run, self._trackers = run, trackers

    def find_lost(self, step: int, n_steps: int) -> list[str]:
        """Return what the files of a run that goes on after `step` have lost: a sentence for each of them."""
        if not self._run.is_writer:
            return []
        every = measure_every(n_steps)
        expected = {self._run.metrics: range(step), self._run.updates: range(every, step + 1, every)}
        lost = []
        for path, steps in expected.items():
            there = {line["step"] for line in read_lines(path)}
            if missing := [i for i in steps if i not in there]:
                lost.append(
                    f"{path} has lost {len(missing):,} of {len(steps):,} lines; the first is that of step {missing[0]}"
                )
        samples = self._run.samples
        if not samples.is_file() or not samples.read_bytes().startswith(b"## Before training\n"):
            lost.append(f"{samples} has lost the text from before training")
        return lost

    def truncate(self, step: int, is_evaluated: bool = True) -> None:
        """Forget lines of steps after `step`, which will be written again.

        Args:
            is_evaluated: otherwise the metrics of `step` itself will be written again too, with the evaluation.
        """
        if not self._run.is_writer:
            return
        last_metrics = step if is_evaluated else step - 1
        for path, last in ((self._run.metrics, last_metrics), (self._run.updates, step)):
            kept = [line for line in _texts(path) if -1 < _step_of(line) <= last]
            _replace(path, b"".join(line + b"\n" for line in kept))

    def sample(self, step: int, text: str) -> None:
        """Write a text into samples.md, in the place of one of the same step or later."""
        if not self._run.is_writer:
            return
        path = self._run.samples
        title = f"## After {step} steps" if step else "## Before training"
        earlier = read_samples(path) if step else ""
        earlier = earlier.split("\n## After ")[0].rstrip("\n")
        self._run.place.check()
        _replace(path, ("\n\n".join(filter(None, [earlier, title, text])) + "\n").encode())
        if self._trackers:
            self._trackers.text(step, "sample", text)

    def metrics(
        self,
        step: int,
        metrics: dict[str, float] | None,
        eval_loss: float | None,
        speed: float | None,
        n_trainable: int,
    ) -> None:
        """Append one line to metrics.jsonl; before the first step there is only an evaluation.

        Args:
            speed: in tokens per second.
        """
        known: dict[str, Any] = metrics or {}
        line = MetricsLine(
            step, known.get("loss"), eval_loss, known.get("lr"), known.get("grad_norm"), speed, n_trainable,
            _peak_memory(),
        )  # fmt: skip
        values = asdict(line) | {name: known[name] for name in FURTHER if name in known}
        self._append(self._run.metrics, values)
        if self._trackers:
            self._trackers.log(values.pop("step"), values)

    def updates(self, step: int, n_steps: int, updates: dict[str, float], modules: list[str]) -> None:
        """Append a line to updates.jsonl, if it is this step's turn; a frozen module's update is 0."""
        if step % measure_every(n_steps) == 0:
            ratios = {module: ratio if math.isfinite(ratio) else None for module, ratio in updates.items()}
            self._append(self._run.updates, {"step": step, "updates": dict.fromkeys(modules, 0.0) | ratios})

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        if self._run.is_writer:
            self._run.place.check()
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl in the order of their steps, without those that are damaged."""
    columns = [*(item.name for item in fields(MetricsLine)), *FURTHER]
    return [
        {"step": line["step"]} | {name: _number(line, name) for name in columns if name != "step"}
        for line in read_lines(path)
    ]


def read_updates(path: Path) -> list[dict[str, Any]]:
    """Return the lines of updates.jsonl in the order of their steps, without those that are damaged."""
    lines = [line for line in read_lines(path) if isinstance(line.get("updates"), dict)]
    return [
        {"step": line["step"], "updates": {name: _number(line["updates"], name, math.nan) for name in line["updates"]}}
        for line in lines
    ]


def _replace(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with writing(path):
        temporary.write_bytes(content)
        temporary.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log in the order of their steps, without those that were cut off or damaged.

    Of several lines of a step the last counts.
    """
    lines = {}
    for text in _texts(path):
        if (step := _step_of(text)) >= 0:
            lines[step] = parse_json(text)
    return [lines[step] for step in sorted(lines)]


def _texts(path: Path) -> Iterator[bytes]:
    """Read the lines of a log, without their ends; of a file that is no log there are none."""
    with contextlib.suppress(InputError, FileNotFoundError), open_file(path) as file:
        while line := file.readline(LONGEST):
            yield line.rstrip(b"\n")


def _number(line: dict[str, Any], name: str, absent: float | None = None) -> Any:
    """Return a number of a line, and what stands for none where it has none."""
    value = line.get(name)
    return value if type(value) is float or (type(value) is int and abs(value) < 2**63) else absent


def read_samples(path: Path) -> str:
    """Return what samples.md holds; a damaged byte is shown as such."""
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def best_step(metrics: list[dict[str, Any]]) -> int:
    """Return the step of the lowest evaluation loss, the earliest of several; 0 if there is none."""
    evaluations = [line for line in metrics if line.get("eval_loss") is not None]
    return min(evaluations, key=lambda line: line["eval_loss"])["step"] if evaluations else 0


def _peak_memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _step_of(line: bytes) -> int:
    """Return the step of a line; -1 for one that was cut off or broken."""
    try:
        return field(parse_json(line), "step", int)
    except InputError:
        return -1
