"""Signatures and docstrings of the Python API, as people write them."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SPELLED = {
    r"jaxlib\._jax\.Array|jax\.Array": "Array",
    r"numpy\.ndarray|np\.ndarray": "ndarray",
    r"jaxtyping\.": "",
    r"jax\.(?:_src\.mesh|sharding)\.Mesh": "Mesh",
}
"""Names that Python prints of types, and what a reader knows them as."""

TYPED = re.compile(r"'([^']*[|*\\][^']*)'|([^\s']*[|*\\][^\s']*[^\s'.,;:)])")
"""Words with signs that have a meaning in reStructuredText."""


def spell(text: str | None) -> str | None:
    """Return a signature with the names that a reader knows."""
    for long, short in SPELLED.items():
        text = text and re.sub(long, short, text)
    return text


def process_signature(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, arguments, returns):
    """Shorten the names of types, before a signature is parsed."""
    return spell(arguments), spell(returns)


def quote_help(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Quote what is typed in the docstring of `jaxgpt.train`, most of which is the plain text of the flags' help."""
    if name == "jaxgpt.train":
        lines[:] = [line if "`" in line else TYPED.sub(r"``\1\2``", line) for line in lines]


def shorten_dashes(_app: Sphinx, doctree: nodes.document) -> None:
    """Write a dash between a parameter and its description: dashes elsewhere begin flags, and stay as they are."""
    for body in doctree.findall(nodes.field_body):
        for text in list(body.findall(nodes.Text)):
            if text.startswith(" -- "):
                text.parent.replace(text, nodes.Text(f" – {text[4:]}"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of them; the help is quoted before its arguments are read."""
    app.connect("autodoc-process-docstring", quote_help, priority=400)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("doctree-read", shorten_dashes)
    return {"parallel_read_safe": True}
