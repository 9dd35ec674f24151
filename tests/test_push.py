"""`jaxgpt push`, against a hub on this machine: what is there afterwards, what its card says, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import call, run
from hub import Hub
from huggingface_hub import ModelCard
from runs import QUICK

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.mapping import same
from jaxgpt.training.push.card import code, fenced, short


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path / "models")
    (tmp_path / "models").mkdir()
    yield server
    server.shutdown()


def push(hub: Hub, *args: str | Path, token: str = "hf_writes", **env: str):
    home = str(hub.folder.parent / "home")
    env = {
        "HF_ENDPOINT": hub.address, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token, "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    } | env  # fmt: skip
    return run("jaxgpt", "push", *args, check=False, **env)


def saved(hub: Hub, name: str, folder: Path) -> Path:
    for path, content in hub.repos[name]["files"].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_a_run_is_uploaded_whole_with_a_card_of_how_it_was_made(hub, whole_run, tmp_path):
    done = push(hub, whole_run, "me/words", "--license=mit")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/me/words" in done.stdout
    repo = hub.repos["me/words"]
    assert repo["private"]  # by default
    assert repo["commits"] == ["Upload a model with jaxgpt"]
    folder = saved(hub, "me/words", tmp_path / "got")
    ours, theirs = convert.read(whole_run), convert.read(folder)
    assert all(same(ours.params[name], theirs.params[name]) for name in ours.params)
    assert jaxgpt.load_tokenizer(folder)("a king")["input_ids"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder of this machine
    assert "`first1`" in card.text
    first, last = list(jaxgpt.Run(whole_run).evaluations.values())[:: len(jaxgpt.Run(whole_run).evaluations) - 1]
    assert f"{first:.4f} nats per token before, {last:.4f} after step 9" in card.text
    assert "jaxgpt train --model=" in card.text
    assert str(whole_run.parent) not in card.text  # where files were on this machine is nobody's business
    assert str(Path(__file__).parent) not in card.text


def test_nothing_is_overwritten_unless_asked_and_what_is_old_goes(hub, whole_run, tmp_path):
    hub.repos["me/words"] = {"private": False, "commits": [], "files": {"model-00001-of-00002.safetensors": b"old"}}
    refused = push(hub, whole_run, "me/words", "--license=mit")
    assert refused.returncode == 2
    assert "me/words holds 1 files already, model-00001-of-00002.safetensors among them" in refused.stderr
    assert "--force replaces the model" in refused.stderr
    assert hub.repos["me/words"]["commits"] == []
    done = push(hub, whole_run, "me/words", "--license=mit", "--force", "--message=Better", "--dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["me/words"]
    assert repo["commits"] == ["Better"]
    assert "model-00001-of-00002.safetensors" not in repo["files"]
    assert {str(array.dtype) for array in convert.read(saved(hub, "me/words", tmp_path / "got")).tensors.values()} == {
        "bfloat16"
    }


def test_an_adapter_is_uploaded_as_pefts(hub, small, tmp_path):
    out = tmp_path / "lora"
    call("train", f"--model={small}", f"--out={out}", "--freeze=lora:r=2", *QUICK)
    done = push(hub, out, "me/adapter", "--license=apache-2.0", "--to=peft", "--public")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["me/adapter"]
    assert not repo["private"]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= repo["files"].keys()
    assert not any(name.startswith("model") for name in repo["files"])
    card = ModelCard.load(saved(hub, "me/adapter", tmp_path / "got") / "README.md")
    assert card.data.library_name == "peft"
    again = jaxgpt.from_pretrained(small, adapter=tmp_path / "got")
    ours = jaxgpt.named_params(jaxgpt.merge_lora(jaxgpt.from_pretrained(out)))
    theirs = jaxgpt.named_params(jaxgpt.merge_lora(again))
    assert all((np.asarray(ours[name]) == np.asarray(theirs[name])).all() for name in ours)


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        (["me/words"], {}, "--license=LICENSE is missing"),
        (["me/words", "--license=MIT License"], {}, "--license='MIT License': must be the hub's name of a licence"),
        (["words", "--license=mit"], {}, "'words' is not the name of a repository (OWNER/NAME)"),
        (["me/wo rds", "--license=mit"], {}, "is not the name of a repository"),
        (["me/words", "--license=mit"], {"token": ""}, "there is no login to the hub: run `hf auth login`"),
        (["me/words", "--license=mit"], {"token": "hf_reads"}, "): log in with a token that may write there"),
    ],
)
def test_mistakes_are_one_line_and_upload_nothing(hub, whole_run, args, env, says):
    done = push(hub, whole_run, *args, **env)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert hub.repos == {} or hub.repos["me/words"]["commits"] == []


def test_save_pretrained_uploads_too(hub, small, tmp_path, monkeypatch):
    model = jaxgpt.from_pretrained(small)
    with pytest.raises(jaxgpt.InputError, match="needs license="):
        jaxgpt.save_pretrained(model, tmp_path / "out", push_to_hub="me/words")
    with pytest.raises(jaxgpt.InputError, match="works only with dialect='hf'"):
        jaxgpt.save_pretrained(model, tmp_path / "out.pt", dialect="nanogpt", push_to_hub="me/words", license="mit")
    assert not (tmp_path / "out").exists()
    code = (
        "import sys, jaxgpt\nmodel = jaxgpt.from_pretrained(sys.argv[1])\n"
        "jaxgpt.save_pretrained(model, sys.argv[2], push_to_hub='me/words', license='other')"
    )
    (tmp_path / "upload.py").write_text(code)
    env = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_writes"}
    subprocess.run(
        [sys.executable, tmp_path / "upload.py", small, tmp_path / "out"], check=True,
        env=os.environ | env | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
    )  # fmt: skip
    folder = saved(hub, "me/words", tmp_path / "got")
    assert ModelCard.load(folder / "README.md").data.license == "other"
    assert (tmp_path / "out" / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_a_strangers_run_writes_no_markup_into_the_card(whole_run, tmp_path):
    """What run.json says stands in code, in which nothing ends a cell, a line or the code itself."""
    from jaxgpt.convert.json_input import read_json
    from jaxgpt.training.push.card import write_card

    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    stored = read_json(folder / "run.json")
    evil = "x` | <script>alert(1)</script>\n---\nlicense: evil\n```\n# title"
    stored["settings"] |= {"model": evil, "freeze": evil, "batch_size": evil, "data": evil, "prompt": evil}
    stored["data"]["source"] = evil
    (folder / "run.json").write_text(json.dumps(stored))
    write_card(tmp_path / "README.md", jaxgpt.Run(folder), "me/words", "hf", "mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert not [line for line in card.text.splitlines() if line.startswith(("license:", "# title", "---"))]
    assert card.text.count("```") == 4
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert all(row.count("|") == 3 and row.count("`") % 2 == 0 for row in rows)
    assert "`" not in code("a`b")[1:-1]
    assert "```" not in fenced("a```b")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/me/secret/my.txt", "my.txt"),
        ("gpt2", "gpt2"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("hf:owner/data", "hf:owner/data"),
        ("gs://bucket/my.txt", "gs://bucket/my.txt"),
        ("../x/model", "model"),
    ],
)
def test_paths_of_this_machine_are_cut(name, shown):
    assert short(name) == shown
