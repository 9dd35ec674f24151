"""A run as Python reads it: numbers as arrays, the model, the report."""

import math
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import jaxgpt
from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import escaped
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.run.logs import best_step, read_metrics, read_samples, read_updates
from jaxgpt.training.run.run_json import RunInfo


@dataclass(frozen=True, init=False)
class Run:
    """A run of training in its folder, finished or not; its files are read where they are asked for.

    Args:
        folder: what `out=` named.

    Raises:
        InputError: no run is there, or its run.json is damaged.
    """

    folder: Path
    info: RunInfo
    """All that run.json holds: settings, what defaults came to, data, phases, machine."""

    def __init__(self, folder: str | Path):
        object.__setattr__(self, "folder", local_path(folder))
        object.__setattr__(self, "info", RunInfo.read(self.folder))

    @property
    def step(self) -> int:
        """Steps that are made and saved."""
        return max(complete_steps(self.folder), default=0)

    @property
    def is_finished(self) -> bool:
        """True if the run needs no further step: it has made all, or `patience` has ended it."""
        patience, losses = self.info.settings.get("patience"), list(self.evaluations)
        waited = len([step for step in losses if step > self.best_step])
        return self.step >= self.info.steps or (isinstance(patience, int) and waited >= patience)

    @property
    def best_step(self) -> int:
        """The step with the lowest held-out loss."""
        return best_step(self._lines)

    @property
    def evaluations(self) -> dict[int, float]:
        """The held-out loss in nats per token, by step."""
        return {line["step"]: line["eval_loss"] for line in self._lines if line["eval_loss"] is not None}

    @property
    def metrics(self) -> dict[str, Float[np.ndarray, " steps"]]:
        """The numbers of metrics.jsonl by name: `step`, `loss`, `eval_loss`, `lr` …; NaN where a step has no value."""
        lines = self._lines
        names = [name for name in (lines[0] if lines else {}) if any(line[name] is not None for line in lines)]
        return {
            name: np.asarray([math.nan if line[name] is None else line[name] for line in lines], _dtype(name))
            for name in names
        }

    @property
    def updates(self) -> dict[str, Float[np.ndarray, " steps"]]:
        """By module, how much a step changed it: the norm of its update over that of its weights; and `step`."""
        lines = read_updates(self.folder / "updates.jsonl")
        modules = dict.fromkeys(name for line in lines for name in line["updates"])
        found = {name: np.asarray([line["updates"].get(name, math.nan) for line in lines]) for name in modules}
        return {"step": np.asarray([line["step"] for line in lines], int), **found}

    @property
    def samples(self) -> str:
        """The texts that the model wrote before and after training, in Markdown."""
        return read_samples(self.folder / "samples.md")

    @cached_property
    def model(self) -> "jaxgpt.GPT":
        """The model of the newest checkpoint."""
        return jaxgpt.from_pretrained(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the run."""
        return jaxgpt.load_tokenizer(self.folder)

    @property
    def report(self) -> Path:
        """The page with everything in it; it is written if it is not there."""
        path = self.folder / "report.html"
        if not path.exists():
            from jaxgpt.training.report.page import write_report  # late: drawing is not needed before

            write_report(self.folder)
        return path

    @property
    def _lines(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / "metrics.jsonl")

    def __repr__(self) -> str:
        return f"Run({escaped(str(self.folder))!r}): {self._summary}"

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(escaped(str(self.folder)))}</b>: {escape(self._summary)}</p>"

    @property
    def _summary(self) -> str:
        trained, losses = self.info.parameters, self.evaluations
        parts = [f"{self.step:,} of {self.info.steps:,} steps"]
        if losses:
            first, last = next(iter(losses.values())), list(losses.values())[-1]
            parts.append(f"held-out loss {first:.3f} -> {last:.3f} nats, the lowest at step {self.best_step}")
        if {"trainable", "all"} <= trained.keys():
            parts.append(f"{trained['trainable']:,} of {trained['all']:,} parameters train")
        return ", ".join(parts)


def _dtype(name: str) -> type:
    return int if name in ("step", "trainable_params", "peak_memory") else float
