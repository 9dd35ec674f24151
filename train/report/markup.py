"""Pieces of HTML; whatever comes from a file passes through `text`."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Letters that HTML doesn't allow."""
PNG = b"\x89PNG\r\n\x1a\n"


def text(value: Any) -> str:
    """Anything as text that means nothing to a browser, in an attribute too."""
    return html.escape(CONTROL.sub("\ufffd", str(value)))


def note(words: str) -> str:
    """What stands in the place of what is missing."""
    return f'<p class="soft">{text(words)}</p>'


def pre(words: str, kind: str = "", label: str = "") -> str:
    """A text as it is; of kind `wide` it is not wrapped and scrolls inside its box, `prose` is no code."""
    scrolls = f' tabindex="0" role="region" aria-label="{text(label)}"' if kind == "wide" else ""
    return f'<pre class="{kind}"{scrolls}>\n{text(words)}</pre>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], marked: Sequence[Any] = ()) -> str:
    """A table with a heading for every column and row; rows whose heading is in `marked` stand out."""
    lines = ["<table>", "<thead><tr>", *(f'<th scope="col">{text(cell)}</th>' for cell in head), "</tr></thead><tbody>"]
    for name, *cells in rows:
        mark = ' class="changed"' if name in marked else ""
        values = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{text(name)}</th>{values}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def picture(path: Path, alt: str, caption: str) -> str:
    """A PNG file inside the page, which scrolls in its box where the window is narrow."""
    png = path.read_bytes() if path.is_file() else b""
    if len(png) < 24 or not png.startswith(PNG):
        return note(f"{path.name} is not here: there was nothing to draw it from.")
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # of the header
    return (
        f'<figure><div class="picture" tabindex="0" role="region" aria-label="{text(path.stem)}">'
        f'<img alt="{text(alt)}" width="{width}" height="{height}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )
