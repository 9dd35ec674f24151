"""The map of what trains, by layer and phase."""

from collections.abc import Sequence

from jaxgpt.training.report.figure import (
    Box,
    Drawing,
    Figure,
    Path,
    draw_both,
    draw_steps,
    layer_name,
    legend,
    short,
    short_number,
)
from jaxgpt.training.report.outcome import what_trains
from jaxgpt.training.report.plots.layers import MOST_ROWS, draw_phases, hatch, layer_axes, name_layers
from jaxgpt.training.run.run_json import PhaseInfo

STATES = {"area trained": "trains", "area partly": "a part trains", "frozen": "frozen"}
"""The meaning of the areas of a map, by their styles."""


def freeze_map(phases: Sequence[PhaseInfo], steps: int) -> Figure:
    """Draw what trains and what is frozen, by layer and phase, over `steps` steps."""
    modules = list(phases[0].trains)
    size = -(-len(modules) // MOST_ROWS)
    shown = modules[::size] if size else []
    ends = [*(later.start for later in phases[1:]), steps]

    def draw(width: int) -> Drawing:
        axes = layer_axes(width, [layer_name(name) for name in shown], (0, max(steps, 1)), phases)
        axes.add(Box(axes.left, axes.top, axes.width, axes.height, "frozen"), Path(hatch(axes), "hatch"))
        name_layers(axes, [layer_name(name) for name in shown])
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
        draw_phases(axes, phases)
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
