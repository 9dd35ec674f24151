"""The curves of the loss: of every training step, and of held-out text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxgpt.training.report.figure import (
    SIZE,
    SMALL,
    WIDE,
    Axes,
    Dot,
    Drawing,
    Figure,
    Label,
    Path,
    band_room,
    draw_both,
    frame,
    legend,
    short_number,
    text_width,
    y_range,
)
from jaxgpt.training.report.outcome import Outcome
from jaxgpt.training.report.plots.curves import FEW, every_step, numbers, range_of, robust, smoothed
from jaxgpt.training.run.run_json import PhaseInfo


def loss_curves(
    metrics: Sequence[Mapping[str, Any]], phases: Sequence[PhaseInfo], outcome: Outcome | None = None
) -> Figure:
    """Draw the training loss, every step of it, and the held-out loss, from the lines of metrics.jsonl.

    A line joins few losses; many are drawn faintly under a smoothed line. What is far above the others is a triangle at
    the upper side.
    """
    steps = np.asarray([line["step"] for line in metrics])
    losses, held_out, averaged = (numbers(metrics, key) for key in ("loss", "eval_loss", "ema_eval_loss"))
    smooth = smoothed(steps, losses) if len(steps) >= FEW else (steps[:0], losses[:0])
    ys = y_range([*robust(losses, len(steps) >= FEW), *smooth[1], *held_out, *averaged])
    broken = [line["step"] for line in metrics if _is_broken(line.get("loss")) or _is_broken(line.get("eval_loss"))]
    over = steps[losses > ys[1]]
    entries = [("line s0 faint" if len(smooth[0]) else "line s0", "training, every step")]
    entries += [("line s0", "smoothed")] if len(smooth[0]) else []
    entries += [("dot s1", "held out")] if np.isfinite(held_out).any() else []
    entries += [("dot s2", "averaged weights, held out")] if np.isfinite(averaged).any() else []
    entries += [("line broken", "not finite")] if broken else []
    has_pairs = np.isfinite(numbers(metrics, "reward_margin")).any()

    def draw(width: int) -> Drawing:
        marks, top = legend(entries, 0, width)
        axes = Axes(46, top + 24, width - 62, 300 if width == WIDE else 260, range_of(steps), ys)
        axes.top += band_room(axes, phases)
        frame(axes, phases=phases, y_title="nats per preference" if has_pairs else "nats per token")
        axes.add(Path(every_step(axes, steps, losses), "line s0 faint" if len(smooth[0]) else "line s0"))
        if len(smooth[0]):
            axes.add(Path(axes.line(zip(smooth[0], smooth[1], strict=True)), "line s0"))
        for step in over[:200]:
            place = f"M{short_number(axes.x(step) - 4)} {short_number(axes.top + 7)}l4-7 4 7z"
            axes.add(Path(place, "dot s0", f"step {step:,}: {losses[steps == step][0]:.3g}"))
        for style, values in (("s2", averaged), ("s1", held_out)):
            draw_evaluations(axes, steps, values, style, is_labelled=style == "s1")
        for step in broken[:200]:
            place = f"M{short_number(axes.x(step) - 4)} {short_number(axes.bottom - 10)}l8 8m0-8l-8 8"
            axes.add(Path(place, "line broken", f"step {step:,}: not finite"))
        return Drawing(width, axes.bottom + 46, (*marks, *axes.marks))

    wide, narrow = draw_both(draw)
    what = "preference" if has_pairs else "token"
    caption = f"Loss of the training text and of held-out text, in nats per {what}."
    if len({phase.name for phase in phases}) > 1:
        caption += " Bands are the phases of the freezing strategy."
    if len(over):
        marks = "A triangle marks 1 loss" if len(over) == 1 else f"Triangles mark {len(over):,} losses"
        caption += f" {marks} beyond the top of the picture."
    title = _loss_title(losses, smooth[1], held_out) or (outcome.finding if outcome else "Loss")
    return Figure("loss", title, "Line chart of the loss over the training steps.", caption, wide, narrow)


def _loss_title(
    losses: Float[np.ndarray, " S"], smooth: Float[np.ndarray, " P"], held_out: Float[np.ndarray, " S"]
) -> str:
    """Return how far apart the losses of training and held-out text are at last; nothing where that isn't known."""
    evaluated = np.flatnonzero(np.isfinite(held_out))
    ends = (smooth if smooth.size else losses)[np.isfinite(smooth if smooth.size else losses)]
    if len(evaluated) < 2 or not ends.size:
        return ""
    train, held = float(ends[-1]), float(held_out[evaluated[-1]])
    if max(abs(train), abs(held)) > 1e4:
        return ""
    if abs(held - train) < max(0.02 * abs(held), 0.01):
        return f"Losses at the end are alike: training {train:.2f}, held-out text {held:.2f}"
    side = "above" if held > train else "below"
    return f"Losses at the end: held-out text {held:.2f}, {abs(held - train):.2f} {side} that of training"


def draw_evaluations(
    axes: Axes, steps: Int[np.ndarray, " S"], values: Float[np.ndarray, " S"], style: str, *, is_labelled: bool = True
) -> None:
    """Draw evaluations as dots with a line, and write the best, the last and the first value beside theirs."""
    finite = np.isfinite(values)
    points = list(zip(steps[finite], values[finite], strict=True))
    if not points:
        return
    axes.add(Path(axes.line(points), f"line {style}"))
    shown = points if len(points) <= 60 else [points[0], points[-1]]
    axes.add(*(Dot(axes.x(x), axes.y(y), 3.6, f"dot {style}", f"step {x:,}: {y:.4f}") for x, y in shown))
    if not is_labelled:
        return
    taken: list[tuple[float, float, float]] = []
    for x, y in (min(points, key=lambda point: point[1]), points[-1], points[0]):
        text = f"{y:.3f}" if abs(y) < 1e4 else f"{y:.2e}"
        half = text_width(text, SMALL) / 2
        center = min(max(axes.x(x), axes.left + half + 4), axes.right - half)
        height = axes.y(y) - 10 if axes.y(y) > axes.top + 34 else axes.y(y) + 20
        if any(abs(center - a) < half + b + 6 and abs(height - c) < SIZE + 2 for a, b, c in taken):
            continue
        taken.append((center, half, height))
        axes.add(Label(center, height, text, f"value {style}", "middle"))


def _is_broken(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)
