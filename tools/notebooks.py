"""Run the notebooks of examples/, and store what they print and draw; the lesson is first made out of docs/tutorial.

python tools/notebooks.py lesson chat
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LESSON, PAGES = ROOT / "examples" / "lesson.ipynb", ROOT / "docs" / "tutorial"
REPOSITORY = "https://github.com/jaxgpt/jaxgpt"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FIRST = f"""# Loading pretrained weights, and transfer learning

[Open in Colab]({REPOSITORY.replace("github.com", "colab.research.google.com/github")}/blob/main/examples/lesson.ipynb)

The lesson of the documentation, all parts in one notebook, on a model that is bundled. It takes some minutes, and needs
no GPU."""
SETUP = f'''# in Colab: %pip install -q "jaxgpt @ git+{REPOSITORY}"
import os
from pathlib import Path

HERE = Path.cwd()


def folder(name):
    """Go into a folder for the files of a part."""
    (HERE / name).mkdir(exist_ok=True)
    os.chdir(HERE / name)'''
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```\n", re.S | re.M)
OPTIONS = re.compile(r"\A(?:^:.*\n)*\n?", re.M)


def main() -> None:
    """Run the notebooks that are named, or all, each in an empty folder; what they run with comes with jaxgpt[docs]."""
    import nbformat
    from nbclient import NotebookClient

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in LESSON.parent.glob("*.ipynb")))
    for name in parser.parse_args().names:
        path = LESSON.parent / f"{name}.ipynb"
        book = nbformat.from_dict(lesson() if path == LESSON else json.loads(path.read_text()))
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(book, timeout=900, resources={"metadata": {"path": folder}}).execute()
        book["metadata"] = METADATA
        for cell in book["cells"]:
            cell["metadata"] = {}
            if cell["cell_type"] == "code":
                cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        path.write_text(nbformat.writes(book, indent=1) + "\n")
        print(path, flush=True)


def lesson() -> dict[str, Any]:
    """Return the lesson's notebook as JSON has it, without outputs."""
    found = [("markdown", FIRST), ("code", SETUP)]
    for page in sorted(PAGES.glob("[0-9]*.md")):
        title, *cells = cells_of(page.read_text())
        found += [title, ("code", f'folder("part-{page.name[0]}")'), *cells]
    cells = [
        {"id": f"cell-{i}", "cell_type": kind, "metadata": {}, "source": text}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for i, (kind, text) in enumerate(found)
    ]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": METADATA, "cells": cells}


def cells_of(page: str) -> list[tuple[str, str]]:
    """Return the cells of a page, each with its kind; boxes become quotes, and links lead to the repository's files."""
    text = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.S)
    parts = CELL.split(text)  # text and code in turn
    found = []
    for i, part in enumerate(parts):
        if i % 2:
            title = re.search(r'code_prompt_show: "([^"]+)"', part)
            found += [("markdown", f"**{title[1]}**")] if title else []
            found.append(("code", OPTIONS.sub("", part, count=1).strip()))
        elif part.strip():
            found.append(("markdown", plain(part.strip())))
    return found


def plain(text: str) -> str:
    """Return Markdown as every viewer of notebooks knows it."""
    box = r"^```\{(?:note|warning|admonition)\} ?([^\n]*)\n(.*?)^```$"
    text = re.sub(
        box, lambda found: "\n".join(f"> {line}" for line in f"{found[1]}\n{found[2]}".strip().splitlines()), text,
        flags=re.S | re.M,
    )  # fmt: skip
    text = re.sub(r"\]\(([\w-]+\.md)", r"](../docs/tutorial/\1", text)
    text = re.sub(r"\]\(\.\./([\w/-]+\.md)", r"](../docs/\1", text)
    return re.sub(r"\]\(\.\./docs/docs/", "](../docs/", text)


if __name__ == "__main__":
    main()
