"""The heatmap of updates: how much each layer moved, and when."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxgpt.training.report.figure import (
    NARROW,
    WIDE,
    Axes,
    Box,
    Drawing,
    Figure,
    Label,
    Path,
    draw_both,
    draw_steps,
    layer_name,
    short_number,
    text_width,
)
from jaxgpt.training.report.plots.layers import MOST_ROWS, draw_phases, hatch, layer_axes, name_layers
from jaxgpt.training.report.timeline import columns
from jaxgpt.training.run.run_json import PhaseInfo

LEVELS = 10
"""Colours of a heatmap, `q0` to `q9`."""
LOW, HIGH = 10, 95
"""Percentiles of the updates at which the colours begin and end, so that one layer does not take them all."""
MOST_COLUMNS = {WIDE: 160, NARROW: 80}
"""Most columns of a heatmap, by the width of the drawing."""
FROZEN, MISSING = -1, -2
"""Levels of cells that have no colour."""


def update_heatmap(
    steps: Sequence[int], updates: Sequence[Mapping[str, float]], modules: Sequence[str], phases: Sequence[PhaseInfo]
) -> Figure:
    """Draw each module's update relative to its weights; the hatched ground shows where a module was frozen.

    Args:
        steps: logged steps, ascending, from 1 on; at least one.
        updates: `‖Δw‖ / ‖w‖` of every module in each of them.
        modules: names in the order of the network; the first is at the bottom.
    """
    matrix = update_matrix(updates, modules)
    edges, shown = columns(steps, [phase.start for phase in phases])
    drawn = np.c_[matrix, np.full(len(modules), np.nan)][:, shown]
    frozen = (drawn == 0) & ~_is_training(phases, modules, edges[1:])
    low, high = color_range(drawn)
    levels = level_of(drawn, low, high)
    levels[frozen], levels[~np.isfinite(drawn)] = FROZEN, MISSING
    names, levels = grouped([layer_name(module) for module in modules], levels)

    def draw(width: int) -> Drawing:
        axes = layer_axes(width, names, (0, int(edges[-1])), phases)
        if (levels == FROZEN).any():
            axes.add(Box(axes.left, axes.top, axes.width, axes.height, "frozen"), Path(hatch(axes), "hatch"))
        name_layers(axes, names)
        draw_cells(axes, edges, levels, MOST_COLUMNS[width])
        draw_phases(axes, phases)
        draw_steps(axes)
        y = axes.bottom + 62
        ramp = color_key(axes, y, low, high)
        if (levels == FROZEN).any():
            x, y = (ramp, y) if width == WIDE else (axes.left, y + 26)
            axes.add(Box(x, y - 7, 22, 13, "frozen"), Path(hatch(Axes(x, y - 7, 22, 13, (0, 1), (0, 1))), "hatch"))
            axes.add(Label(x + 30, y + 4, "frozen: exactly 0"))
        return Drawing(width, y + 16, tuple(axes.marks))

    wide, narrow = draw_both(draw)
    return Figure(
        "updates", _update_title(matrix, modules), "Heatmap of the weight updates by layer and training step.",
        "How much each layer's weights changed in a step: the norm of the update over the norm of the weights. A "
        "column reaches from one logged step to the next, and has the colour of the later one. The colours "
        f"span the {LOW}th to the {HIGH}th percentile; a trainable layer that didn't change, as at a learning rate of "
        "0, has the lowest colour.", wide, narrow,
    )  # fmt: skip


def color_range(values: Float[np.ndarray, "M S"]) -> tuple[float, float]:
    """Return the least and the largest number that colours tell apart, by percentiles of those that moved."""
    moved = values[np.isfinite(values) & (values > 0)]
    if not moved.size:
        return 1e-6, 1e-3
    low, high = np.percentile(np.log10(moved), (LOW, HIGH))
    if high - low < 0.3:  # a factor of 2 at least: less is no difference
        low, high = (low + high) / 2 - 0.15, (low + high) / 2 + 0.15
    return 10.0**low, 10.0**high


def level_of(values: Float[np.ndarray, "M S"], low: float, high: float) -> Int[np.ndarray, "M S"]:
    """Return the colour of each number on a logarithmic scale; what is 0 or less, or NaN, has the lowest."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.log10(values) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return np.clip(np.nan_to_num(share * LEVELS, nan=0, posinf=LEVELS, neginf=0), 0, LEVELS - 1).astype(int)


