"""Pictures as marks on a plane, which a template writes as SVG: scales, ticks, labels, and bands of phases.

Colours are CSS classes, so that one picture follows the reader's light or dark theme. Each picture is drawn twice, wide
and narrow, with letters of one size.
"""

import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from jaxgpt.training.run.run_json import PhaseInfo

WIDE, NARROW = 820, 400
"""Widths of the two drawings of a picture."""
SIZE, SMALL = 13.0, 12.0
"""Sizes of letters: usual, and of values in the picture."""
LONGEST = 22
"""Characters of a name from a file, at most."""


@dataclass(frozen=True)
class Path:
    """A line or an area."""

    d: str
    style: str
    words: str = ""
    """The text that a browser shows under the pointer."""
    width: float | None = None
    """The stroke's own; by default the style's."""
    tag: str = "path"


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    style: str
    words: str = ""
    tag: str = "rect"


@dataclass(frozen=True)
class Dot:
    """A circle."""

    x: float
    y: float
    radius: float
    style: str
    words: str = ""
    tag: str = "circle"


@dataclass(frozen=True)
class Label:
    """A line of text."""

    x: float
    y: float
    words: str
    style: str = "label"
    anchor: str = "start"
    tag: str = "text"


Mark = Path | Box | Dot | Label


@dataclass(frozen=True)
class Drawing:
    """A picture of one width."""

    width: int
    height: float
    marks: tuple[Mark, ...]

    @property
    def labels(self) -> list[Label]:
        """The texts in it."""
        return [mark for mark in self.marks if isinstance(mark, Label)]


@dataclass(frozen=True)
class Figure:
    """A picture, and what is said of it."""

    name: str
    """The name of its file, without suffix."""
    title: str
    """The finding, in a sentence."""
    alt: str
    caption: str
    wide: Drawing
    narrow: Drawing


@dataclass
class Axes:
    """A rectangle of a drawing, and the numbers that its sides stand for."""

    left: float
    top: float
    width: float
    height: float
    xs: tuple[float, float]
    ys: tuple[float, float]
    marks: list[Mark] = field(default_factory=list)

    @property
    def right(self) -> float:
        """The x of the right side."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The y of the lower side."""
        return self.top + self.height

    def x(self, value: float) -> float:
        """Return where a number of the horizontal axis is."""
        low, high = self.xs
        return self.left + (value - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        """Return where a number of the vertical axis is; one out of its range is at the nearest side."""
        low, high = self.ys
        share = (min(max(value, low), high) - low) / (high - low)
        return self.bottom - share * self.height

    def add(self, *marks: Mark) -> None:
        """Draw marks over those that are there."""
        self.marks += marks

    def line(self, points: Iterable[tuple[float, float]]) -> str:
        """Return the path through points, with gaps where a number is not finite."""
        parts, is_down, n = [], False, 0
        for a, b in points:
            if not math.isfinite(b):
                if is_down and n == 1:  # a point between two gaps
                    parts.append("h.1")
                is_down = False
                continue
            parts.append(f"{'L' if is_down else 'M'}{short_number(self.x(a))} {short_number(self.y(b))}")
            is_down, n = True, n + 1 if is_down else 1
        if is_down and n == 1:
            parts.append("h.1")
        return "".join(parts)


def draw_both(draw: Callable[[int], Drawing]) -> tuple[Drawing, Drawing]:
    """Draw a picture wide and narrow."""
    return draw(WIDE), draw(NARROW)


def short_number(value: float) -> str:
    """Return a coordinate with one decimal at most."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def ticks(low: float, high: float, most: int, *, is_integer: bool = False) -> list[float]:
    """Return at most so many round numbers within a range: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        if is_integer and step < 1:
            continue
        step = round(step) if is_integer else step
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [i * step for i in range(first, last + 1)]
    return [low]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return the numbers of an axis, all with the same number of decimals."""
    largest = max(map(abs, values), default=0.0)
    if largest >= 10_000:
        texts = [short(value) for value in values]
        return texts if len(set(texts)) == len(texts) else [f"{value:,.0f}" for value in values]
    gap = min((b - a for a, b in itertools.pairwise(values)), default=1.0) or 1.0
    n_decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    if n_decimals > 4:
        return [f"{value:.3g}" for value in values]
    return [f"{value:,.{n_decimals}f}" for value in values]


def short(count: float) -> str:
    """Shorten a count: `12.4M` for 12,443,980."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}" if isinstance(count, float) else str(count)


def text_width(text: str, size: float = SIZE) -> float:
    """Estimate the width of a text, rather too much than too little: readers have different fonts."""
    total = 0.0
    for letter in text:
        if letter in "il.,:;|'!()[]t jfrI":
            total += 0.4
        elif letter in "mwMW@%…—→" or unicodedata.east_asian_width(letter) in "WF":
            total += 1.02
        else:
            total += 0.77 if letter.isupper() else 0.63
    return size * total


def printable(text: str, longest: int = LONGEST) -> str:
    """Cut a text to one line, with escapes for what a line can't show."""
    whole = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: longest + 1])
    return whole if len(whole) <= longest else f"{whole[: longest - 1]}…"


