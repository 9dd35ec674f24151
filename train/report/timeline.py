"""Axes over the training steps, with the names of a run's phases above and of its layers at the side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator

from jaxgpt.training.run.run_json import PhaseInfo

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 10.0, 0.95, 1.55, 0.45, 0.75
"""Width of a picture and its margins, in inches; names of late phases reach into the right margin."""
INK, FAINT = "#444444", "#999999"
SMALL, LINE = 8.0, 0.15
"""Small print: its size in points, and the height of a line in inches."""
LONGEST, MOST_LEVELS = 1.4, 12
"""Longest name in inches, and most names above one another."""


def timeline(
    title: str, height: float, phases: Sequence[PhaseInfo], end: int, *,
    counts: bool = False, below: float = 0, color: str = INK,
) -> tuple[Figure, Axes]:  # fmt: skip
    """Make a figure with axes over the steps from 0 to `end`, and every phase's name above its beginning.

    Args:
        height: height of the axes, in inches.
        counts: write the number of trainable parameters under each name.
        below: inches to leave free for more axes under these.
        color: color of the lines between phases.
    """
    end = max(end, 1)
    shown = [phase for phase in phases if phase.start < end]
    labels = [printable(str(phase.name)) + (f"\n{short(phase.trainable)}" if counts else "") for phase in shown]
    places = [phase.start / end * (WIDTH - LEFT - RIGHT) for phase in shown]
    level = _levels(places, labels)
    if max(level, default=0) >= MOST_LEVELS:  # too many for names: numbers instead
        labels = [str(number) for number in range(1, len(shown) + 1)]
        level = _levels(places, labels)
    line = LINE * (1.2 + counts)
    above, under = TOP + line * (max(level, default=-1) + 1), BOTTOM + below
    tall = above + height + under
    figure = Figure(figsize=(WIDTH, tall))
    figure.text(LEFT / WIDTH, 1 - 0.12 / tall, title, va="top", weight="bold")
    ax = figure.add_axes((LEFT / WIDTH, under / tall, (WIDTH - LEFT - RIGHT) / WIDTH, height / tall))
    ax.set(xlim=(0, end), xlabel="training step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    across = ax.get_xaxis_transform()
    for phase, label, steps_up in zip(shown, labels, level, strict=True):
        x, base = phase.start, steps_up * line
        ax.plot([x, x], [0, 1 + (base + 0.8 * line) / height], color=color, lw=0.8, transform=across, clip_on=False)
        ax.annotate(
            label, (x, 1), xycoords=across, xytext=(3, 72 * base + 3), textcoords="offset points",
            size=SMALL, color=INK, linespacing=1.1, parse_math=False,
        )  # fmt: skip
    return figure, ax


def layer_axis(ax: Axes, modules: Sequence[str]) -> None:
    """Label the modules at the side: `blocks.7` is 7, and only some of very many blocks have a label."""
    blocks = [row for row, name in enumerate(modules) if name.startswith("blocks.")]
    every = -(-len(blocks) // 16)
    hidden = {row for i, row in enumerate(blocks) if row != blocks[-1] and (i % every or i > len(blocks) - 1 - every)}
    rows = [row for row in range(len(modules)) if row not in hidden]
    ax.set_yticks(rows, [printable(modules[row].removeprefix("blocks.")) for row in rows], size=SMALL, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.5, len(modules) - 0.5)
    ax.set_ylabel("layer (input → output)")


def layers_height(modules: Sequence[str]) -> float:
    """Return the inches of axes with a row for each module."""
    return len(modules) * (0.26 if len(modules) <= 20 else 0.16)


def columns(steps: Sequence[int], starts: Sequence[int]) -> tuple[Int[np.ndarray, "S+1"], Int[np.ndarray, " S"]]:
    """Compute where each column of a picture begins and ends, and which logged step it shows.

    A logged step stands for the steps since the one logged before, and never for steps of another phase.

    Args:
        steps: logged steps, ascending, from 1 on.
        starts: first steps of the phases, ascending.

    Returns:
        Edges, and for each column between them an index into `steps`, or -1 where its phase has no logged step.
    """
    edges = np.unique([0, *steps, *(start for start in starts if start < steps[-1])])
    phase_of_step, phase_of_column = (np.searchsorted(starts, ends) for ends in (steps, edges[1:]))
    shown = []
    for end, phase in zip(edges[1:], phase_of_column, strict=True):
        mine = np.flatnonzero(phase_of_step == phase)
        later = mine[np.asarray(steps)[mine] >= end]
        shown.append(later[0] if later.size else mine[-1] if mine.size else -1)
    return edges, np.asarray(shown)


def printable(text: str) -> str:
    """Cut a text to one line of `LONGEST` inches of small print, and escape characters that the font lacks."""
    glyphs = _font().get_charmap()
    whole = "".join(c if c.isprintable() and ord(c) in glyphs else ascii(c)[1:-1] for c in text[:100])
    end = len(whole)
    is_cut = len(text) > 100
    while True:
        shown = f"{whole[:end]}…" if is_cut or end < len(whole) else whole
        if _width(shown) <= LONGEST:
            return shown
        end -= 1


def short(count: int) -> str:
    """Shorten a count: `12.4M` for 12,443,980."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def _levels(places: Sequence[float], labels: Sequence[str]) -> list[int]:
    """Return each label's level, so that no label meets another, or the line that leads up to another."""
    level = [0] * len(places)
    for i in reversed(range(len(places))):
        end = places[i] + _width(labels[i]) + 0.12  # some space
        level[i] = max((level[j] + 1 for j in range(i + 1, len(places)) if places[j] < end), default=0)
    return level


def _width(text: str) -> float:
    """Return the inches of a text's longest line in small print."""
    font = _font()
    font.set_size(SMALL, 72)
    widths = []
    for line in text.split("\n"):
        font.set_text(line)
        widths.append(font.get_width_height()[0] / 64 / 72)
    return max(widths)


def _font() -> Any:
    return get_font(findfont("DejaVu Sans"))
