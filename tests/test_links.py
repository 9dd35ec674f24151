"""Links in a checkpoint: followed within it and in the hub's cache, and nowhere else."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY, call
from runs import without_digests

import jaxgpt
from jaxgpt.convert.errors import InputError
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.settings import Settings

SECRET = "elsewhere"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the bundled model, beside a folder that is none of its business."""
    shutil.copytree(TINY, tmp_path / "in")
    (tmp_path / SECRET).mkdir()
    (tmp_path / SECRET / "secret.txt").write_text("root:x:0:0")
    (tmp_path / SECRET / "secret.json").write_text('{"key": "secret"}')
    return tmp_path / "in"


def link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)


def through_another(folder: Path) -> None:
    link(folder / "inner", f"../{SECRET}/secret.txt")
    link(folder / "merges.txt", "inner")


def a_folder(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder.parent / SECRET / "tokenizer.json")
    (folder / "tokenizer").symlink_to(f"../{SECRET}")


def a_disguise(folder: Path) -> None:
    """Looks like the hub's cache, whose blobs are files."""
    (folder.parent / "blobs").mkdir()
    link(folder.parent / "blobs" / "1", f"../{SECRET}/secret.txt")
    link(folder / "merges.txt", "../blobs/1")


LEADS_OUT = {
    "merges": lambda folder: link(folder / "merges.txt", f"../{SECRET}/secret.txt"),
    "absolute": lambda folder: link(folder / "added_tokens.json", "/proc/self/environ"),
    "through another link": through_another,
    "a folder": a_folder,
    "a disguise": a_disguise,
    "generation_config": lambda folder: link(folder / "generation_config.json", f"../{SECRET}/secret.json"),
    "config": lambda folder: link(folder / "config.json", f"../{SECRET}/secret.json"),
}


@pytest.mark.bounded
@pytest.mark.parametrize("name", LEADS_OUT)
def test_a_link_that_leads_out_of_a_checkpoint_is_refused_by_name(name, folder, tmp_path):
    LEADS_OUT[name](folder)
    done = call("convert", folder, tmp_path / "out", "--to=hf", check=False)
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    assert "is a link to" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_made_of_nothing_elsewhere(folder):
    link(folder / "additional_chat_templates" / "mine.jinja", f"../../{SECRET}/secret.txt")
    with pytest.raises(InputError, match="is a link to"):
        jaxgpt.load_tokenizer(folder)


def test_links_within_a_checkpoint_and_to_it_are_followed(folder, tmp_path):
    (folder / "files").mkdir()
    (folder / "tokenizer_config.json").rename(folder / "files" / "1.json")
    link(folder / "tokenizer_config.json", "files/1.json")
    (tmp_path / "alias").symlink_to("in")
    assert len(jaxgpt.load_tokenizer(tmp_path / "alias")) == 4096
    call("convert", tmp_path / "alias", tmp_path / "out", "--to=hf")
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    assert not (tmp_path / "out" / "tokenizer_config.json").is_symlink()


def test_weights_may_lie_elsewhere(folder, tmp_path):
    """Nothing but tensors is read of them."""
    (folder / "model.safetensors").rename(tmp_path / SECRET / "1")
    link(folder / "model.safetensors", f"../{SECRET}/1")
    assert jaxgpt.convert.read(folder).config.n_layer > 0


def test_the_cache_of_the_hub_is_followed_also_by_another_name(folder, tmp_path):
    repo = tmp_path / "hub" / "models--a--b"
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, file in enumerate(folder.iterdir()):
        shutil.copy(file, repo / "blobs" / str(i))
        os.symlink(f"../../blobs/{i}", snapshot / file.name)
    (tmp_path / "cache").symlink_to("hub")
    for path in (snapshot, tmp_path / "cache" / "models--a--b" / "snapshots" / "0123"):
        assert len(jaxgpt.load_tokenizer(path)) == 4096
        call("convert", path, tmp_path / "out", "--to=hf", "--force")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["n_layer"] > 0


IN_A_RUN = [
    "run.json", "metrics.jsonl", "updates.jsonl", "samples.md", "report.html", "trackers.json", "checkpoints", "plots",
    "tokenizer", "tensorboard", "mlflow", "wandb/last_step", "mlflow/mlflow.db", "checkpoints/9", "plots/loss.svg",
]  # fmt: skip


@pytest.mark.parametrize("target", ["elsewhere", "nothing", "r"])
def test_nothing_is_written_through_a_link_in_a_run_that_is_resumed(whole_run, tmp_path, target):
    """The run may be a stranger's; links of its own, such as W&B's, stay."""
    out = Path(shutil.copytree(whole_run, tmp_path / "r"))
    (tmp_path / "elsewhere").mkdir()
    folder, flags = RunFolder(out), Settings(out=out, resume=True)
    folder.check(flags)
    (out / "wandb" / "run-1").mkdir(parents=True)
    (out / "wandb" / "latest-run").symlink_to("run-1")
    folder.check(flags)
    for name in IN_A_RUN:
        path = out / name
        path.parent.mkdir(exist_ok=True)
        aside = path.rename(tmp_path / "aside") if path.exists() else None
        path.symlink_to(tmp_path / target if target != "r" else path.name)  # the last one is a link to itself
        if target != "r":
            with pytest.raises(InputError, match=re.escape(f"{path} is a link to {tmp_path / target}, outside of")):
                folder.check(flags)
        path.unlink()
        if aside is not None:
            aside.rename(path)
    folder.check(flags)


def test_what_a_kill_left_is_not_written_through_either(whole_run, tmp_path):
    out = Path(shutil.copytree(whole_run, tmp_path / "r"))
    (tmp_path / "mine").write_text("mine")
    for name in ("trackers.tmp", "metrics.tmp", "run.tmp"):
        (out / name).symlink_to(tmp_path / "mine")
    RunFolder(out).go_on()
    assert not [path for path in out.iterdir() if path.is_symlink()]
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.bounded
@pytest.mark.parametrize("name", ["params/ln_f.bias", "params", "config", "config/metadata", "a chunk"])
def test_links_in_an_orbax_checkpoint_lead_nowhere(tmp_path, name):
    jaxgpt.save(jaxgpt.from_pretrained("tiny"), tmp_path / "model")
    without_digests(tmp_path / "model")
    path = tmp_path / "model" / name
    if name == "a chunk":
        path = max((tmp_path / "model" / "params").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is a link|is no file"):
        jaxgpt.load(tmp_path / "model")
