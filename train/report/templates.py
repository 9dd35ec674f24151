"""The templates of the report: every value is escaped, and what is written is whole or not there."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jaxgpt.convert.disk import temporary_sibling
from jaxgpt.training.report.figure import SIZE, WIDE, Figure, fitted

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that HTML or XML doesn't allow."""


@cache
def _environment() -> Environment:
    """Return where templates are found; they escape every value and replace characters that HTML doesn't allow."""

    def finalize(value: Any) -> Any:
        # only the templates' own macros return Markup: a value from a file is never one
        return value if isinstance(value, Markup) else CONTROL.sub("\ufffd", str(value))

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Return what a template makes of values."""
    return _environment().get_template(template).render(values)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with temporary_sibling(path) as temporary:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as an SVG file of its own, which follows the theme too."""
    title = fitted(figure.title, WIDE, SIZE + 4)
    write_text(path, render("figure.svg.jinja", figure=figure, title=title))
