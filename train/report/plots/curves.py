"""The parts that all curves of a run share, and one curve of any number over the steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxgpt.training.report.figure import (
    Axes,
    Drawing,
    Figure,
    Label,
    Path,
    band_room,
    draw_both,
    frame,
    short_number,
    y_range,
)
from jaxgpt.training.run.run_json import PhaseInfo

FEW = 30
"""Fewer lines of metrics.jsonl than these are joined by a line, without smoothing."""
POINTS = 400
"""Most points of a smooth line."""


def line_chart(
    name: str, title: str, words: str, metrics: Sequence[Mapping[str, Any]], key: str, phases: Sequence[PhaseInfo], *,
    factor: float = 1.0, limit: tuple[float, str] | None = None, from_zero: bool = True,
) -> Figure:  # fmt: skip
    """Draw one number of metrics.jsonl over the steps.

    Args:
        words: its name and unit.
        factor: by which it is multiplied.
        limit: a number that is drawn as a line, and what it is.
    """
    steps, values = np.asarray([line["step"] for line in metrics]), numbers(metrics, key) * factor
    has_line = len(steps) >= FEW and key not in ("lr", "peak_memory")

    def draw(width: int) -> Drawing:
        ys = y_range([*robust(values, has_line), *([limit[0]] if limit else [])], from_zero=from_zero)
        axes = Axes(56, 26, width - 72, 150, range_of(steps), ys)
        axes.top += band_room(axes, phases)
        frame(axes, phases=phases, y_title=words)
        axes.add(Path(every_step(axes, steps, values), "line s0 faint" if has_line else "line s0"))
        if has_line:
            axes.add(Path(axes.line(zip(*smoothed(steps, values), strict=True)), "line s0"))
        if limit:
            y = axes.y(limit[0])
            axes.add(Path(f"M{short_number(axes.left)} {short_number(y)}H{short_number(axes.right)}", "line limit"))
            axes.add(Label(axes.right, y - 6, limit[1], "value", "end"))
        return Drawing(width, axes.bottom + 46, tuple(axes.marks))

    wide, narrow = draw_both(draw)
    return Figure(name, title, f"Line chart over the training steps: {words}.", "", wide, narrow)


def every_step(axes: Axes, steps: Int[np.ndarray, " S"], values: Float[np.ndarray, " S"]) -> str:
    """Return the path of all values; of very many, the lowest and the highest in each pixel."""
    n_pixels = int(axes.width)
    if len(steps) <= n_pixels:
        return axes.line(zip(steps, values, strict=True))
    parts = []
    low, high = axes.xs
    pixel = (axes.left + (steps - low) / (high - low) * axes.width).astype(int)
    for first, last in zip(
        begins := np.flatnonzero(np.diff(pixel, prepend=-1)), [*begins[1:], len(steps)], strict=True
    ):
        finite = values[first:last][np.isfinite(values[first:last])]
        if finite.size:
            low, high = axes.y(finite.min()), axes.y(finite.max())
            parts.append(f"M{pixel[first]} {short_number(high)}V{short_number(max(low, high + 0.5))}")
    return "".join(parts)


def robust(values: Float[np.ndarray, " S"], has_outliers: bool) -> list[float]:
    """Return what the range of an axis is made from: all finite numbers, or of many those without single spikes."""
    finite = values[np.abs(np.nan_to_num(values, nan=np.inf)) < 1e300]
    if not has_outliers or not finite.size:
        return finite.tolist()
    low, middle, high = np.percentile(finite, (1, 50, 99))
    space = 1.5 * (high - low)
    return finite[(finite >= min(low, middle) - space) & (finite <= max(high, middle) + space)].tolist()


def smoothed(
    steps: Int[np.ndarray, " S"], losses: Float[np.ndarray, " S"]
) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Smooth many losses: average the middle half of each window, so that single spikes do not bend the line.

    A window is a twentieth of the losses. It shrinks towards the beginning, where a loss falls fast, and is cut off at
    the end. A loss that is NaN stays a gap.

    Returns:
        Steps, at most `POINTS` of them, and their averages.
    """
    n = len(losses)
    at = np.unique(np.linspace(0, n - 1, POINTS).round().astype(int))
    means = np.full(len(at), math.nan)
    for i, place in enumerate(at):
        if np.isfinite(losses[place]):
            half = min(place, max(1, n // 40))
            window = losses[place - half : place + half + 1]
            window = np.sort(window[np.isfinite(window)])
            n_cut = len(window) // 4
            means[i] = window[n_cut : len(window) - n_cut].mean()
    return steps[at], means


def numbers(metrics: Sequence[Mapping[str, Any]], key: str) -> Float[np.ndarray, " S"]:
    """Return the finite values of a field, with NaN in place of all others."""
    values = np.asarray([math.nan if line.get(key) is None else line[key] for line in metrics], np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def range_of(steps: Int[np.ndarray, " S"]) -> tuple[float, float]:
    """Return the range of an axis of steps, from 0 on."""
    return 0.0, float(max(int(steps.max(initial=0)), 1))