def grouped(names: list[str], levels: Int[np.ndarray, "M S"]) -> tuple[list[str], Int[np.ndarray, "N S"]]:
    """Put neighbouring layers together where there are too many for a picture; the one that moved most is shown."""
    size = -(-len(names) // MOST_ROWS)
    if size <= 1:
        return names, levels
    starts = range(0, len(names), size)
    together = np.stack([levels[i : i + size].max(axis=0) for i in starts])
    return [names[i] for i in starts], together


def draw_cells(axes: Axes, edges: Int[np.ndarray, "S+1"], levels: Int[np.ndarray, "M S"], most: int) -> None:
    """Draw a heatmap as one path for each colour, in which a row of like cells is one line."""
    every = -(-levels.shape[1] // most)
    starts = range(0, levels.shape[1], every)
    if every > 1:
        levels = np.stack([levels[:, i : i + every].max(axis=1) for i in starts], axis=1)
        edges = np.r_[edges[:-1:every], edges[-1]]
    height = axes.height / len(levels)
    paths: dict[int, list[str]] = {}
    for row, line in enumerate(levels):
        y = short_number(axes.bottom - (row + 0.5) * height)
        bounds = [0, *(np.flatnonzero(np.diff(line)) + 1), len(line)]
        for begin, end in itertools.pairwise(bounds):
            if (level := int(line[begin])) != FROZEN:
                place = f"M{short_number(axes.x(edges[begin]))} {y}H{short_number(axes.x(edges[end]))}"
                paths.setdefault(level, []).append(place)
    thick = round(height + 0.1, 2)  # no ground between the rows
    for level, parts in sorted(paths.items()):
        axes.add(Path("".join(parts), "cell missing" if level == MISSING else f"cell q{level}", width=thick))


def color_key(axes: Axes, y: float, low: float, high: float) -> float:
    """Draw the colours and what they stand for; return the x behind them."""
    first, last = f"≤ {low:.0e}".replace("e-0", "e-"), f"≥ {high:.0e}".replace("e-0", "e-")
    x = axes.left
    axes.add(Label(x, y + 4, first))
    x += text_width(first) + 12
    for level in range(LEVELS):
        axes.add(Path(f"M{short_number(x + 12 * level)} {short_number(y - 1)}h12", f"cell q{level}", width=12))
    x += 12 * LEVELS + 8
    axes.add(Label(x, y + 4, last))
    return x + text_width(last) + 26


def _update_title(matrix: Float[np.ndarray, "M S"], modules: Sequence[str]) -> str:
    """Return which layer changed most, and how many never did."""
    moved = [row[np.isfinite(row) & (row > 0)] for row in matrix]
    typical = [float(np.median(row)) if row.size else 0.0 for row in moved]
    still = sum(not row.size for row in moved)
    if still == len(modules):
        return "No layer changed"
    most = layer_name(modules[int(np.argmax(typical))])
    title = f"{most.replace('block', 'Block')} changed most"
    if still:
        return f"{title}; {still} of {len(modules)} layers never changed"
    least = layer_name(modules[int(np.argmin(typical))])
    return f"{title}, {least} least" if len(modules) > 1 else title


def update_matrix(updates: Sequence[Mapping[str, float]], modules: Sequence[str]) -> Float[np.ndarray, "M S"]:
    """Arrange the updates as a matrix of modules and logged steps, with NaN for a missing one."""
    rows = [[update.get(name, math.nan) for update in updates] for name in modules]
    return np.asarray(rows, np.float64).reshape(len(modules), len(updates))


def _is_training(
    phases: Sequence[PhaseInfo], modules: Sequence[str], steps: Int[np.ndarray, " S"]
) -> Bool[np.ndarray, "M S"]:
    """Tell whether some of a module trains in a step, by the phase of the step; none does where there is no phase."""
    trains = np.asarray([[False] * len(modules), *([bool(p.trains.get(name)) for name in modules] for p in phases)])
    n_begun = np.searchsorted([phase.start for phase in phases], steps)
    return trains[n_begun].T
