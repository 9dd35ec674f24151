"""Experiment trackers, with their own packages: what arrives, what a resume continues, and that none stops a run."""

import json
import math
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest
import runs
from conftest import ROOT, call

import jaxgpt.training.tracking.trackers
from jaxgpt.convert.errors import InputError
from jaxgpt.training.__main__ import main
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.settings import Settings, to_json
from jaxgpt.training.tracking.trackers import Trackers, check_trackers


@pytest.fixture
def new_run(tmp_path, monkeypatch):
    """A run's folder, and trackers for it: as often as the run is resumed. No environment but the test's."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = RunFolder(tmp_path / "my run")
    run.folder.mkdir()

    def start(*names: str, first: int = 0) -> Trackers:
        config = {"settings": to_json(Settings(lr=0.5)), "data": {"source": "a book"}, "phases": [{"start": 0}]}
        return Trackers(names, run.folder, config, first)

    return run, start


@pytest.fixture
def nobody(monkeypatch) -> str:
    """The address of a server that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def events(folder: Path) -> list:
    """What TensorBoard makes of the files: a session's start purges steps of earlier sessions from its own on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    kept: list = []
    for file in sorted(folder.iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]  # after the length, its check sum, the event and its check sum
            if event.session_log.status == SessionLog.START:
                kept = [other for other in kept if other.step < event.step]
            kept.append(event)
    return kept


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [
        (event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.tag == name
    ]


def wandb_records(folder: Path) -> list:
    """The records of a file that `wandb sync` uploads: blocks of 32 KiB, in which records may be split."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def wandb_history(folder: Path) -> list[dict]:
    rows = [record.history.item for record in wandb_records(folder) if record.HasField("history")]
    return [
        {item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in row}
        for row in rows
    ]


# what arrives, and what a resume continues


def test_tensorboard_has_each_step_once_also_after_a_kill_and_a_resume(new_run):
    run, start = new_run
    trackers = start("tensorboard")
    trackers.log(0, {"loss": None, "eval_loss": 8.0})
    for step in (1, 2, 3, 4):
        trackers.log(step, {"loss": 1 / step, "eval_loss": None})
    trackers.text(0, "sample", "The *end*")
    trackers.close(finished=False)
    trackers = start("tensorboard", first=2)
    for step in (3, 4, 5):
        trackers.log(step, {"loss": math.nan if step == 5 else 10.0 * step})
    trackers.close(finished=True)

    folder = run.folder / "tensorboard"
    assert scalars(folder, "eval_loss") == [(0, 8.0)]
    losses = scalars(folder, "loss")
    assert losses[:4] == [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0)]
    assert losses[4][0] == 5
    assert math.isnan(losses[4][1])
    texts = [
        (value.tag, value.tensor.string_val[0].decode()) for e in events(folder) for value in e.summary.value
        if value.tensor.string_val
    ]  # fmt: skip
    assert [tag.split("/")[0] for tag, _ in texts] == ["run", "sample"]
    assert '"lr": 0.5' in texts[0][1]
    assert '"source": "a book"' in texts[0][1]
    assert texts[1][1] == "The *end*"


def test_wandb_offline_keeps_a_run_that_goes_on_under_its_id(new_run, monkeypatch, capfd):
    pytest.importorskip("wandb")
    run, start = new_run
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = start("wandb")
    trackers.log(0, {"loss": None, "eval_loss": 8.0})
    trackers.log(2, {"loss": math.nan})
    trackers.text(2, "sample", "a <b> c")
    trackers.close(finished=False)
    trackers = start("wandb", first=1)
    for step in (2, 3):  # step 2 is there already, and W&B can't rewind
        trackers.log(step, {"loss": float(step)})
    trackers.close(finished=True)

    error = capfd.readouterr().err
    assert f"train: Weights & Biases: offline: wandb sync '{run.folder}'/wandb/offline-run-* uploads it" in error
    assert "warning" not in error
    known_as = json.loads((run.folder / "trackers.json").read_text())["id"]
    before, after = sorted((run.folder / "wandb").glob(f"offline-run-*-{known_as}"), key=os.path.getmtime)
    (first,) = [record.run for record in wandb_records(before) if record.HasField("run")]
    assert (first.run_id, first.project, first.display_name) == (known_as, "jaxgpt", "my run")
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["settings"]["lr"] == 0.5
    rows = wandb_history(before)
    assert [row["_step"] for row in rows] == [0, 2]
    assert rows[0]["eval_loss"] == 8.0
    assert "loss" not in rows[0]
    assert math.isnan(float(rows[1]["loss"]))
    (text,) = (before / "files" / "media" / "html").iterdir()
    assert "a &lt;b&gt; c" in text.read_text()
    assert [(row["_step"], row["loss"]) for row in wandb_history(after)] == [(3, 3.0)]


