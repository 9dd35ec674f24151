"""Pictures of a run: they show the data that they are given, and every word can be read."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import numpy as np
import pytest

from jaxgpt.training.report.embedding import NewRows, embedding_rows
from jaxgpt.training.report.figure import (
    NARROW,
    WIDE,
    Box,
    Dot,
    Drawing,
    Figure,
    Path,
    fitted,
    layer_name,
    printable,
    short,
    text_width,
    tick_texts,
    ticks,
    y_range,
)
from jaxgpt.training.report.plots.curves import POINTS, line_chart, smoothed
from jaxgpt.training.report.plots.freezing import freeze_map
from jaxgpt.training.report.plots.loss import loss_curves
from jaxgpt.training.report.plots.updates import LEVELS, color_range, level_of, update_heatmap, update_matrix
from jaxgpt.training.report.templates import save_figure
from jaxgpt.training.report.timeline import columns
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


def both(figure: Figure) -> list[Drawing]:
    assert (figure.wide.width, figure.narrow.width) == (WIDE, NARROW)
    return [figure.wide, figure.narrow]


def assert_legible(figure: Figure) -> set[str]:
    """Every text lies inside both drawings and on no other; returns those of the wide one."""
    for drawing in both(figure):
        boxes = []
        for label in drawing.labels:
            size = 12 if re.search(r"\b(small|value)\b", label.style) else 13
            width = text_width(label.words, size)
            left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
            boxes.append((label.words, left, label.y - 0.8 * size, left + width, label.y + 0.2 * size))
            assert left >= -8, label
            assert left + width <= drawing.width + 16, label
            assert 0 <= label.y <= drawing.height, label
        for (name, *a), (other, *b) in combinations(boxes, 2):
            apart = min(a[2], b[2]) <= max(a[0], b[0]) + 1e-6 or min(a[3], b[3]) <= max(a[1], b[1]) + 1e-6
            assert apart, (name, other)
    return {label.words for label in figure.wide.labels}


def paths(drawing: Drawing, style: str) -> list[Path]:
    return [mark for mark in drawing.marks if isinstance(mark, Path) and mark.style == style]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


def cells(drawing: Drawing) -> dict[str, list[tuple[float, float, float]]]:
    """The stretches of a heatmap, left, y and right, by the classes of their colours."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for mark in drawing.marks:
        if isinstance(mark, Path) and mark.style.startswith("cell ") and "H" in mark.d:
            stretches = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", mark.d)
            found.setdefault(mark.style[5:], []).extend((float(x), float(y), float(r)) for x, y, r in stretches)
    return found


def level_matrix(drawing: Drawing, n_rows: int, edges: list[int]) -> np.ndarray:
    """The colour of each cell, read from the marks: -1 where the ground is seen."""
    stretches = [(*place, int(name[1:])) for name, places in cells(drawing).items() for place in places]
    axis = next(mark for mark in drawing.marks if isinstance(mark, Path) and mark.style == "axis")
    left, bottom, right = map(float, re.match(r"M([\d.]+) ([\d.]+)H([\d.]+)", axis.d).groups())
    top = min(y for _, y, _, _ in stretches)
    thick = next(m.width for m in drawing.marks if isinstance(m, Path) and m.style.startswith("cell ") and "H" in m.d)
    matrix = np.full((n_rows, len(edges) - 1), -1)
    for x0, y, x1, level in stretches:
        row = int((bottom - y) // (thick - 0.1))
        for column, (a, b) in enumerate(pairwise(edges)):
            middle = left + (a + b) / 2 / edges[-1] * (right - left)
            if x0 <= middle <= x1:
                matrix[row, column] = level
    assert top >= 0
    return matrix


# the data


def test_the_heatmap_shows_the_updates_and_leaves_the_ground_free_exactly_where_it_is_frozen():
    modules, steps = modules_of(3), [1, 2, 3, 5, 8, 13, 20, 30]
    phases = phases_of(modules, [0, 3, 13])
    updates = updates_of(steps, modules, phases)
    figure = update_heatmap(steps, updates, modules, phases)
    matrix = update_matrix(updates, modules)
    low, high = color_range(matrix)
    expected = level_of(matrix, low, high)
    begun = np.searchsorted([phase.start for phase in phases], steps) - 1
    frozen = np.asarray([[not phases[i].trains[name] for i in begun] for name in modules])
    expected[frozen] = -1
    for drawing in both(figure):
        np.testing.assert_array_equal(level_matrix(drawing, len(modules), [0, *steps]), expected)
    unmoved = (matrix[:, 0] == 0) & ~frozen[:, 0]  # in the first step, with its learning rate of 0
    assert unmoved.any()
    assert (expected[unmoved, 0] == 0).all()
    assert [mark for mark in figure.wide.marks if mark.style == "hatch"]
    assert "frozen: exactly 0" in assert_legible(figure)


def test_colours_go_by_percentiles_so_that_no_layer_takes_them_all():
    rng = np.random.default_rng(0)
    matrix = rng.uniform(1e-3, 4e-3, (15, 60))
    low, high = color_range(matrix)
    matrix[0] = 1e-9  # a layer that hardly moves, and single steps that jump
    matrix[3, :2] = 1e3
    found = color_range(matrix)
    assert found[0] == pytest.approx(low, rel=0.5)
    assert found[1] == pytest.approx(high, rel=0.2)
    levels = level_of(matrix, *found)
    assert len(set(levels[1:].ravel())) == LEVELS
    assert (levels[0] == 0).all()
    assert (levels[3, :2] == LEVELS - 1).all()


@pytest.mark.parametrize("values", [[], [0.0], [float("nan")], [1e-5], [1e-300, 1e300], [2.0, 2.0]])
def test_a_range_of_colours_is_never_empty(values):
    low, high = color_range(np.asarray([values], float))
    assert 0 < low < high < np.inf


def test_the_first_module_is_at_the_bottom_and_blocks_have_names():
    modules = modules_of(3)
    figure = update_heatmap([1], [dict.fromkeys(modules, 1e-3)], modules, phases_of(modules, [0]))
    names = ["tok_emb", "pos_emb", "block 0", "block 1", "block 2", "ln_f", "lm_head"]
    places = {label.words: label.y for label in figure.wide.labels}
    assert sorted(names, key=lambda name: -places[name]) == names


def test_the_title_of_the_updates_says_what_changed_most():
    steps, modules = [1, 2, 3], ["tok_emb", "blocks.0", "blocks.11", "ln_f"]
    moves = [{"tok_emb": 0.0, "blocks.0": 1e-4, "blocks.11": 2e-3, "ln_f": 1e-5}] * 3
    assert update_heatmap(steps, moves, modules, []).title == "Block 11 changed most; 1 of 4 layers never changed"
    moves = [{"tok_emb": 5.0, "blocks.0": 1e-4, "blocks.11": 2e-3, "ln_f": 1e-5}] * 3
    assert update_heatmap(steps, moves, modules, []).title == "tok_emb changed most, ln_f least"
    nothing = [dict.fromkeys(modules, 0.0)]
    assert update_heatmap([1], nothing, modules, []).title == "No layer changed"


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


@pytest.mark.parametrize("value", [0.0, None, float("nan"), float("inf"), -1.0, 1e-300, 2.0])
def test_a_heatmap_of_odd_values(value, tmp_path):
    modules = modules_of(3)
    updates = [{"tok_emb": value}, dict.fromkeys(modules, value)]
    figure = update_heatmap([1, 2], updates, modules, [])
    save_figure(figure, tmp_path / "odd.svg")
    assert bool([mark for mark in figure.wide.marks if mark.style == "hatch"]) == (value == 0.0)


def test_a_heatmap_stays_small():
    """As many marks for any number of layers and steps, and one path for each colour."""
    modules, steps = modules_of(1000), [*range(1, 1001)]
    phases = phases_of(modules, [0])
    figure = update_heatmap(steps, updates_of(steps, modules, phases), modules, phases)
    for drawing in both(figure):
        assert len(drawing.marks) < 250
        assert sum(len(mark.d) for mark in drawing.marks if isinstance(mark, Path)) < 600_000
    ordinary = modules_of(12)
    steps = [*range(1, 151)]
    figure = update_heatmap(steps, updates_of(steps, ordinary, phases_of(ordinary, [0])), ordinary, [])
    assert sum(len(mark.d) for d in both(figure) for mark in d.marks if isinstance(mark, Path)) < 80_000


def test_the_freeze_map_shows_each_phase():
    modules = modules_of(3)
    phases = phases_of(modules, [0, 20, 50])
    figure = freeze_map(phases, 80)
    for drawing in both(figure):
        found = cells(drawing)
        axis = next(mark for mark in drawing.marks if isinstance(mark, Path) and mark.style == "axis")
        left, bottom, right = map(float, re.match(r"M([\d.]+) ([\d.]+)H([\d.]+)", axis.d).groups())
        seen = set()
        for style, stretches in found.items():
            for x0, y, x1 in stretches:
                start, end = ((x - left) / (right - left) * 80 for x in (x0, x1))
                phase = next(phase for phase in phases if abs(phase.start - start) < 0.3)
                assert end - start == pytest.approx({0: 20, 20: 30, 50: 30}[phase.start], abs=0.5)
                name = modules[int((bottom - y) // 20)]
                assert {1.0: "trained", 0.5: "partly"}[phase.trains[name]] == style
                seen.add((phase.start, name))
        assert seen == {(phase.start, name) for phase in phases for name in modules if phase.trains[name]}
    assert figure.title == "3 phases: 235, then 244, then 334 parameters train"


def test_the_losses_are_the_logged_ones():
    nan = float("nan")
    metrics = [*metrics_of([10, 20, 30]), {"step": 40, "loss": nan, "eval_loss": float("inf"), "lr": 0.5e-3}]
    for drawing in both(loss_curves(metrics, [])):
        (line,) = [path for path in paths(drawing, "line s0") if len(points(path.d)) > 1]
        training = points(line.d)
        dots = [mark for mark in drawing.marks if isinstance(mark, Dot) and mark.words]
        assert [dot.words for dot in dots] == [
            "step 0: 4.2000",
            "step 10: 4.1000",
            "step 20: 4.1000",
            "step 30: 4.1000",
        ]
        x0, x10 = dots[0].x, dots[1].x
        np.testing.assert_allclose([x for x, _ in training], [x0 + (x10 - x0) * i for i in (1, 2, 3)], atol=0.11)
        scale = (dots[1].y - dots[0].y) / (4.2 - 4.1)  # pixels downwards for each nat less
        expected = [dots[0].y + (4.2 - (4 - s / 90)) * scale for s in (10, 20, 30)]
        np.testing.assert_allclose([y for _, y in training], expected, atol=0.2)
        (broken,) = [mark for mark in paths(drawing, "line broken") if mark.words]
        assert broken.words == "step 40: not finite"
        assert "nats per token" in {label.words for label in drawing.labels}
        assert {label.words for label in drawing.labels if label.style.startswith("value")} >= {"4.200", "4.100"}


def test_of_many_losses_each_is_drawn_faintly_and_the_line_is_smooth():
    rng, n = np.random.default_rng(0), 20_000
    losses = 2 + 3 * np.exp(-np.arange(1, n + 1) / 500) + 0.1 * rng.normal(size=n)
    losses[9000] = 1e30  # a spike is shown, and does not bend the line
    losses[[12_000, n - 1]] = np.nan
    steps, smooth = smoothed(np.arange(1, n + 1), losses)
    assert len(steps) <= POINTS
    assert (steps[0], steps[-1]) == (1, n)
    assert smooth[0] == losses[0]
    assert np.isnan(smooth[-1])
    np.testing.assert_allclose(smooth[:-1], (2 + 3 * np.exp(-steps / 500))[:-1], atol=0.1)
    figure = loss_curves([{"step": i, "loss": float(loss)} for i, loss in enumerate(losses, 1)], [])
    for drawing in both(figure):
        (faint,) = [path for path in paths(drawing, "line s0 faint") if len(path.d) > 100]
        assert len(faint.d) < 20_000
        assert {mark.words for mark in paths(drawing, "dot s0")} == {"step 9,001: 1e+30"}
        assert {mark.words for mark in paths(drawing, "line broken")} == {
            "",
            "step 12,001: not finite",
            f"step {n:,}: not finite",
        }
        numbers = [float(label.words) for label in drawing.labels if re.fullmatch(r"\d\.?\d*", label.words)]
        assert max(numbers) < 10  # the axis is that of the other losses
    assert "A triangle marks 1 loss beyond the top of the picture." in figure.caption
    assert_legible(figure)


@pytest.mark.parametrize("n", [1, 29, 30, 31, 150])
def test_few_losses_are_joined_and_a_loss_that_is_nan_is_a_gap(n):
    losses = np.r_[np.nan, np.linspace(4, 2, n - 1)] if n > 1 else np.array([3.0])
    figure = loss_curves([{"step": i, "loss": float(loss)} for i, loss in enumerate(losses, 1)], [])
    assert ("smoothed" in assert_legible(figure)) == (n >= 30)
    assert bool(paths(figure.wide, "line s0 faint")) == (n >= 30)
    drawn = max(paths(figure.wide, "line s0"), key=lambda path: len(path.d))
    assert len(points(drawn.d)) == np.isfinite(losses).sum()
    assert drawn.d.count("M") == 1


def test_the_title_of_the_loss_says_how_far_apart_training_and_held_out_text_are():
    def title(train: float, held: float) -> str:
        metrics = [{"step": i, "loss": train, "eval_loss": held if i % 10 == 0 else None} for i in range(41)]
        return loss_curves(metrics, []).title

    assert title(3.0, 3.01) == "Losses at the end are alike: training 3.00, held-out text 3.01"
    assert title(2.0, 3.5) == "Losses at the end: held-out text 3.50, 1.50 above that of training"
    assert title(3.5, 2.0) == "Losses at the end: held-out text 2.00, 1.50 below that of training"


@pytest.mark.parametrize("line", [{"step": 0, "eval_loss": 4.2}, {"step": 7}, {"step": 3, "loss": float("nan")}])
def test_a_loss_picture_of_one_line(line, tmp_path):
    save_figure(loss_curves([line], []), tmp_path / "loss.svg")


def test_bands_are_the_phases():
    modules = modules_of(3)
    figure = loss_curves(metrics_of([*range(1, 101)]), phases_of(modules, [0, 30, 60]))
    for drawing in both(figure):
        bands = [mark for mark in drawing.marks if isinstance(mark, Box) and mark.style.startswith("band")]
        assert [mark.words for mark in bands] == NAMES[:3]
        widths = np.asarray([mark.width for mark in bands])
        np.testing.assert_allclose(widths / widths.sum(), [0.3, 0.3, 0.4], atol=0.01)
    assert set(NAMES[:2]) <= assert_legible(figure)


@pytest.mark.parametrize(
    ("low", "high", "most", "found"),
    [
        (0, 60, 8, [0, 10, 20, 30, 40, 50, 60]),
        (0, 150, 8, [0, 20, 40, 60, 80, 100, 120, 140]),
        (0, 1, 5, [0, 1]),
        (0, 7, 10, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0, 12_345, 6, [0, 5000, 10_000]),
    ],
)
def test_ticks_are_at_round_steps(low, high, most, found):
    assert ticks(low, high, most, is_integer=True) == found


def test_the_numbers_of_an_axis():
    assert tick_texts([0.0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert tick_texts([3.5, 4.0]) == ["3.5", "4.0"]
    assert tick_texts([0, 1000, 2000]) == ["0", "1,000", "2,000"]
    assert tick_texts([0, 50_000, 100_000]) == ["0", "50k", "100k"]
    assert tick_texts([0, 1e-6, 2e-6]) == ["0", "1e-06", "2e-06"]


@pytest.mark.parametrize(
    "values", [[], [0.0], [3.0], [float("nan")], [float("inf")], [-1e299, 1e299], [1e-300, 2e-300], [5, 5]]
)
def test_the_range_of_an_axis_is_never_empty(values):
    for from_zero in (False, True):
        low, high = y_range(values, from_zero=from_zero)
        assert low < high
        assert np.isfinite([low, high]).all()
        assert ticks(low, high, 5)


def test_a_number_over_the_steps_with_its_limit():
    metrics = [{"step": i, "grad_norm": 2.0 if i < 3 else 0.5} for i in range(1, 40)]
    figure = line_chart("gradient", "t", "norm", metrics, "grad_norm", [], limit=(1.0, "--clip=1"))
    assert {"norm", "--clip=1"} <= assert_legible(figure)
    assert paths(figure.wide, "line limit")


def test_the_embedding_shows_the_last_old_and_the_new_rows(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(97, 36))
    after = np.concatenate([before, rng.normal(size=(3, 36))])
    found = NewRows.of(before, after, ["<|user|>", "$x^$"])
    np.testing.assert_allclose(found.rows, after[85:], rtol=0.006)
    assert (found.n_old, found.n_new, found.width, found.n_changed) == (97, 3, 36, 0)
    assert found.names[-4:] == ["96", "97  <|user|>", "98  $x^$", "99  (padding)"]
    found.write(tmp_path)
    assert NewRows.read(tmp_path) == found
    figure = embedding_rows(found)
    assert figure.title == "Adding tokens made 3 new rows in the token embedding, and changed no old row"
    for drawing in both(figure):
        (frame,) = [mark for mark in drawing.marks if isinstance(mark, Box)]
        assert frame.height == pytest.approx(3 * 20 + 2)
        assert sum(map(len, cells(drawing).values())) == 15 * 36
    after[3] += 1
    assert NewRows.of(before, after, []).n_changed == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"rows": 3}', '{"rows": [], "tokens": []}', "[" * 1000, "\xff"],
)
def test_damaged_rows_of_an_embedding_are_none(tmp_path, text):
    (tmp_path / "embedding.json").write_text(text, "latin-1")
    assert NewRows.read(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [[1.0], [1.0, 2.0]]}, {"rows": [["a"]]}, {"rows": [[float("nan")]]}, {"n_old": -1}, {"n_new": "3"},
        {"tokens": None}, {"n_new_shown": 2**80},
    ],
)  # fmt: skip
def test_odd_rows_of_an_embedding_are_none(tmp_path, change):
    import json

    matrix = np.ones((4, 3))
    NewRows.of(matrix[:3], matrix, ["a"]).write(tmp_path)
    path = tmp_path / "embedding.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert NewRows.read(tmp_path) is None


# the words


@pytest.mark.parametrize(("layers", "starts"), CASES)
def test_no_text_lies_on_another(layers, starts):
    modules, steps = modules_of(layers), [*range(1, 150, 3), 150]
    phases = phases_of(modules, starts)
    for figure in (
        update_heatmap(steps, updates_of(steps, modules, phases), modules, phases),
        freeze_map(phases, 150),
        loss_curves(metrics_of(steps), phases),
        line_chart("rate", "", "learning rate", metrics_of(steps), "lr", phases),
    ):
        words = assert_legible(figure)
        if starts == [0, 50, 100]:
            assert {"head", "last1+ln_f"} <= words  # a band that has room has its name


HOSTILE = [
    "$x^$", r"$\frac", "\n\t\x00", "日本語", "é—😀", "W" * 400, "<b>", "\u202eabc", " ", "\\", "{", "_^", "", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("width", [1, 36, 1600])
@pytest.mark.parametrize(("old", "new"), [(50257, 2), (97, 40), (5, 1), (40, 0)])
def test_any_token_can_be_read(old, new, width):
    before = np.random.default_rng(0).normal(size=(old, width)).astype(np.float32)
    after = np.concatenate([before, np.zeros((new, width), np.float32)])
    texts = assert_legible(embedding_rows(NewRows.of(before, after, HOSTILE)))
    for row, token in list(enumerate(HOSTILE, old))[: min(new, 12)]:
        name = f"{row:,}  {printable(token)}" if token else f"{row:,}"
        assert any(text == name or (text.endswith("…") and name.startswith(text[:-1])) for text in texts), name


def test_words_are_cut_to_their_room():
    assert fitted("full", 100) == "full"
    assert fitted("regex:blocks.*", 60).endswith("…")
    assert text_width(fitted("W" * 100, 60)) <= 60
    assert fitted("regex", 5) == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("blocks.11", "block 11"),
        ("tok_emb", "tok_emb"),
        ("blocks.x", "blocks.x"),
        ("blocks", "blocks"),
        ("\x1b[31m", r"\x1b[31m"),
    ],
)
def test_layers_have_names_for_readers(name, shown):
    assert layer_name(name) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("<|user|>", "<|user|>"), ("$x$", "$x$"), ("\n\0é", r"\n\x00é"), ("日", "日"), ("\u202e", r"\u202e"), ("", "")],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_long_names_are_cut():
    assert printable("i" * 1000).endswith("i…")
    assert len(printable("W" * 1000)) == 22


def test_short_counts():
    assert [short(n) for n in (0, 999, 1000, 524_288, 12_443_980, 124_439_808, 1_557_611_200)] == [
        "0", "999", "1k", "524k", "12.4M", "124M", "1.56G",
    ]  # fmt: skip


def test_a_picture_is_a_file_of_its_own_written_whole(tmp_path):
    path = tmp_path / "plots" / "loss.svg"
    phases = [PhaseInfo(0, "a<b>&\"'\x00\ud800", 1, {"x": 1.0}), PhaseInfo(1, "</text><script>", 1, {"x": 1.0})]
    save_figure(loss_curves(metrics_of([1, 2]), phases), path)
    root = ET.fromstring(path.read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in path.read_text()
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "g", "path", "text", "circle"}
    assert not re.search(r"url\(|@import|href", path.read_text())
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(AttributeError):
        save_figure(None, path)
    assert list(path.parent.iterdir()) == [path]
