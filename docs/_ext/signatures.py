"""Signatures and docstrings of the Python API, as people write them."""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

SPELLED = {
    r"(?:jaxlib\._jax|jax)\.Array": "Array",
    r"(?:numpy|np)\.ndarray": "ndarray",
    r"jaxtyping\.": "",
    r"jax\.(?:_src\.mesh|sharding)\.Mesh": "Mesh",
}
"""Names that Python prints of types, and what a reader knows them as."""

TYPED = re.compile(r"'([^']*[|*\\][^']*)'|([^\s']*[|*\\][^\s']*[^\s'.,;:)])")
"""Words with signs that have a meaning in reStructuredText."""

COLON = "\N{MODIFIER LETTER COLON}"
"""What stands for a colon where Napoleon would take the words before it for a type."""


def quote_help(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Quote what is typed in the docstring of `jaxgpt.train`, most of which is the plain text of the flags' help."""
    if name == "jaxgpt.train":
        lines[:] = [line if "`" in line else TYPED.sub(r"``\1\2``", line) for line in lines]


def hide_colons(_app: Sphinx, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Hide the colons of fields and properties from Napoleon: what they hold is one sentence."""
    if what in ("attribute", "property"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def show_colons(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Show them again."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def spell_types(_app: Sphinx, doctree: nodes.document) -> None:
    """Shorten the names of types in signatures."""
    for signature in doctree.findall(addnodes.desc_signature):
        for text in list(signature.findall(nodes.Text)):
            spelled = str(text)
            for long, short in SPELLED.items():
                spelled = re.sub(long, short, spelled)
            if spelled != text:
                text.parent.replace(text, nodes.Text(spelled))


def shorten_dashes(_app: Sphinx, doctree: nodes.document) -> None:
    """Write a dash between a parameter and its description: dashes elsewhere begin flags, and stay as they are."""
    for body in doctree.findall(nodes.field_body):
        for text in list(body.findall(nodes.Text)):
            if text.startswith(" -- "):
                text.parent.replace(text, nodes.Text(f" – {text[4:]}"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of them, some before Napoleon reads a docstring and some after it."""
    app.connect("autodoc-process-docstring", quote_help, priority=400)
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("doctree-read", spell_types)
    app.connect("doctree-read", shorten_dashes)
    return {"parallel_read_safe": True}