def test_mlflow_keeps_one_run_in_a_database_beside_the_others(new_run, capfd):
    mlflow = pytest.importorskip("mlflow")
    run, start = new_run
    trackers = start("mlflow")
    trackers.log(0, {"loss": None, "eval_loss": 8.0})
    trackers.log(2, {"loss": math.nan})
    trackers.text(2, "sample", "a text")
    trackers.close(finished=False)
    database = f"sqlite:///{run.folder}/mlflow/mlflow.db"
    client = mlflow.MlflowClient(database)
    experiment = client.get_experiment_by_name("jaxgpt").experiment_id
    assert [found.info.status for found in client.search_runs([experiment])] == ["KILLED"]
    trackers = start("mlflow", first=1)
    for step in (2, 3):  # step 2 is there already, and MLflow can't rewind
        trackers.log(step, {"loss": float(step)})
    trackers.close(finished=True)

    (found,) = client.search_runs([experiment])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "my run")
    assert found.data.params["settings.lr"] == "0.5"
    assert found.data.params["data.source"] == "a book"
    assert found.data.tags["sample 2"] == "a text"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [metric.step for metric in history] == [2, 3]
    assert math.isnan(history[0].value)
    assert history[1].value == 3.0
    error = capfd.readouterr().err
    assert f"mlflow ui --backend-store-uri '{database}'" in error
    assert "warning" not in error


def test_a_broken_trackers_json_begins_another_tracker_run(new_run):
    run, start = new_run
    for content in ("", "[]", '{"id": "../../etc"}', '{"id": 5}', '{"id": "' + "a" * 99 + '"}'):
        run.trackers.write_text(content)
        start("tensorboard").close(finished=True)
        assert len(json.loads(run.trackers.read_text())["id"]) == 16


def test_a_training_run_tells_its_tracker_what_it_writes(small, tmp_path):
    out = tmp_path / "r"
    flags = (f"--model={small}", f"--out={out}", "--freeze=head", *runs.QUICK, "--steps=3", "--track", "tensorboard")
    call("train", *flags)
    lines = runs.metrics(out)
    for name in ("loss", "eval_loss", "lr", "grad_norm"):
        ours = [(line["step"], line[name]) for line in lines if line[name] is not None]
        assert scalars(out / "tensorboard", name) == [(step, pytest.approx(value)) for step, value in ours]
    assert "--track=tensorboard" in json.loads((out / "run.json").read_text())["command"]
    assert not {"wandb", "mlflow"} & {path.name for path in out.iterdir()}


# what goes wrong


