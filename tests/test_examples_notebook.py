"""The notebook: its code runs as it stands, and what it shows is what it computes."""

import json
import re

import numpy as np
from conftest import ROOT

NOTEBOOK = ROOT / "examples" / "logit_lens.ipynb"


def words(text: str) -> str:
    """Without numbers, whose last digits may differ between machines."""
    return re.sub(r"[\d.]+", "#", text)


def test_the_logit_lens_runs_and_says_what_it_shows(monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pictures, space = [], {}
    monkeypatch.setattr(plt, "show", lambda: pictures.append(plt.gcf()))
    book = json.loads(NOTEBOOK.read_text())
    assert book["nbformat"] == 4
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        shown = len(pictures)
        exec("".join(cell["source"]), space)
        printed = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        assert words(capsys.readouterr().out) == words(printed)
        stored = [output for output in cell["outputs"] if output["output_type"] == "display_data"]
        assert len(stored) == len(pictures) - shown
        assert all(output["data"]["image/png"] for output in stored)
    assert len(pictures) == 2
    plt.close("all")

    assert space["tokenizer"].decode([space["answer"]]) == " Israel"
    assert (space["likeliest"][0] == space["tokens"][0]).mean() > 0.9  # the embeddings say the token itself
    pattern = np.asarray(space["pattern"])
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    assert (np.triu(pattern, 1) == 0).all()


def test_the_notebook_says_nothing_of_the_machine_it_ran_on():
    book = json.loads(NOTEBOOK.read_text())
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert not re.search(r"/(tmp|home|root|usr|Users)/|site-packages|Warning", NOTEBOOK.read_text())
