"""The notebooks: their code runs as it stands, and what the logit lens shows is what it computes."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from conftest import ROOT
from test_house import random_model

from jaxgpt.convert.source import BUNDLED

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]

SHORTER = {
    "freeze": [("steps=60", "steps=6"), ("eval_every=20", "eval_every=2"), ("context=128", "context=32")],
    "own_loop": [("STEPS = 30", "STEPS = 6"), ("range(10)", "range(2)")],
    "chat": [("steps=80", "steps=2"), ("eval_every=40", "eval_every=1"), ("steps=30", "steps=2"),
             ("max_new_tokens", "max_new_tokens"), ("temperature=0)", "temperature=0, max_new_tokens=4)")],
}  # fmt: skip
"""What is made smaller in a notebook for a test that it runs."""


def words(text: str) -> str:
    """Without numbers, whose last digits may differ between machines."""
    return re.sub(r"[\d.]+", "#", text)


def code_of(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def pictures(monkeypatch):
    """The pictures that are shown."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = []
    monkeypatch.setattr(plt, "show", lambda: found.append(plt.gcf()))
    monkeypatch.setattr(sys, "ps1", "", raising=False)  # as in a notebook: runs are quiet
    yield found
    plt.close("all")


def test_the_logit_lens_runs_and_says_what_it_shows(pictures, capsys):
    space = {}
    for cell in code_of(ROOT / "examples" / "logit_lens.ipynb"):
        shown = len(pictures)
        exec("".join(cell["source"]), space)
        printed = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        assert words(capsys.readouterr().out) == words(printed)
        stored = [output for output in cell["outputs"] if output["output_type"] == "display_data"]
        assert len(stored) == len(pictures) - shown
        assert all(output["data"]["image/png"] for output in stored)
    assert len(pictures) == 3

    assert space["tokenizer"].decode([space["answer"]]) == " Israel"
    assert (space["likeliest"][0] == space["tokens"][0]).mean() > 0.9  # the embeddings say the token itself
    pattern = np.asarray(space["pattern"])
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    assert (np.triu(pattern, 1) == 0).all()
    restored = space["restored"]
    np.testing.assert_allclose(restored[-1, -1], 1, atol=1e-4)  # the last state of the last position is all there is
    np.testing.assert_allclose(restored[-1, :-1], 0, atol=1e-4)


@pytest.mark.parametrize("name", SHORTER)
def test_a_notebook_runs(name, cut, pictures, tmp_path, monkeypatch):
    """With fewer steps, on some blocks of the bundled model or small random ones, which compile faster than all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BUNDLED, "tiny", random_model(tmp_path / "one", 1) if name == "chat" else cut)
    space = {}
    with (
        mock.patch("jaxgpt.training.finetune._write_report"),
        jax.numpy_dtype_promotion("standard"),  # as it is for users: Optax is not strict
        jax.numpy_rank_promotion("allow"),
    ):
        for cell in code_of(ROOT / "examples" / f"{name}.ipynb"):
            source = "".join(cell["source"])
            for old, new in SHORTER[name]:
                source = source.replace(old, new)
            exec(source, space)
    assert len(pictures) == {"freeze": 2, "own_loop": 0, "chat": 0}[name]
    assert {"freeze": "run", "own_loop": "plan", "chat": "short"}[name] in space


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_whole_tells_nothing_of_a_machine_and_opens_in_colab(path):
    book = json.loads(path.read_text())
    assert book["nbformat"] == 4
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert not re.search(r"/(tmp|home|root|usr|Users)/|site-packages|Warning|Traceback", path.read_text())
    code = code_of(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) >= 0.75 * len(code)
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    repository = place.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{repository}/blob/main/examples/{path.name}"
    assert f"[Open in Colab]({link})" in "".join(book["cells"][0]["source"])
    assert f"git+{place}" in "".join(code[0]["source"])


def test_the_lesson_is_the_documentations_whose_build_runs_it():
    """`make docs` executes the pages; the notebook has the same cells, by tools/notebooks.py."""
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    made = [(cell["cell_type"], cell["source"]) for cell in tool.lesson()["cells"]]
    book = json.loads((ROOT / "examples" / "lesson.ipynb").read_text())
    stored = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert stored == made


def test_every_notebook_is_run_by_a_test():
    assert set(NAMES) == {*SHORTER, "logit_lens", "lesson"}
