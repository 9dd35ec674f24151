"""The curves of preferences: how often the better answer has the higher reward, and by how much."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgpt.training.report.figure import Axes, Dot, Drawing, Figure, Path, band_room, draw_both, frame, legend, y_range
from jaxgpt.training.report.plots.curves import FEW, every_step, numbers, range_of, robust, smoothed
from jaxgpt.training.run.run_json import PhaseInfo


def reward_curves(metrics: Sequence[Mapping[str, Any]], phases: Sequence[PhaseInfo]) -> Figure:
    """Draw how often the preferred answer has the higher reward, and below it by how much, from metrics.jsonl."""
    steps = np.asarray([line["step"] for line in metrics])
    margins, right, held_out = (
        numbers(metrics, key) for key in ("reward_margin", "reward_accuracy", "eval_reward_accuracy")
    )
    has_line = len(steps) >= FEW
    entries = [("line s0 faint" if has_line else "line s0", "training"), *([("line s0", "smoothed")] * has_line)]
    entries += [("dot s1", "held out")]

    def draw(width: int) -> Drawing:
        marks, top = legend(entries, 0, width)
        upper = Axes(46, top + 24, width - 62, 200, range_of(steps), (0.0, 1.0))
        upper.top += band_room(upper, phases)
        percent = [(share, f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]
        frame(upper, phases=phases, y_title="pairs whose preferred answer is ahead", y_texts=percent, x_title="")
        lower = Axes(46, upper.bottom + 62, width - 62, 130, upper.xs, y_range([*robust(margins, has_line), 0.0]))
        frame(lower, phases=(), y_title="reward margin")
        for axes, values in ((upper, right), (lower, margins)):
            axes.add(Path(every_step(axes, steps, values), "line s0 faint" if has_line else "line s0"))
            if has_line:
                axes.add(Path(axes.line(zip(*smoothed(steps, values), strict=True)), "line s0"))
        finite = np.isfinite(held_out)
        points = list(zip(steps[finite], held_out[finite], strict=True))
        upper.add(Path(upper.line(points), "line s1"))
        upper.add(*(Dot(upper.x(x), upper.y(y), 3.6, "dot s1", f"step {x:,}: {y:.1%}") for x, y in points[:200]))
        return Drawing(width, lower.bottom + 46, (*marks, *upper.marks, *lower.marks))

    wide, narrow = draw_both(draw)
    finite = held_out[np.isfinite(held_out)]
    title = f"The preferred answer is ahead in {finite[-1]:.0%} of held-out pairs" if finite.size else "Preferences"
    if finite.size > 1:
        title += f", {finite[0]:.0%} before training"
    return Figure(
        "rewards", title, "Line charts of the rewards of preferences over the training steps.",
        "How often the preferred answer has the higher reward, and how much higher it is on the pairs of each step.",
        wide, narrow,
    )  # fmt: skip