def fitted(text: str, width: float, size: float = SIZE) -> str:
    """Cut a text to a width; nothing is left where not even a few letters fit."""
    if text_width(text, size) <= width:
        return text
    for end in range(len(text) - 1, 2, -1):
        if text_width(cut := f"{text[:end].rstrip()}…", size) <= width:
            return cut
    return ""


def layer_name(module: str) -> str:
    """Return the name of a module for readers: `block 11` for `blocks.11`."""
    kind, _, number = module.partition(".")
    return f"block {number}" if kind == "blocks" and number.isdecimal() and len(number) < 6 else printable(module)


def legend(entries: Sequence[tuple[str, str]], left: float, width: float, y: float = 10.0) -> tuple[list[Mark], float]:
    """Explain marks by a row of samples, or several where one is too short.

    Args:
        entries: style and words of each; `dot …` is a circle, `line …` a line, other styles are areas.

    Returns:
        Marks, and the y of what may follow under them.
    """
    marks: list[Mark] = []
    x = left
    for style, words in entries:
        words = fitted(words, width - 24)
        needed = 24 + text_width(words)
        if x > left and x + needed > left + width:
            x, y = left, y + 20
        kind = style.split()[0]
        if kind == "dot":
            marks.append(Dot(x + 8, y, 4, style))
        elif kind == "line":
            marks.append(Path(f"M{short_number(x)} {short_number(y)}h16", style))
        else:
            marks.append(Box(x + 1, y - 6, 14, 12, style))
        marks.append(Label(x + 22, y + 4.5, words))
        x += needed + 16
    return marks, y + 14


def frame(
    axes: Axes,
    *,
    y_title: str = "",
    x_title: str = "training step",
    phases: Sequence[PhaseInfo] = (),
    has_y: bool = True,
    y_texts: Sequence[tuple[float, str]] | None = None,
) -> None:
    """Draw the bands of phases, the grid, and the ticks at round numbers."""
    draw_bands(axes, phases)
    if has_y:
        values = ticks(*axes.ys, most=max(2, int(axes.height // 38) + 1))
        for value, text in y_texts or list(zip(values, tick_texts(values), strict=True)):
            y = axes.y(value)
            axes.add(Path(f"M{short_number(axes.left)} {short_number(y)}H{short_number(axes.right)}", "grid"))
            axes.add(Label(axes.left - 8, y + 4.5, text, "label", "end"))
        if y_title:
            axes.add(Label(0, axes.top - 12 - band_room(axes, phases), y_title))
    draw_steps(axes, x_title)


def draw_steps(axes: Axes, title: str = "training step") -> None:
    """Draw the horizontal axis, whose numbers are steps."""
    low, high = axes.xs
    axes.add(Path(f"M{short_number(axes.left)} {short_number(axes.bottom)}H{short_number(axes.right)}", "axis"))
    for most in range(int(axes.width // 56) + 1, 0, -1):
        values = ticks(low, high, most, is_integer=True)
        texts = tick_texts(values)
        places = [axes.x(value) for value in values]
        halves = [text_width(text) / 2 + 5 for text in texts]
        if all(places[i + 1] - places[i] > halves[i] + halves[i + 1] for i in range(len(places) - 1)):
            break
    for x, text in zip(places, texts, strict=True):
        axes.add(Path(f"M{short_number(x)} {short_number(axes.bottom)}v5", "axis"))
        half = text_width(text) / 2
        axes.add(Label(min(x, axes.right + 12 - half), axes.bottom + 19, text, "label", "middle"))
    if title:
        axes.add(Label(axes.left + axes.width / 2, axes.bottom + 37, title, "label", "middle"))


def band_room(axes: Axes, phases: Sequence[PhaseInfo]) -> float:
    """Return the height that the names of phases take above axes."""
    return 18.0 if sum(phase.start < axes.xs[1] for phase in phases) > 1 else 0.0


def draw_bands(axes: Axes, phases: Sequence[PhaseInfo], *, is_filled: bool = True) -> None:
    """Draw the phases as bands with their names above; a band that is too narrow for its name has none."""
    high = axes.xs[1]
    begun = [phase for phase in phases if phase.start < high]
    if not band_room(axes, phases):
        return
    ends = [*(phase.start for phase in begun[1:]), high]
    for number, (phase, end) in enumerate(zip(begun, ends, strict=True)):
        left, right = axes.x(phase.start), axes.x(end)
        name = printable(phase.name, 60)
        if is_filled and number < 200:
            axes.add(Box(left, axes.top, max(right - left, 0), axes.height, f"band band{number % 2}", name))
        if shown := fitted(name, right - left - 8, SMALL):
            axes.add(Label(left + 4, axes.top - 7, shown, "label small phase"))


def y_range(values: Iterable[float], *, from_zero: bool = False) -> tuple[float, float]:
    """Return the range of an axis that shows values, with a little space around them."""
    finite = sorted(value for value in values if math.isfinite(value) and abs(value) < 1e300)
    low, high = (finite[0], finite[-1]) if finite else (0.0, 1.0)
    low = min(low, 0.0) if from_zero else low
    if not high - low > 1e-9 * max(abs(high), abs(low), 1e-300):
        space = abs(high) * 0.1 or 1.0
        return low - (0 if from_zero else space), high + space
    space = 0.06 * (high - low)
    return low - (0 if from_zero else space), high + space
