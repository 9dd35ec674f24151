"""Pictures of a run: they show the data that they are given, and every word can be read."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from jaxgpt.training.report import plots
from jaxgpt.training.report.timeline import columns, printable, short
from jaxgpt.training.run.run_json import PhaseInfo

NAMES = ["head", "last1+ln_f", "regex:blocks.*.ln_.*$", "$x^$", "full"]
CASES = [
    (layers, starts)
    for layers in (3, 12, 48)
    for starts in ([0], [0, 50, 100], [0, 1, 2], [*range(0, 150, 15)], [*range(10)], [0, 140, 149], [*range(0, 150, 3)])
]


def modules_of(layers: int) -> list[str]:
    return ["tok_emb", "pos_emb", *(f"blocks.{i}" for i in range(layers)), "ln_f", "lm_head"]


def phases_of(modules: list[str], starts: list[int]) -> list[PhaseInfo]:
    """Each phase trains more from the top, and half of the module under that."""
    phases = []
    for i, start in enumerate(starts):
        frozen = len(modules) * (len(starts) - i) // (len(starts) + 1)
        trains = {name: 1.0 if row > frozen else 0.5 * (row == frozen) for row, name in enumerate(modules)}
        name = NAMES[i % len(NAMES)]
        phases.append(PhaseInfo(start, name, 10 ** (i % 12) + 234, trains))
    return phases


def updates_of(steps: list[int], modules: list[str], phases: list[PhaseInfo]) -> list[dict]:
    """Updates of what trains; in step 1 all are 0, as in a warm-up from 0."""
    rng = np.random.default_rng(0)
    updates = []
    for step in steps:
        trains = [phase for phase in phases if phase.start < step][-1].trains
        moves = rng.uniform(1e-5, 1e-3, len(modules)) * (step > 1)
        updates.append({name: float(move) if trains[name] else 0.0 for name, move in zip(modules, moves, strict=True)})
    return updates


def metrics_of(steps: list[int]) -> list[dict]:
    fresh = {"step": 0, "loss": None, "eval_loss": 4.2, "lr": None}
    return [fresh, *({"step": s, "loss": 4.0 - s / 90, "eval_loss": None if s % 5 else 4.1, "lr": 1e-3} for s in steps)]


def assert_legible(figure: Figure, monkeypatch) -> list[str]:
    """Every text that is drawn lies inside the picture and on no other; returns them."""
    drawn = []
    with monkeypatch.context() as patch:
        draw = Text.draw
        patch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer))[1])
        FigureCanvasAgg(figure).draw()
    drawn = [text for text in drawn if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn]
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (name, a), (other, b) in combinations(boxes, 2):
        assert min(a.x1, b.x1) <= max(a.x0, b.x0) or min(a.y1, b.y1) <= max(a.y0, b.y0), (name, other)
    return [name for name, _ in boxes]


def mesh_of(figure: Figure) -> QuadMesh:
    (mesh,) = (artist for artist in figure.axes[0].collections if isinstance(artist, QuadMesh))
    return mesh


# the data


def test_the_heatmap_shows_the_updates_and_hatches_exactly_what_is_frozen():
    modules, steps = modules_of(3), [1, 2, 3, 5, 8, 13, 20, 30]
    phases = phases_of(modules, [0, 3, 13])
    updates = updates_of(steps, modules, phases)
    figure = plots.update_heatmap(steps, updates, modules, phases)
    mesh, matrix = mesh_of(figure), plots.update_matrix(updates, modules)
    np.testing.assert_array_equal(mesh.get_array().data, matrix)
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [0, *steps])
    assert mesh.get_array().mask.any()
    assert (matrix[mesh.get_array().mask] == 0).all()
    hatched = np.zeros(matrix.shape, bool)
    for box in figure.axes[0].patches:
        assert box.get_hatch()
        inside = (np.asarray(steps) > box.get_x()) & (np.asarray(steps) <= box.get_x() + box.get_width())
        hatched[round(box.get_y() + 0.5)] |= inside
    begun = np.searchsorted([phase.start for phase in phases], steps) - 1
    frozen = [[not phases[i].trains[name] for i in begun] for name in modules]
    np.testing.assert_array_equal(hatched, frozen)
    np.testing.assert_array_equal(mesh.get_array().mask, frozen)
    colors = mesh.to_rgba(mesh.get_array())
    lowest = matrix[:, 0] == 0  # of the first step, with its learning rate of 0
    trained_but_unmoved = lowest & ~np.asarray(frozen)[:, 0]
    assert trained_but_unmoved.any()
    np.testing.assert_allclose(colors[trained_but_unmoved, 0], [mesh.cmap(0.0)] * trained_but_unmoved.sum())


def test_the_first_module_is_at_the_bottom():
    modules = modules_of(3)
    figure = plots.update_heatmap([1], [dict.fromkeys(modules, 1e-3)], modules, phases_of(modules, [0]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "tok_emb", "pos_emb", "0", "1", "2", "ln_f", "lm_head",
    ]  # fmt: skip
    assert figure.axes[0].get_ylim() == (-0.5, 6.5)


@pytest.mark.parametrize(
    ("steps", "starts", "edges", "shown"),
    [
        ([1, 2, 3], [0], [0, 1, 2, 3], [0, 1, 2]),
        ([1, 2, 5, 20], [0], [0, 1, 2, 5, 20], [0, 1, 2, 3]),
        ([10, 20], [0, 10], [0, 10, 20], [0, 1]),
        ([10, 20], [0, 15], [0, 10, 15, 20], [0, 0, 1]),  # no column reaches into another phase
        ([10, 20], [0, 12, 15], [0, 10, 12, 15, 20], [0, 0, -1, 1]),  # a phase of which nothing was logged
        ([10], [0, 50], [0, 10], [0]),  # killed before the second phase
        ([7], [0], [0, 7], [0]),
    ],
)
def test_columns(steps, starts, edges, shown):
    found = columns(steps, starts)
    assert found[0].tolist() == edges
    assert found[1].tolist() == shown


@pytest.mark.parametrize("value", [0.0, None, float("nan"), float("inf"), 1e-300, 2.0])
def test_a_heatmap_of_odd_values(value, tmp_path):
    modules = modules_of(3)
    updates = [{"tok_emb": value}, dict.fromkeys(modules, value)]
    figure = plots.update_heatmap([1, 2], updates, modules, [])
    plots.save(figure, tmp_path / "odd.png")
    assert bool(figure.axes[0].patches) == (value == 0.0)


def test_the_freeze_map_shows_each_phase():
    modules = modules_of(3)
    phases = phases_of(modules, [0, 20, 50])
    boxes = plots.freeze_map(phases, 80).axes[0].patches
    looks = {1.0: plots.STATES["trained"], 0.5: plots.STATES["partly trained"], 0.0: plots.STATES["frozen"]}
    assert len(boxes) == 3 * len(modules)
    for box in boxes:
        start, name = round(box.get_x()), modules[round(box.get_y() + 0.45)]
        phase = next(phase for phase in phases if phase.start == start)
        assert box.get_width() == {0: 20, 20: 30, 50: 30}[start]
        look = looks[phase.trains[name]]
        assert box.get_facecolor() == to_rgba(look["facecolor"])
        assert box.get_hatch() == look.get("hatch")


def test_the_losses_are_the_logged_ones():
    nan = float("nan")
    metrics = [*metrics_of([10, 20, 30]), {"step": 40, "loss": nan, "eval_loss": float("inf"), "lr": 0.5e-3}]
    ax = plots.loss_curves(metrics, []).axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["training"].get_xdata(), [0, 10, 20, 30, 40])
    np.testing.assert_allclose(lines["training"].get_ydata(), [nan, 4 - 1 / 9, 4 - 2 / 9, 4 - 3 / 9, nan])
    np.testing.assert_array_equal(lines["held out"].get_xdata(), [0, 10, 20, 30])
    np.testing.assert_array_equal(lines["not finite"].get_xdata(), [40])
    assert ax.get_ylabel() == "loss (nats per token)"
    (under,) = ax.child_axes
    np.testing.assert_array_equal(under.lines[0].get_ydata(), [nan, 1e-3, 1e-3, 1e-3, 0.5e-3])


def test_of_many_losses_each_is_a_dot_and_the_line_is_smooth(monkeypatch):
    rng, n = np.random.default_rng(0), 20_000
    losses = 2 + 3 * np.exp(-np.arange(1, n + 1) / 500) + 0.1 * rng.normal(size=n)
    losses[9000] = 1e30  # a spike is shown, and does not bend the line
    losses[[12_000, n - 1]] = np.nan
    metrics = [{"step": i, "loss": float(loss)} for i, loss in enumerate(losses, 1)]
    figure = plots.loss_curves(metrics, [])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_array_equal(lines["training"].get_ydata(), losses)
    np.testing.assert_array_equal(lines["not finite"].get_xdata(), [12_001, n])
    steps, smooth = lines["smoothed"].get_data()
    assert len(steps) <= 1000
    assert (steps[0], steps[-1]) == (1, n)
    assert smooth[0] == losses[0]
    assert np.isnan(smooth[-1])
    np.testing.assert_allclose(smooth[:-1], (2 + 3 * np.exp(-steps / 500))[:-1], atol=0.1)
    assert_legible(figure, monkeypatch)


@pytest.mark.parametrize("n", [1, 29, 30, 31, 150])
def test_few_losses_are_joined_and_a_loss_that_is_nan_is_a_gap(n):
    losses = np.r_[np.nan, np.linspace(4, 2, n - 1)] if n > 1 else np.array([3.0])
    lines = {line.get_label(): line for line in plots.loss_curves(
        [{"step": i, "loss": float(loss)} for i, loss in enumerate(losses, 1)], []
    ).axes[0].lines}  # fmt: skip
    assert ("smoothed" in lines) == (n >= 30)
    assert (lines["training"].get_linestyle() == "-") == (n < 30)
    drawn = lines.get("smoothed", lines["training"])
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(1, n + 1))
    np.testing.assert_array_equal(np.isnan(drawn.get_ydata()), np.isnan(losses))


@pytest.mark.parametrize("line", [{"step": 0, "eval_loss": 4.2}, {"step": 7}, {"step": 3, "loss": float("nan")}])
def test_a_loss_picture_of_one_line(line, tmp_path):
    plots.save(plots.loss_curves([line], []), tmp_path / "loss.png")


def test_the_embedding_shows_the_last_old_and_the_new_rows():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(97, 36))
    after = np.concatenate([before, rng.normal(size=(3, 36))])
    figure = plots.embedding_rows(before, after, ["<|user|>", "$x^$"])
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array(), before[81:].astype(np.float32))
    np.testing.assert_array_equal(right.images[0].get_array(), after[81:].astype(np.float32))
    low, high = left.images[0].get_clim()
    assert (low, high) == right.images[0].get_clim()
    assert low == -high
    (frame,) = right.patches
    assert frame.get_bbox().bounds == (0, 97, 36, 3)
    assert [label.get_text() for label in right.get_yticklabels()[-4:]] == [
        "96", '97  "<|user|>"', '98  "$x^$"', "99  (padding)",
    ]  # fmt: skip
    assert left.get_title("left") == "before: 97 × 36"
    assert right.get_title("left") == "after: 100 × 36, 3 new"
    assert figure.texts[-1].get_text() == "81 rows above these are not shown\nold rows that changed: 0 of 97"


# the words


@pytest.mark.parametrize(("layers", "starts"), CASES)
def test_no_text_lies_on_another(layers, starts, monkeypatch):
    modules, steps = modules_of(layers), [*range(1, 150, 3), 150]
    phases = phases_of(modules, starts)
    names = ["head"] if len(starts) <= 10 else [str(len(starts))]  # too many to name: numbered
    for figure in (
        plots.update_heatmap(steps, updates_of(steps, modules, phases), modules, phases),
        plots.freeze_map(phases, 150),
        plots.loss_curves(metrics_of(steps), phases),
    ):
        texts = [line for text in assert_legible(figure, monkeypatch) for line in text.split("\n")]
        assert set(names) <= set(texts)


HOSTILE = [
    "$x^$", r"$\frac", "\n\t\x00", "日本語", "é—😀", "W" * 400, "<b>", "\u202eabc", " ", "\\", "{", "_^", "", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("width", [1, 36, 1600])
@pytest.mark.parametrize(("old", "new"), [(50257, 2), (97, 40), (5, 1), (40, 0)])
def test_any_token_can_be_read(old, new, width, monkeypatch):
    before = np.random.default_rng(0).normal(size=(old, width)).astype(np.float32)
    after = np.concatenate([before, np.zeros((new, width), np.float32)])
    texts = assert_legible(plots.embedding_rows(before, after, HOSTILE), monkeypatch)
    for row, token in list(enumerate(HOSTILE, old))[:new]:
        assert f'{row}  "{printable(token)}"' in texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<|user|>", "<|user|>"),
        ("$x$", "$x$"),
        ("\n\0é", r"\n\x00é"),
        ("日", r"\u65e5"),
        ("\u202e", r"\u202e"),
        ("", ""),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_long_names_are_cut():
    assert printable("i" * 1000).endswith("i…")
    assert 8 < len(printable("W" * 1000)) < len(printable("i" * 1000)) < 100


def test_short_counts():
    assert [short(n) for n in (0, 999, 1000, 524_288, 12_443_980, 124_439_808, 1_557_611_200)] == [
        "0", "999", "1k", "524k", "12.4M", "124M", "1.56G",
    ]  # fmt: skip


def test_a_picture_is_written_whole(tmp_path):
    path = tmp_path / "plots" / "loss.png"
    plots.save(plots.loss_curves(metrics_of([1]), []), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1500
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(AttributeError, match="savefig"):
        plots.save(None, path)
    assert list(path.parent.iterdir()) == [path]
