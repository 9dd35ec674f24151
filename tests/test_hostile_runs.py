"""A run of a stranger's: what its run.json and its tokenizer say is data, refused or ignored, and never an order."""

import hashlib
import io
import json
import shutil
import socket
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import call
from runs import WORDS

import jaxgpt
from jaxgpt.convert.command_line.flags import values_of
from jaxgpt.training.command import read_command
from jaxgpt.training.settings import Settings, trait

pytestmark = pytest.mark.bounded


def digests(folder: Path) -> dict[str, str]:
    """Return what every file of a folder holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def listener():
    """A port of this machine, to which nothing may connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture(autouse=True)
def no_connections(monkeypatch):
    def connect(*_):
        raise AssertionError("a socket is connected")

    monkeypatch.setattr(socket.socket, "connect", connect)


def change(run: Path, **settings) -> None:
    """Let the run.json of a run say other settings."""
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"settings": told["settings"] | settings}))


REFUSED: dict[str, tuple[dict, str]] = {
    "a flag beside a factor": ({"lr_scale": ["ln_f.*=1.0", "--force"]}, "--lr-scale"),
    "a flag as a factor": ({"lr_scale": ["--resume-anyway"]}, "--lr-scale"),
    "a flag as a strategy": ({"freeze": "regex:--force"}, "--freeze"),
    "a flag as a model": ({"model": "--force"}, "--force"),
    "a flag as data": ({"data": "--force"}, "--force"),
    "a flag as a mesh": ({"mesh": "--force"}, "--force"),
    "a flag as a tracker": ({"track": ["--force"]}, "--track: must be"),
    "a flag as a key": ({"--force": True}, "unknown settings: --force"),
    "an unknown key": ({"exec": "id"}, "unknown settings: exec"),
    "a text for a number": ({"steps": "9 --force"}, "steps is of the wrong type"),
    "a number for a text": ({"model": 7}, "model is of the wrong type"),
    "a text for a list": ({"lr_scale": "--force"}, "lr_scale must be a list"),
    "a list for a path": ({"cache": ["--force"]}, "cache is of the wrong type"),
}
IGNORED = {"force": True, "resume_anyway": True, "compile_only": True, "topology": "h100:8", "config": "/etc"}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_no_settings_are_refused_and_every_byte_stays(name, run, tmp_path):
    """Given as a configuration, of a run that is there and of another, and as a run that is to go on."""
    settings, message = REFUSED[name]
    change(run, **settings, out=str(run))
    before = digests(run)
    fresh = tmp_path / "fresh"
    for flags in ([f"--config={run}"], [f"--config={run}/run.json", f"--out={fresh}"], ["--resume", run]):
        done = call("train", *flags, check=False)
        if flags[0] == "--resume" and settings.keys() & {"model", "mesh"} and done.returncode == 0:
            # neither is needed for a run that is finished: its checkpoint says where its base is
            assert f"{run} is finished" in done.stdout
        else:
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert message in done.stderr or flags == [f"--config={run}"]
        assert digests(run) == before
        assert not fresh.exists()


def test_what_permits_destruction_or_addresses_machines_is_not_taken_from_a_run(run, listener, tmp_path, monkeypatch):
    """A finished run that is resumed says so, and one that is there already is not replaced."""
    monkeypatch.setattr("jax.distributed.initialize", None)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    addresses = {"coordinator": f"127.0.0.1:{listener}", "processes": 2, "process": 1}
    change(run, **IGNORED, **addresses, resume=str(other), out=str(other))
    before = digests(tmp_path)
    for flags in ([f"--config={run}"], [f"--config={run}/run.json", f"--out={other}"]):
        done = call("train", *flags, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"{other} holds a run already" in done.stderr
        assert digests(tmp_path) == before
    assert f"{run} is finished" in call("train", "--resume", run, samples=False).stdout
    assert digests(tmp_path) == before


EVIL = """
import pathlib
pathlib.Path({!r}).touch()
class Evil:
    def __init__(self, *args, **how): raise ValueError
    from_pretrained = __init__
"""


@pytest.mark.parametrize("local", ["Evil", "PreTrainedTokenizerFast"])
def test_code_in_the_tokenizer_of_a_run_never_runs_nor_is_asked_about(run, tmp_path, local, monkeypatch):
    told = {"tokenizer_class": local, "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (run / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(told))
    for folder in (run, run / "tokenizer", run / "checkpoints" / "9"):
        (folder / "evil.py").write_text(EVIL.format(str(tmp_path / "RAN")))
        (folder / "config.json").write_text(json.dumps(told)) if folder.name == "tokenizer" else None
    monkeypatch.setattr("builtins.input", None)
    commands = [
        ("convert", run, tmp_path / "hf", "--to=hf"),
        ("jaxgpt", "generate", run, "--max-new-tokens=1"),
        ("jaxgpt", "eval", run, f"--data={WORDS}"),
        ("train", f"--model={run}", f"--out={tmp_path}/other", f"--data={WORDS}", "--steps=1"),
    ]
    if local != "Evil":  # it can be read, and all that follows takes its time
        commands = commands[:2]
    for command in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # whoever is asked says yes
        done = call(*command, check=False)
        assert done.returncode in (0, 2), done.stderr
        assert done.returncode == 0 or done.stderr.count("\n") == 1, done.stderr
        assert "[y/N]" not in done.stdout + done.stderr
        assert not [*tmp_path.rglob("RAN")], command


VALUES = [None, True, 3, 10**30, float("nan"), "", "--force", "a\0b", "9" * 5000, [[]], ["--force"], {"a": []}]


@pytest.mark.parametrize("setting", [field.name for field in fields(Settings)])
def test_a_setting_of_any_kind_is_taken_as_its_own_type_or_refused(setting, tmp_path):
    path, usual, taken, refusals = tmp_path / "run.json", getattr(Settings(), setting), [], []
    for value in VALUES:
        path.write_text(json.dumps({"settings": {setting: value}}))
        try:
            settings = read_command([f"--config={path}"])
        except jaxgpt.InputError as error:
            refusals.append(str(error))
        else:
            taken.append((value, getattr(settings, setting)))
    assert all("\n" not in text and len(text) < 5000 for text in refusals)
    if not trait("is_repeated")[setting]:
        assert {str(found) for _, found in taken} == {str(path) if setting == "config" else str(usual)}
        return
    kinds = values_of(Settings)[setting]
    for value, found in taken:
        items = found if kinds.is_tuple else () if found is None and kinds.may_be_none else (found,)
        assert all(type(item) is kinds.of or (kinds.of is Path and isinstance(item, Path)) for item in items), value
        assert value != "" or kinds.of is not Path
