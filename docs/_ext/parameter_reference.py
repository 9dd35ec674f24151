"""The names of parameters in every dialect as Markdown, out of the tables that convert them."""

from collections.abc import Mapping
from typing import Any

from jaxgpt.convert.dialect import Dialect
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.dialects.jaxgpt import PARAMETERS


def own_names() -> str:
    """Return the table of our own names."""
    rows = [f"| `{name}` | `{axes}` |" for name, axes in PARAMETERS]
    return "\n".join(["| parameter | axes |", "|---|---|", *rows])


def other_names() -> str:
    """Return a section for each dialect."""
    return "\n".join(names_of(dialect) for name, dialect in DIALECTS.items() if name != "jaxgpt")


def names_of(dialect: Dialect) -> str:
    """Return the section of a dialect: each of its names, ours, and the layouts."""
    lines = [f"## {dialect.title}", "", f"`--dialect={dialect.name}`. {_remarks(dialect)}", ""]
    lines += ["| theirs | ours | layout |", "|---|---|---|"]
    for row in dialect.rows:
        theirs = ", ".join(f"`{name}`" for name in row.names)
        lines.append(f"| {theirs} | `{row.ours}` | `{row.layout}` |")
    return "\n".join([*lines, ""])


def _remarks(dialect: Dialect) -> str:
    said = []
    if dialect.prefix:
        said.append(f"All names but the head's may begin with `{dialect.prefix}`.")
    if dialect.needs_config:
        said.append("A `config.json` must lie beside the weights.")
    if dialect.assumed:
        said.append("Assumed unless told otherwise: " + _fields(dialect.assumed) + ".")
    if dialect.fixed:
        said.append("Known without a config: " + _fields(dialect.fixed) + ".")
    if dialect.writes_tied_head:
        said.append("A tied head is written twice.")
    if dialect.buffers:
        said.append("Known buffers, which are no parameters: " + ", ".join(f"`{n}`" for n, _ in dialect.buffers) + ".")
    return " ".join(said)


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in fields.items())
