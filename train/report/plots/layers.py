"""Axes with a row for each layer, as maps over layers and steps have them."""

import math
from collections.abc import Sequence

from jaxgpt.training.report.figure import Axes, Label, Path, band_room, draw_bands, fitted, short_number, text_width
from jaxgpt.training.run.run_json import PhaseInfo

MOST_ROWS = 128
"""Most rows of a map; more layers are put together."""


def layer_axes(width: int, names: Sequence[str], xs: tuple[float, float], phases: Sequence[PhaseInfo]) -> Axes:
    """Return axes with a row for each layer, beside which their names have room."""
    height = 20.0 if len(names) <= 16 else 14.0 if len(names) <= 32 else max(4.0, 560 / len(names))
    left = min(max((text_width(name) for name in names), default=0.0) + 10, width * 0.34)
    axes = Axes(left, 4, width - left - 16, max(height * len(names), 20.0), (xs[0], max(xs[1], 1)), (0, 1))
    axes.top += 1.2 * band_room(axes, phases)
    return axes


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Write the names of layers beside their rows; of many blocks only some, and the last."""
    height = axes.height / max(len(names), 1)
    every = max(1, math.ceil(15 / height))
    blocks = [row for row, name in enumerate(names) if name.startswith("block ")]
    kept = {row for i, row in enumerate(blocks) if i % every == 0 and len(blocks) - 1 - i >= every}
    kept |= {blocks[-1]} if blocks else set()
    others = [row for row in range(len(names)) if row not in blocks]
    for row in sorted(kept | set(others), key=lambda row: (row in kept, row)):
        y = axes.bottom - (row + 0.5) * height
        near = [mark for mark in axes.marks if isinstance(mark, Label) and abs(mark.y - y - 4.5) < 13.5]
        if not near:
            axes.add(Label(axes.left - 8, y + 4.5, fitted(names[row], axes.left - 8), "label", "end"))


def draw_phases(axes: Axes, phases: Sequence[PhaseInfo]) -> None:
    """Draw a line where each phase begins, and its name above."""
    draw_bands(axes, phases, is_filled=False)
    for phase in [phase for phase in phases if 0 < phase.start < axes.xs[1]][:200]:
        x = short_number(axes.x(phase.start))
        axes.add(Path(f"M{x} {short_number(axes.top - 18)}V{short_number(axes.bottom)}", "boundary"))


def hatch(axes: Axes, gap: float = 7.0) -> str:
    """Return diagonal lines over a rectangle."""
    parts = []
    for i in range(1, int((axes.width + axes.height) / gap) + 1):
        across = i * gap
        x0, y0 = (across, 0.0) if across <= axes.width else (axes.width, across - axes.width)
        x1, y1 = (0.0, across) if across <= axes.height else (across - axes.height, axes.height)
        parts.append(
            f"M{short_number(axes.left + x0)} {short_number(axes.top + y0)}"
            f"L{short_number(axes.left + x1)} {short_number(axes.top + y1)}"
        )
    return "".join(parts)
