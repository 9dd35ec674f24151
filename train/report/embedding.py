"""The rows of the token embedding when a vocabulary has grown: their numbers in a file, and their picture."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from jaxgpt.convert.disk import temporary_sibling, write_json
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import field as field_of
from jaxgpt.convert.json_input import read_json
from jaxgpt.training.report.figure import (
    Axes,
    Box,
    Drawing,
    Figure,
    Label,
    Path,
    draw_both,
    fitted,
    printable,
    short_number,
    text_width,
)

ROWS, WIDTH = 12, 64
"""Most old rows, most new rows, and most dimensions of each that are kept."""
LEVELS = 9
"""Colours, `d0` to `d8`, of which the middle one is zero."""
MAX_BYTES = 10**6
NAME = "embedding.json"


@dataclass(frozen=True)
class NewRows:
    """The last old rows of an embedding, and the first new ones."""

    n_old: int
    n_new: int
    width: int
    n_changed: int
    """Old rows that are not what they were."""
    tokens: list[str]
    """Texts of the new rows, in order; further rows are padding."""
    rows: list[list[float]]
    """Every so many-th number of each row."""
    n_new_shown: int

    @classmethod
    def of(cls, before: Float[Any, "V D"], after: Float[Any, "W D"], tokens: Sequence[str]) -> Self:
        """Return what is shown of an embedding before and after its vocabulary grew."""
        old, new = len(before), len(after) - len(before)
        shown = np.asarray(after[max(old - ROWS, 0) : old + min(new, ROWS)], np.float64)
        thinned = shown[:, :: max(1, -(-shown.shape[1] // WIDTH))]
        changed = int((np.asarray(before) != np.asarray(after[:old])).any(axis=1).sum())
        rows = [[float(f"{x:.3g}") for x in row] for row in np.nan_to_num(thinned)]
        names = [printable(token) for token in tokens[:ROWS]]
        return cls(old, new, shown.shape[1], changed, names, rows, min(new, ROWS))

    def write(self, folder: FilePath) -> None:
        """Write them into a folder, whole or not at all."""
        path = folder / NAME
        with temporary_sibling(path) as temporary:
            write_json(temporary, asdict(self))
            temporary.replace(path)

    @classmethod
    def read(cls, folder: FilePath) -> Self | None:
        """Read them from a folder; None if there are none, or the file is damaged."""
        try:
            found = read_json(folder / NAME, max_bytes=MAX_BYTES)
            counts = {name: field_of(found, name, int) for name in ("n_old", "n_new", "width", "n_changed")}
            rows = [
                [field_of({"number": x}, "number", float) for x in row[:WIDTH]]
                for row in field_of(found, "rows", list)[: 2 * ROWS]
                if isinstance(row, list)
            ]
            tokens = [str(token)[:100] for token in field_of(found, "tokens", list)[:ROWS]]
            n_new_shown = min(max(field_of(found, "n_new_shown", int), 0), len(rows))
        except InputError:
            return None
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1 or min(counts.values()) < 0:
            return None
        return cls(**counts, tokens=tokens, rows=rows, n_new_shown=n_new_shown)

    @property
    def names(self) -> list[str]:
        """The names of the rows that are shown, from the first on."""
        first = self.n_old + self.n_new_shown - len(self.rows)
        names = []
        for row in range(first, first + len(self.rows)):
            place = row - self.n_old
            token = "" if place < 0 else self.tokens[place] if place < len(self.tokens) else "(padding)"
            names.append(f"{row:,}{f'  {printable(token)}' if token else ''}")
        return names


def embedding_rows(found: NewRows) -> Figure:
    """Draw the last old rows and the new ones, which are framed and named."""
    matrix = np.asarray(found.rows)
    limit = float(np.percentile(np.abs(matrix), 98)) or 1.0
    levels = np.clip((matrix / limit + 1) / 2 * LEVELS, 0, LEVELS - 1).astype(int)

    def draw(width: int) -> Drawing:
        left = min(max(map(text_width, found.names), default=0.0) + 12, 0.45 * width)
        axes = Axes(left, 8, width - left - 8, 20.0 * len(matrix), (0, matrix.shape[1]), (0, 1))
        paths: dict[int, list[str]] = {}
        for row, line in enumerate(levels):
            y = axes.top + (row + 0.5) * 20
            axes.add(Label(axes.left - 8, y + 4.5, fitted(found.names[row], left - 8), "label", "end"))
            for column, level in enumerate(line):
                x0, x1 = axes.x(column), axes.x(column + 1)
                paths.setdefault(int(level), []).append(f"M{short_number(x0)} {short_number(y)}H{short_number(x1)}")
        for level, parts in sorted(paths.items()):
            axes.add(Path("".join(parts), f"cell d{level}", width=19))
        if found.n_new_shown:
            top = axes.bottom - 20 * found.n_new_shown
            axes.add(Box(axes.left - 1, top - 1, axes.width + 2, axes.bottom - top + 2, "new-rows"))
        y, x = axes.bottom + 26, axes.left
        axes.add(Label(x, y + 4, low := f"−{limit:.2g}"))
        x += text_width(low) + 12
        for level in range(LEVELS):
            axes.add(Path(f"M{short_number(x + 12 * level)} {short_number(y - 1)}h12", f"cell d{level}", width=12))
        axes.add(Label(x + 12 * LEVELS + 6, y + 4, f"{limit:.2g}"))
        return Drawing(width, y + 20, tuple(axes.marks))

    wide, narrow = draw_both(draw)
    new = f"{found.n_new:,} new row{'s' * (found.n_new != 1)}"
    changed = "changed no old row" if not found.n_changed else f"changed {found.n_changed:,} old rows"
    more = found.n_new - found.n_new_shown
    every = -(-found.width // max(matrix.shape[1], 1))
    caption = (
        f"The last rows of the token embedding before training, {found.n_old + found.n_new:,} × {found.width:,}; new "
        f"rows are framed.{f' {more:,} more new rows are not shown.' if more > 0 else ''}"
        f"{f' One dimension in every {every} is shown.' if every > 1 else ''}"
    )
    alt = "The last rows of the token embedding after tokens were added."
    return Figure(
        "embedding", f"Adding tokens made {new} in the token embedding, and {changed}", alt, caption, wide, narrow
    )
