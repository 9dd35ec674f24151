"""Pictures of a run: updates by layer, what trained, losses, and the rows of a grown vocabulary."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from jaxgpt.convert.disk import temporary_sibling
from jaxgpt.training.report.timeline import (
    FAINT,
    INK,
    SMALL,
    columns,
    layer_axis,
    layers_height,
    printable,
    timeline,
)
from jaxgpt.training.run.run_json import PhaseInfo

BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"  # Okabe and Ito 2008: for the colour-blind too
PALE = "#9CC9E3"  # of BLUE
FROZEN: dict[str, Any] = {"facecolor": "#f2f2f2", "edgecolor": "#b5b5b5", "hatch": "////", "linewidth": 0.0}
STATES: dict[str, dict[str, Any]] = {
    "trained": {"facecolor": BLUE, "edgecolor": BLUE, "linewidth": 0.0},
    "partly trained": {"facecolor": "#cfe6f5", "edgecolor": BLUE, "hatch": "...", "linewidth": 0.0},
    "frozen": FROZEN,
}
DECADES = 5
"""Orders of magnitude below the largest update that the colours resolve."""
FEW = 30
"""Fewer lines of metrics.jsonl than these are joined by a line, without smoothing."""
POINTS = 1000
"""Most points of a smooth line; a picture has about as many columns."""
ROWS = 16
"""Most old rows, and most new rows, that a picture of a matrix shows."""


def update_heatmap(
    steps: Sequence[int], updates: Sequence[Mapping[str, float]], modules: Sequence[str], phases: Sequence[PhaseInfo]
) -> Figure:
    """Draw each module's update relative to its weights; a frozen module that didn't move is hatched.

    Args:
        steps: logged steps, ascending, from 1 on; at least one.
        updates: `‖Δw‖ / ‖w‖` of every module in each of them.
        modules: names in the order of the network; the first is at the bottom.
    """
    edges, shown = columns(steps, [phase.start for phase in phases])
    drawn = np.c_[update_matrix(updates, modules), np.full(len(modules), np.nan)][:, shown]
    idle = [[not _is_training(phases, name, end) for end in edges[1:]] for name in modules]
    frozen = (drawn == 0) & np.asarray(idle).reshape(drawn.shape)
    figure, ax = timeline("Weight updates", layers_height(modules), phases, int(edges[-1]))
    moved = drawn[np.isfinite(drawn) & (drawn > 0)]
    high = moved.max(initial=1e-12)
    low = 10 ** math.floor(math.log10(max(moved.min(initial=high), high / 10**DECADES)))
    mesh = ax.pcolormesh(
        edges,
        np.arange(len(modules) + 1) - 0.5,
        np.ma.masked_array(drawn, frozen | ~np.isfinite(drawn)),
        norm=LogNorm(low, max(high, 10 * low), clip=True),  # a trainable module that did not move has the lowest colour
        cmap="viridis",
    )
    for row in range(len(modules)):
        stretches = np.flatnonzero(np.diff(np.r_[False, frozen[row], False])).reshape(-1, 2)
        ax.barh(row, np.diff(edges[stretches])[:, 0], left=edges[stretches[:, 0]], height=1.0, **FROZEN)
    layer_axis(ax, modules)
    _legend_below(ax, {"frozen: the update is exactly 0": FROZEN})
    bar = figure.colorbar(mesh, cax=ax.inset_axes((1.02, 0, 0.02, 1)), label="‖Δw‖ / ‖w‖ per step")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def update_matrix(updates: Sequence[Mapping[str, float]], modules: Sequence[str]) -> Float[np.ndarray, "M S"]:
    """Arrange the updates as a matrix of modules and logged steps, with NaN for a missing one."""
    rows = [[update.get(name, math.nan) for update in updates] for name in modules]
    return np.asarray(rows, np.float64).reshape(len(modules), len(updates))


def freeze_map(phases: Sequence[PhaseInfo], steps: int) -> Figure:
    """Draw what trains and what is frozen, by layer and phase, over `steps` steps."""
    modules = list(phases[0].trains)
    figure, ax = timeline("What trains, and how many parameters", layers_height(modules), phases, steps, counts=True)
    for phase, end in zip(phases, [*(later.start for later in phases[1:]), steps], strict=True):
        for row, name in enumerate(modules):
            state = _state(phase.trains.get(name, 0.0))
            ax.barh(row, max(end - phase.start, 0), left=phase.start, height=0.9, **STATES[state])
    layer_axis(ax, modules)
    _legend_below(ax, STATES)
    return figure


def loss_curves(metrics: Sequence[Mapping[str, Any]], phases: Sequence[PhaseInfo]) -> Figure:
    """Draw the training loss, the held-out loss and the learning rate, from the lines of metrics.jsonl.

    Every logged loss is a dot. A line joins few dots; many of them are smoothed instead.
    """
    steps = np.asarray([line["step"] for line in metrics])
    losses, held_out, rates = (_numbers(metrics, key) for key in ("loss", "eval_loss", "lr"))
    panel = 0.9 if np.isfinite(rates).any() else 0.0
    height, gap = 3.6, 0.25
    figure, ax = timeline("Loss", height, phases, int(steps.max()), below=panel and panel + gap, color=FAINT)
    dot = "." if len(steps) < FEW else None
    finite = np.isfinite(held_out)
    if len(steps) < FEW:
        ax.plot(steps, losses, color=BLUE, lw=1, marker=".", label="training")
    else:
        size = 6 if len(steps) < 1000 else 3
        ax.plot(steps, losses, ".", color=PALE, ms=size, mew=0, label="training", zorder=1)
        ax.plot(*smoothed(steps, losses), color=BLUE, lw=1.2, label="smoothed")
    ax.plot(steps[finite], held_out[finite], color=ORANGE, lw=1, marker="o", ms=5, clip_on=False, label="held out")
    averaged = _numbers(metrics, "ema_eval_loss")
    if (finite := np.isfinite(averaged)).any():
        label = "average, held out"
        ax.plot(steps[finite], averaged[finite], color=GREEN, lw=1, marker="s", ms=4, clip_on=False, label=label)
    broken = [line["step"] for line in metrics if _is_broken(line.get("loss")) or _is_broken(line.get("eval_loss"))]
    if broken:
        across = ax.get_xaxis_transform()
        ax.plot(broken, [0.02] * len(broken), "x", color=INK, transform=across, clip_on=False, label="not finite")
    has_pairs = np.isfinite(_numbers(metrics, "reward_margin")).any()
    ax.set_ylabel("loss (nats per preference)" if has_pairs else "loss (nats per token)")
    ax.grid(axis="y", color="#e6e6e6")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    if panel:
        under = ax.inset_axes((0, -(gap + panel) / height, 1, panel / height), sharex=ax)
        under.plot(steps, rates, color=INK, lw=1, marker=dot)
        under.set(xlabel="training step", ylabel="learning rate", ylim=(0, None))
        under.yaxis.set_major_locator(MaxNLocator(3))
        under.yaxis.set_major_formatter("{x:g}")
        under.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    return figure


def reward_curves(metrics: Sequence[Mapping[str, Any]], phases: Sequence[PhaseInfo]) -> Figure:
    """Draw how often the preferred answer has the higher reward, and below it by how much, from metrics.jsonl."""
    steps = np.asarray([line["step"] for line in metrics])
    margins, right, held_out = (
        _numbers(metrics, key) for key in ("reward_margin", "reward_accuracy", "eval_reward_accuracy")
    )
    height, gap, panel = 2.4, 0.25, 1.4
    figure, ax = timeline("Preferences", height, phases, int(steps.max()), below=panel + gap, color=FAINT)
    finite, few = np.isfinite(held_out), len(steps) < FEW
    ax.axhline(0.5, color=FAINT, lw=0.8, ls=":")
    under = ax.inset_axes((0, -(gap + panel) / height, 1, panel / height), sharex=ax)
    for axes, values in ((ax, right), (under, margins)):
        axes.plot(
            steps, values, "." if not few else ".-", color=BLUE if few else PALE, ms=6, mew=0, lw=1, label="training"
        )
        if not few:
            axes.plot(*smoothed(steps, values), color=BLUE, lw=1.2, label="smoothed")
        axes.grid(axis="y", color="#e6e6e6")
    ax.plot(steps[finite], held_out[finite], color=ORANGE, lw=1, marker="o", ms=5, clip_on=False, label="held out")
    ax.set(ylabel="preferred answer ahead", ylim=(0, 1), xlabel="")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.tick_params(labelbottom=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    under.set(xlabel="training step", ylabel="reward margin")
    under.spines[["top", "right"]].set_visible(False)
    return figure


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


def embedding_rows(before: Float[Any, "V D"], after: Float[Any, "W D"], tokens: Sequence[str]) -> Figure:
    """Draw the last rows of an embedding before and after its vocabulary grew, the new ones framed and named.

    Args:
        tokens: texts of the new rows, in order; further rows are padding.
    """
    old, new = len(before), len(after) - len(before)
    first, last = max(old - ROWS, 0), old + min(new, ROWS)
    pieces = [np.asarray(matrix[first:last], np.float32) for matrix in (before, after)]
    limit = float(np.nanpercentile(np.abs(pieces[1]), 99)) or 1.0
    height = (last - first) * 0.19
    total = 0.75 + height + 1.15
    figure = Figure(figsize=(11.5, total))
    figure.text(0.75 / 11.5, 1 - 0.12 / total, "The token embedding, before training", va="top", weight="bold")
    for i, (piece, when) in enumerate(zip(pieces, ("before", "after"), strict=True)):
        ax = figure.add_axes(((0.75 + 4.6 * i) / 11.5, 1.15 / total, 4.2 / 11.5, height / total))
        rows, width = (old, old + new)[i], piece.shape[1]
        place = (0, width, first + len(piece), first)
        image = ax.imshow(
            piece, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", extent=place, interpolation="nearest"
        )
        ax.set(ylim=(last, first), xlim=(0, width), xlabel="dimension" if width > 1 else "")
        grown = f", {new:,} new" if when == "after" else ""
        ax.set_title(f"{when}: {rows:,} × {width:,}{grown}", size=10, loc="left")
        shown = range(first, first + len(piece))
        labels = [f"{row}" if row < old else f"{row}  {_token(tokens, row - old)}" for row in shown]
        ax.set_yticks(np.asarray(shown) + 0.5, labels, size=SMALL, color=INK, parse_math=False)
        ax.tick_params(axis="y", length=0, labelleft=not i, labelright=bool(i))
        ax.spines[:].set_visible(False)
        for label in ax.get_yticklabels()[old - first :]:
            label.set_color(GREEN)
    if new:
        ax.add_patch(Rectangle((0, old), width, last - old, fill=False, edgecolor=GREEN, linewidth=2.5, clip_on=False))
    bar = figure.add_axes((5.35 / 11.5, 0.45 / total, 4.2 / 11.5, 0.12 / total))
    figure.colorbar(image, cax=bar, orientation="horizontal", extend="both", label="weight")
    figure.text(0.75 / 11.5, 0.62 / total, _caption(before, after, first, last), va="top", size=SMALL, color=INK)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with temporary_sibling(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
        temporary.replace(path)


def _caption(before: Any, after: Any, first: int, last: int) -> str:
    """Describe what the picture of the matrices doesn't show."""
    changed = int((np.asarray(before) != np.asarray(after[: len(before)])).any(axis=1).sum())
    return "\n".join(
        [
            *([f"{first:,} rows above these are not shown"] if first else []),
            *([f"{len(after) - last:,} more new rows below are not shown"] if last < len(after) else []),
            f"old rows that changed: {changed:,} of {len(before):,}",
        ]
    )


def _token(tokens: Sequence[str], place: int) -> str:
    return f'"{printable(tokens[place])}"' if place < len(tokens) else "(padding)"


def _is_training(phases: Sequence[PhaseInfo], module: str, step: int) -> bool:
    """Tell whether some of a module trains in a step, by the phase of the step."""
    begun = [phase for phase in phases if phase.start < step]
    return bool(begun and begun[-1].trains.get(module))


def _state(share: float) -> str:
    return "trained" if share == 1 else "partly trained" if share else "frozen"


def _numbers(metrics: Sequence[Mapping[str, Any]], key: str) -> Float[np.ndarray, " S"]:
    """Return the finite values of a field, with NaN in place of all others."""
    values = np.asarray([math.nan if line.get(key) is None else line[key] for line in metrics], np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _is_broken(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


def _legend_below(ax: Any, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Explain the boxes under the right end of the axes."""
    handles = [Patch(label=label, **style) for label, style in styles.items()]
    below = -0.22 / (ax.figure.get_figheight() * ax.get_position().height)
    ax.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, below), frameon=False, ncols=3, fontsize=SMALL)
