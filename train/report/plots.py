"""The pictures of a run: losses, updates by layer, what trained, and other numbers over the steps."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxgpt.training.report.figure import (
    NARROW,
    SIZE,
    SMALL,
    WIDE,
    Axes,
    Box,
    Dot,
    Drawing,
    Figure,
    Label,
    Path,
    band_room,
    draw_bands,
    draw_steps,
    fitted,
    frame,
    layer_name,
    legend,
    short,
    short_number,
    text_width,
    y_range,
)
from jaxgpt.training.report.outcome import Outcome, what_trains
from jaxgpt.training.report.timeline import columns
from jaxgpt.training.run.run_json import PhaseInfo

LEVELS = 10
"""Colours of a heatmap, `q0` to `q9`."""
LOW, HIGH = 10, 95
"""Percentiles of the updates at which the colours begin and end, so that one layer does not take them all."""
MOST_COLUMNS = {WIDE: 160, NARROW: 80}
"""Most columns of a heatmap, by the width of the drawing."""
MOST_ROWS = 128
"""Most rows of a heatmap; more layers are put together."""
FEW = 30
"""Fewer lines of metrics.jsonl than these are joined by a line, without smoothing."""
POINTS = 400
"""Most points of a smooth line."""


def draw_both(draw: Callable[[int], Drawing]) -> tuple[Drawing, Drawing]:
    """Draw a picture wide and narrow."""
    return draw(WIDE), draw(NARROW)


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
        axes = Axes(46, top + 24, width - 62, 300 if width == WIDE else 260, _steps(steps), ys)
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
        upper = Axes(46, top + 24, width - 62, 200, _steps(steps), (0.0, 1.0))
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
        axes = _layer_axes(width, names, (0, int(edges[-1])), phases)
        if (levels == FROZEN).any():
            axes.add(Box(axes.left, axes.top, axes.width, axes.height, "frozen"), Path(hatch(axes), "hatch"))
        _layer_names(axes, names)
        draw_cells(axes, edges, levels, MOST_COLUMNS[width])
        _phase_lines(axes, phases)
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


FROZEN, MISSING = -1, -2
"""Levels of cells that have no colour."""


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


STATES = {"area trained": "trains", "area partly": "a part trains", "frozen": "frozen"}
"""The meaning of the areas of a map, by their styles."""


def freeze_map(phases: Sequence[PhaseInfo], steps: int) -> Figure:
    """Draw what trains and what is frozen, by layer and phase, over `steps` steps."""
    modules = list(phases[0].trains)
    size = -(-len(modules) // MOST_ROWS)
    shown = modules[::size] if size else []
    ends = [*(later.start for later in phases[1:]), steps]

    def draw(width: int) -> Drawing:
        axes = _layer_axes(width, [layer_name(name) for name in shown], (0, max(steps, 1)), phases)
        axes.add(Box(axes.left, axes.top, axes.width, axes.height, "frozen"), Path(hatch(axes), "hatch"))
        _layer_names(axes, [layer_name(name) for name in shown])
        height = axes.height / max(len(shown), 1)
        states = {"frozen"}
        for state in ("area trained", "area partly"):
            places: list[str] = []
            for row, name in enumerate(shown):
                y = short_number(axes.bottom - (row + 0.5) * height)
                for phase, end in zip(phases, ends, strict=True):
                    if end > phase.start and state_of(phase.trains.get(name, 0.0)) == state[5:]:
                        left, right = axes.x(min(phase.start, steps)), axes.x(min(end, steps))
                        places.append(f"M{short_number(left)} {y}H{short_number(right)}")
            if places:
                states.add(state)
                axes.add(Path("".join(places), f"cell {state[5:]}", width=round(max(height - 1.5, 0.5), 2)))
        _phase_lines(axes, phases)
        draw_steps(axes)
        marks, bottom = legend(
            [entry for entry in STATES.items() if entry[0] in states], axes.left, axes.width, axes.bottom + 60
        )
        return Drawing(width, bottom + 2, (*axes.marks, *marks))

    wide, narrow = draw_both(draw)
    if len(phases) == 1:
        title = f"{short(phases[0].trainable)} parameters train: {what_trains(phases[0])}"
    else:
        counts = [short(phase.trainable) for phase in phases]
        listed = counts if len(counts) <= 6 else [*counts[:5], "…", counts[-1]]
        title = f"{len(phases)} phases: {', then '.join(listed)} parameters train"
    return Figure(
        "freeze", title, "Map of what trains, by layer and training step.",
        "What the freezing strategy lets train, over all planned steps.", wide, narrow,
    )  # fmt: skip


def state_of(share: float) -> str:
    """Return the state of a layer of which a fraction of the parameters trains."""
    return "trained" if share == 1 else "partly" if share else "frozen"


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
        axes = Axes(56, 26, width - 72, 150, _steps(steps), ys)
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


def _layer_axes(width: int, names: Sequence[str], xs: tuple[float, float], phases: Sequence[PhaseInfo]) -> Axes:
    """Return axes with a row for each layer, beside which their names have room."""
    height = 20.0 if len(names) <= 16 else 14.0 if len(names) <= 32 else max(4.0, 560 / len(names))
    left = min(max((text_width(name) for name in names), default=0.0) + 10, width * 0.34)
    axes = Axes(left, 4, width - left - 16, max(height * len(names), 20.0), (xs[0], max(xs[1], 1)), (0, 1))
    axes.top += 1.2 * band_room(axes, phases)
    return axes


def _layer_names(axes: Axes, names: Sequence[str]) -> None:
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


def _phase_lines(axes: Axes, phases: Sequence[PhaseInfo]) -> None:
    """Draw a line where each phase begins, and its name above."""
    draw_bands(axes, phases, is_filled=False)
    for phase in [phase for phase in phases if 0 < phase.start < axes.xs[1]][:200]:
        x = short_number(axes.x(phase.start))
        axes.add(Path(f"M{x} {short_number(axes.top - 18)}V{short_number(axes.bottom)}", "boundary"))


def _steps(steps: Int[np.ndarray, " S"]) -> tuple[float, float]:
    return 0.0, float(max(int(steps.max(initial=0)), 1))


def _is_training(
    phases: Sequence[PhaseInfo], modules: Sequence[str], steps: Int[np.ndarray, " S"]
) -> Bool[np.ndarray, "M S"]:
    """Tell whether some of a module trains in a step, by the phase of the step; none does where there is no phase."""
    trains = np.asarray([[False] * len(modules), *([bool(p.trains.get(name)) for name in modules] for p in phases)])
    n_begun = np.searchsorted([phase.start for phase in phases], steps)
    return trains[n_begun].T


def _is_broken(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)
