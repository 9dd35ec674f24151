"""The comparison of several runs: one self-contained HTML page with their curves, results, and settings that differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from jaxgpt.convert.command_line.flags import spelled
from jaxgpt.convert.errors import InputError
from jaxgpt.training.report.figure import (
    WIDE,
    Axes,
    Dot,
    Drawing,
    Figure,
    Path,
    draw_both,
    frame,
    legend,
    printable,
    y_range,
)
from jaxgpt.training.report.outcome import SAME, Outcome, duration
from jaxgpt.training.report.page import default_of, setting_in_words
from jaxgpt.training.report.plots.curves import FEW, numbers, smoothed
from jaxgpt.training.report.templates import render, write_text
from jaxgpt.training.run.logs import read_metrics
from jaxgpt.training.run.run_json import RunInfo

MOST = 8
"""Runs of a page, at most: each has a colour of its own."""

NOT_COMPARED = {"out", "resume", "resume_anyway", "force", "config"}
"""Settings that differ between any two runs, or say nothing about them."""


@dataclass(frozen=True)
class Run:
    """A run that is compared."""

    name: str
    info: RunInfo
    metrics: list[dict[str, Any]]
    outcome: Outcome


def write_comparison(folders: Sequence[FilePath], path: FilePath) -> FilePath:
    """Write a page that compares runs.

    Raises:
        InputError: one of the folders holds no run, or there are too many.
    """
    if not 2 <= len(folders) <= MOST:
        raise InputError(f"from 2 to {MOST} runs are compared, not {len(folders)}")
    runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    figure = overlaid(runs)
    page = render(
        "comparison.html.jinja",
        title=f"Comparison of {len(runs)} runs",
        verdict=verdict(runs),
        remarks=remarks(runs),
        figure=figure,
        results=results(runs),
        columns=("Flag", *(run.name for run in runs), "Default"),
        differences=differences(runs),
        commands=[{"purpose": run.name, "line": run.info.command} for run in runs],
    )
    write_text(path, page)
    return path


def read_run(folder: FilePath, name: str) -> Run:
    """Read what is compared of a run.

    Raises:
        InputError: the folder holds no run.
    """
    info, metrics = RunInfo.read(folder), read_metrics(folder / "metrics.jsonl")
    return Run(name, info, metrics, Outcome.of(info, metrics))


def run_names(folders: Sequence[FilePath]) -> list[str]:
    """Return names that tell the runs apart: of their folders, with as many parents as that needs."""
    paths = [folder.absolute() for folder in folders]
    for n_parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-n_parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [printable(name, 60) for name in names]


def verdict(runs: Sequence[Run]) -> str:
    """Return which run reached the lowest held-out loss, in a sentence."""
    ranked = _ranked(runs)
    if not ranked:
        return "No run has an evaluation."
    if len(ranked) == 1:
        return f"Only {ranked[0].name} has an evaluation."
    best, second = (run.outcome.best[1] for run in ranked[:2] if run.outcome.best)
    if second - best < SAME:
        return f"{ranked[0].name} and {ranked[1].name} reached the same held-out loss, {best:.3f}."
    return f"{ranked[0].name} reached the lowest held-out loss, {best:.3f}; next is {ranked[1].name} with {second:.3f}."


def remarks(runs: Sequence[Run]) -> list[str]:
    """Return what makes the losses of the runs less comparable, in sentences."""
    said = []
    if len({run.info.data.held_out_sha256 or run.info.data.sha256 for run in runs}) > 1:
        said.append("The runs have different data: their losses are not of the same text.")
    elif len({run.info.data.held_out for run in runs}) > 1:
        said.append("The runs hold out different parts of the data: their losses are not of the same text.")
    contexts = sorted({c for run in runs if isinstance(c := run.info.resolved.get("context"), int)})
    if len(contexts) > 1:
        said.append(f"Their contexts differ, {contexts[0]:,} to {contexts[-1]:,} tokens: a longer one lowers the loss.")
    if len({run.info.data.tokenizer for run in runs}) > 1:
        said.append("Their tokenizers differ, so that a token is not the same amount of text.")
    if unfinished := [run.name for run in runs if run.outcome.badge[0] in ("unfinished", "broke off")]:
        said.append(f"Not finished: {', '.join(unfinished)}.")
    return said


def overlaid(runs: Sequence[Run]) -> Figure:
    """Draw the held-out losses of all runs over the steps, and faintly their training losses."""
    curves = []
    for run in runs:
        steps = np.asarray([line["step"] for line in run.metrics], int)
        losses, held_out = numbers(run.metrics, "loss"), numbers(run.metrics, "eval_loss")
        faint = smoothed(steps, losses) if len(steps) >= FEW else (steps, losses)
        curves.append((steps, held_out, faint))
    end = max((int(steps.max(initial=1)) for steps, _, _ in curves), default=1)
    ys = _loss_range([(held_out, faint[1]) for _, held_out, faint in curves])
    over = [run.name for run, (_, held_out, _) in zip(runs, curves, strict=True) if (held_out > ys[1]).any()]
    entries = [(f"dot s{i}", printable(run.name, 40)) for i, run in enumerate(runs)]

    def draw(width: int) -> Drawing:
        marks, top = legend(entries, 0, width)
        axes = Axes(46, top + 24, width - 62, 340 if width == WIDE else 280, (0.0, float(max(end, 1))), ys)
        frame(axes, y_title="held-out loss, and faintly the training loss")
        for i, (_, _, faint) in enumerate(curves):
            axes.add(Path(axes.line(zip(*faint, strict=True)), f"line s{i} faint"))
        for i, (steps, held_out, _) in enumerate(curves):
            points = [(x, y) for x, y in zip(steps, held_out, strict=True) if math.isfinite(y)]
            axes.add(Path(axes.line(points), f"line s{i}"))
            words = [f"{runs[i].name}, step {x:,}: {y:.4f}" for x, y in points]
            dots = list(zip(points, words, strict=True)) if len(points) <= 60 else []
            axes.add(*(Dot(axes.x(x), axes.y(y), 3.4, f"dot s{i}", says) for (x, y), says in dots))
        return Drawing(width, axes.bottom + 46, (*marks, *axes.marks))

    wide, narrow = draw_both(draw)
    alt = "Line chart of the held-out losses of the runs over the training steps."
    caption = f"Losses beyond the top of the picture are drawn at its upper edge: {', '.join(over)}." if over else ""
    return Figure("comparison", _spread(runs), alt, caption, wide, narrow)


def _loss_range(curves: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    """Return the range of an axis from the lowest loss to where the runs began: one that diverged does not take it."""
    finite = [values[np.isfinite(values)] for pair in curves for values in pair]
    begins = [values[0] for values in finite if values.size]
    return y_range([*begins, *(values.min() for values in finite if values.size)])


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row of results for each run."""
    rows, best = [], _ranked(runs)[:1]
    for i, run in enumerate(runs):
        outcome = run.outcome
        trainable = run.info.phases[-1].trainable if run.info.phases else run.info.parameters.get("trainable")
        cells = (
            _number(outcome.best[1] if outcome.best else None),
            f"{outcome.best[0]:,}" if outcome.best else "–",
            _number(outcome.last_loss),
            f"{outcome.last_step:,}" if outcome.last_step is not None else "–",
            f"{trainable:,}" if trainable is not None else "–",
            duration(outcome.seconds) if outcome.seconds is not None else "–",
            f"{outcome.tokens_per_s:,.0f}" if outcome.tokens_per_s is not None else "–",
            outcome.badge[0],
        )
        rows.append({"name": run.name, "key": i, "cells": cells, "is_changed": best == [run]})
    return rows


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each setting that is not the same in all runs, with what the runs resolved."""
    names = dict.fromkeys(name for run in runs for name in run.info.settings if name not in NOT_COMPARED)
    rows = []
    for name in names:
        cells = [setting_in_words(run.info, name) for run in runs]
        if len(set(cells)) > 1:
            rows.append({"name": spelled(name), "cells": (*cells, default_of(name)), "is_changed": False})
    return rows


def _ranked(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that were evaluated, the one with the lowest loss first."""
    return sorted((run for run in runs if run.outcome.best), key=lambda run: run.outcome.best[1])  # type: ignore[index]


def _spread(runs: Sequence[Run]) -> str:
    """Return how far apart the runs end."""
    ends = [run.outcome.last_loss for run in runs if run.outcome.last_loss is not None]
    finite = [loss for loss in ends if math.isfinite(loss)]
    if len(finite) < 2:
        return "Held-out losses"
    return f"At their ends the held-out losses lie between {min(finite):.3f} and {max(finite):.3f}"


def _number(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}" if abs(loss) < 1e6 else f"{loss:.3g}"
