"""What a run writes while it goes on: metrics, updates and samples."""

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from jaxgpt.train.run.folder import Run
from jaxgpt.train.tracking.trackers import Trackers

COLUMNS = 150
"""Most lines of updates.jsonl, which are the columns of a picture."""


class Log:
    """The files of a run that grow, and its trackers; a line that a kill cut off is no line."""

    def __init__(self, run: Run, trackers: Trackers | None = None):
        self._run, self._trackers = run, trackers

    def truncate(self, step: int, evaluated: bool = True) -> None:
        """Forgets lines of steps after `step`, which will be written again, as will the metrics of `step` itself if its
        evaluation is to be made up for.
        """
        if not self._run.writes:
            return
        for path, last in ((self._run.metrics, step if evaluated else step - 1), (self._run.updates, step)):
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            kept = [line for line in lines if -1 < _step_of(line) <= last]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept), "utf-8")
            temporary.replace(path)

    def sample(self, step: int, text: str) -> None:
        """Puts a text into samples.md, in the place of one of the same step or later."""
        if not self._run.writes:
            return
        path = self._run.samples
        title = f"## After {step} steps" if step else "## Before training"
        earlier = path.read_text("utf-8") if step and path.exists() else ""
        earlier = earlier.split("\n## After ")[0].rstrip("\n")
        path.write_text("\n\n".join(filter(None, [earlier, title, text])) + "\n", "utf-8")
        if self._trackers:
            self._trackers.text(step, "sample", text)

    def metrics(
        self, step: int, metrics: dict[str, float] | None, eval_loss: float | None, speed: float | None, trainable: int
    ) -> None:
        """Appends one line to metrics.jsonl; before the first step there is only an evaluation."""
        known: dict[str, Any] = metrics or dict.fromkeys(("loss", "lr", "grad_norm"))
        line = {
            "step": step,
            "loss": known["loss"],
            "eval_loss": eval_loss,
            "lr": known["lr"],
            "grad_norm": known["grad_norm"],
            "tokens_per_s": speed,
            "trainable_params": trainable,
            "peak_memory": _peak_memory(),
        }
        self._append(self._run.metrics, line)
        if self._trackers:
            self._trackers.log(line.pop("step"), line)

    def updates(self, step: int, steps: int, updates: dict[str, float], modules: list[str]) -> None:
        """Appends a line to updates.jsonl, if it is this step's turn; a frozen module's update is 0."""
        if step % -(-steps // COLUMNS) == 0:
            ratios = {module: ratio if math.isfinite(ratio) else None for module, ratio in updates.items()}
            self._append(self._run.updates, {"step": step, "updates": dict.fromkeys(modules, 0.0) | ratios})

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        if self._run.writes:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _peak_memory() -> int:
    """Most bytes that were in use so far: of the first device, or on a CPU of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _step_of(line: str) -> int:
    """The step of a line; -1 for one that was cut off or broken."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
