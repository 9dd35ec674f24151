"""Checkpoints by name, from a server on this machine that speaks the hub's download protocol."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, random_hf, run
from hub import Hub

from jaxgpt import convert
from jaxgpt.convert.mapping import same


@pytest.fixture
def hub(tmp_path):
    """The hub: `gpt2` (safetensors, two revisions, and files nobody needs), `old/gpt2` (a `.bin`), `sharded`."""
    models = tmp_path / "models"
    random_hf().save_pretrained(models / "gpt2" / "main")
    random_hf(seed=1).save_pretrained(models / "gpt2" / "v1")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, models / "gpt2" / "main" / name)
    for name in ("tf_model.h5", "pytorch_model.bin", "onnx/model.onnx", "64.tflite"):
        (models / "gpt2" / "main" / name).parent.mkdir(exist_ok=True)
        (models / "gpt2" / "main" / name).write_bytes(bytes(1000))
    old = models / "old" / "gpt2" / "main"
    random_hf().config.save_pretrained(old)
    torch.save(random_hf().state_dict(), old / "pytorch_model.bin")
    random_hf().save_pretrained(models / "sharded" / "main", max_shard_size="20KB")
    server = Hub(models)
    yield server
    server.shutdown()


def convert_from(hub: Hub, name: str, out: Path, **env: str):
    home = str(out.parent / "home")
    env = {"HF_ENDPOINT": hub.address, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"} | env
    return run("convert", name, out, "--to=hf", check=False, **env)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("gpt2", "gpt2/main"), ("gpt2@v1", "gpt2/v1"), ("old/gpt2", "old/gpt2/main"), ("sharded", "sharded/main")],
)
def test_a_checkpoint_by_name_and_revision_is_bitwise_the_hubs(hub, tmp_path, name, folder):
    done = convert_from(hub, name, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ours, theirs = convert.read(tmp_path / "out"), convert.read(hub.folder / folder)
    assert all(same(ours.params[parameter], theirs.params[parameter]) for parameter in theirs.params)
    fetched = {path.rsplit("/", 1)[-1] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert not fetched & {"tf_model.h5", "model.onnx", "64.tflite"}
    assert ("pytorch_model.bin" in fetched) == (name == "old/gpt2")
    assert (tmp_path / "out" / "tokenizer.json").is_file() == (name == "gpt2")


def test_what_was_downloaded_once_works_offline(hub, tmp_path):
    assert convert_from(hub, "gpt2", tmp_path / "first").returncode == 0
    asked = len(hub.requests)
    assert convert_from(hub, "gpt2", tmp_path / "second", HF_HUB_OFFLINE="1").returncode == 0
    assert len(hub.requests) == asked
    never = convert_from(hub, "old/gpt2", tmp_path / "third", HF_HUB_OFFLINE="1")
    assert (never.returncode, never.stderr.count("\n")) == (2, 1)
    assert "the hub did not provide it" in never.stderr


@pytest.mark.parametrize("name", ["nobody/nothing", "gpt2@v9"])
def test_what_the_hub_does_not_have_is_said_in_one_line(hub, tmp_path, name):
    done = convert_from(hub, name, tmp_path / "out")
    assert done.returncode == 2
    assert f"convert: {name}: no such file or folder, and the hub did not provide it" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_from_pretrained_and_its_tokenizer_by_name(hub, tmp_path):
    code = "import jaxgpt; print(len(jaxgpt.load_tokenizer('gpt2')), jaxgpt.from_pretrained('gpt2').config.n_embd)"
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["4096", "36"], done.stderr


def test_a_data_set_by_name_is_read_by_splits(hub, tmp_path):
    talks = hub.folder / "datasets" / "me" / "talks" / "main"
    talks.mkdir(parents=True)
    for split, n in (("train", 20), ("test", 5)):
        (talks / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(n)))
    code = """
import jaxgpt
from jaxgpt.data.corpus import tokenise
tokenizer = jaxgpt.load_tokenizer("tiny")
corpus = tokenise("hf:me/talks", tokenizer, cache="cache")
print(len(corpus.ends), len(corpus.held_out.ends), tokenizer.decode(corpus.tokens[:5]), corpus.origin(0))
try:
    tokenise("hf:me/nothing", tokenizer, cache="cache")
except jaxgpt.InputError as error:
    print(error)
"""
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "20 5 train 0<|endoftext|> hf:me/talks:train, record 1"
    assert re.fullmatch(r"hf:me/nothing can't be read: \w+NotFoundError: .+", second)
