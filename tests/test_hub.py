"""Checkpoints by name, from a server on this machine that speaks the hub's download protocol."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import torch
from conftest import ROOT, TINY, random_hf, run

from jaxgpt import convert
from jaxgpt.convert.mapping import same

REVISIONS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(ThreadingHTTPServer):
    """Serves `folder/NAME/REVISION/FILE` as models, and keeps a list of what was asked for."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests = folder, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """`/api/models/NAME/revision/REV` lists a model's files, `/NAME/resolve/COMMIT/FILE` is one of them.

    Data sets have `/api/datasets/` and `/datasets/NAME/resolve/`.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        if found := re.fullmatch(r"/api/(?:models|(datasets))/(.+?)(?:/(revision|tree)/([^/]+)(/.*)?)?", path):
            name = "/".join(filter(None, found.groups()[:2]))
            return self.listing(name, found[3], found[4] or "main", body)
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commits = {commit: revision for revision, commit in REVISIONS.items()}
        target = self.server.folder / name / commits.get(revision, revision) / file
        if not file or not target.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        content = target.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": REVISIONS.get(revision, revision)}
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            part = content[int(begin) : int(end) + 1 if end else None]
            headers["Content-Range"] = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}"
            return self.send(206, part, headers, body)
        self.send(200, content, headers, body)

    def listing(self, name: str, kind: str, revision: str, body: bool):
        revision = {commit: revision for revision, commit in REVISIONS.items()}.get(revision, revision)
        folder = self.server.folder / name / revision
        if not folder.is_dir():
            code = "RevisionNotFound" if folder.parent.is_dir() else "RepoNotFound"
            return self.send(404, b"{}", {"X-Error-Code": code}, body)
        files = [(file, str(file.relative_to(folder))) for file in sorted(folder.rglob("*")) if file.is_file()]
        if kind == "tree":
            answer = [{"type": "file", "oid": "0" * 40, "size": f.stat().st_size, "path": path} for f, path in files]
        else:
            siblings = [{"rfilename": path} for _, path in files]
            answer = {
                "id": name.removeprefix("datasets/"),
                "sha": REVISIONS[revision],
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


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