def test_what_is_not_installed_is_said_before_anything_is_written(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        jaxgpt.training.tracking.trackers, "_installed", lambda package: package in ("tensorboardX", "mlflow")
    )
    check_trackers(["tensorboard"])
    with pytest.raises(InputError, match=r"^--track: mlflow-skinny has no database of its own: pip install mlflow, or"):
        check_trackers(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_trackers(["mlflow"])
    monkeypatch.setattr(sys, "argv", ["train", f"--model={small}", f"--out={tmp_path}/r", "--track", "wandb"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "train: --track: wandb is not installed: pip install wandb\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_as_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "nothing_here").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not jaxgpt.training.tracking.trackers._installed("nothing_here")


def test_a_tracker_that_does_not_exist_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--track", "nonsense"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "tensorboard" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_server_that_does_not_answer_neither_stops_nor_blocks(new_run, name, nobody, monkeypatch, capfd):
    pytest.importorskip(name)
    run, start = new_run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    monkeypatch.setenv("WANDB_BASE_URL", nobody)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(jaxgpt.training.tracking.trackers, "CLOSE_SECONDS", 10.0)  # enough for TensorBoard
    trackers = start(name, "tensorboard")
    process = trackers._pipes[name].process
    latest = time.monotonic() + 60
    while not any((run.folder / "tensorboard").glob("events*")) and time.monotonic() < latest:
        time.sleep(0.05)  # its imports take their time, too
    for step in range(2000):
        trackers.log(step, {"loss": 1.0, "eval_loss": 2.0})
    assert process.poll() is None  # it still waits for its server, and nobody has waited for it
    trackers.close(finished=True)
    title = {"mlflow": "MLflow", "wandb": "Weights & Biases"}[name]
    assert capfd.readouterr().err == f"train: warning: {title} had not sent everything after 10 s; the rest is lost\n"
    assert len(scalars(run.folder / "tensorboard", "loss")) == 2000
    with pytest.raises(ProcessLookupError, match="No such process"):  # nor what it had started
        os.killpg(process.pid, 0)


def test_a_tracker_that_fails_says_so_once_and_the_others_go_on(new_run, capfd):
    run, start = new_run
    (run.folder / "mlflow").write_text("a file is in the way")
    pytest.importorskip("mlflow")
    trackers = start("mlflow", "tensorboard")
    trackers._pipes["mlflow"].process.wait(60)
    for step in range(3):
        trackers.log(step, {"loss": 1.0})
    trackers.close(finished=True)
    error = capfd.readouterr().err
    assert error.startswith("train: warning: logging to MLflow has stopped: FileExistsError: ")
    assert error.endswith("; training continues\n")
    assert error.count("\n") == 1
    assert len(scalars(run.folder / "tensorboard", "loss")) == 3


def test_a_tracker_that_is_killed_or_stands_still_is_dropped(new_run, capfd):
    _, start = new_run
    trackers = start("tensorboard")
    process = trackers._pipes["tensorboard"].process
    process.kill()
    process.wait()
    for step in range(3):
        trackers.log(step, {"loss": 1.0})
    assert capfd.readouterr().err == (
        "train: warning: logging to TensorBoard has stopped: its process ended with -9; training continues\n"
    )
    trackers = start("tensorboard")
    process = trackers._pipes["tensorboard"].process
    process.send_signal(signal.SIGSTOP)
    for step in range(40_000):
        trackers.log(step, {"loss": 1.0})
    assert (
        capfd.readouterr().err
        == "train: warning: logging to TensorBoard has stopped: its process takes no more lines; training continues\n"
    )
    assert process.returncode == -9
    trackers.close(finished=True)


def test_a_tracker_that_hangs_at_the_end_is_ended(new_run, monkeypatch, capfd):
    """Nothing says that training continues when it is over."""
    monkeypatch.setattr("jaxgpt.training.tracking.trackers.CLOSE_SECONDS", -1.5)  # half a second is waited
    _, start = new_run
    trackers = start("tensorboard")
    process = trackers._pipes["tensorboard"].process
    process.send_signal(signal.SIGSTOP)
    trackers.close(finished=True)
    assert process.returncode == -9
    warning = "train: warning: logging to TensorBoard has stopped: its process hung; what it had not sent is lost\n"
    assert capfd.readouterr().err == warning
    trackers = start("tensorboard")
    process = trackers._pipes["tensorboard"].process
    process.kill()
    process.wait()
    trackers.close(finished=True)
    assert capfd.readouterr().err == warning.replace("hung", "ended with -9")


def test_ctrl_c_is_not_for_trackers(new_run):
    """A terminal sends it to every process of its group."""
    _, start = new_run
    trackers = start("tensorboard")
    assert os.getpgid(trackers._pipes["tensorboard"].process.pid) != os.getpgid(0)
    trackers.close(finished=True)


def test_trackers_import_nothing_heavy():
    source = (ROOT / "train" / "tracking" / "worker.py").read_text()
    assert "import jax" not in source
    assert "from jaxgpt" not in source


@pytest.mark.parametrize("kind", ["a file", "a link to nothing", "a disk that is full"])
def test_a_place_where_nothing_can_be_written_stops_only_the_tracker(new_run, kind, capfd):
    run, start = new_run
    place, limits = run.folder / "tensorboard", resource.getrlimit(resource.RLIMIT_FSIZE)
    if kind == "a file":
        place.write_text("mine")
    elif kind == "a link to nothing":
        place.symlink_to("nothing/there")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        trackers = start("tensorboard")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for step in range(3):
        trackers.log(step, {"loss": 1.0})
        trackers.text(step, "sample", "a text " * 300)
    trackers.close(finished=True)
    said = capfd.readouterr().err
    assert said.startswith("train: warning: logging to TensorBoard has stopped: ")
    assert said.count("\n") == 1, said
    assert not (run.folder / "nothing").exists()
