"""python -m jaxgpt.training.tracking.worker NAME: pass JSON objects, one a line, from standard input to one tracker."""

import html
import json
import os
import queue
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow"}
"""Titles of the trackers, by their names on the command line."""

DROPPED = 3
"""Exit code of a tracker that failed and has printed a warning."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, folder: Path, id: str, config: dict[str, Any], first: int, say: Any):
        sys.modules["torch"] = None  # type: ignore[assignment]  # tensorboardX would import it, which takes two seconds
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._summary = Event, summary
        events = folder / "tensorboard"
        is_new = not events.exists()
        events.mkdir(exist_ok=True)
        # a unique name, even if another file was begun in this second
        self._file = EventsWriter(str(events / "events"), f".{os.getpid()}.{first}")
        if not is_new:  # TensorBoard then ignores later steps of earlier files
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=first + 1, session_log=start))
        else:
            code = json.dumps(config, indent=2).replace("\n", "\n    ")
            self.text(first, "run", f"    {code}")

    def log(self, step: int, values: dict[str, float]) -> None:
        one = self._summary.scalar("", 0)
        del one.value[:]
        for name, value in values.items():
            one.MergeFrom(self._summary.scalar(name, value))
        self._write(step, one)

    def text(self, step: int, name: str, text: str) -> None:
        self._write(step, self._summary.text(name, text))

    def close(self, finished: bool) -> None:
        self._file.close()

    def _write(self, step: int, summary: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()


class WandB:
    """A run of Weights & Biases, with its files in the run's folder `wandb`."""

    def __init__(self, folder: Path, id: str, config: dict[str, Any], first: int, say: Any):
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxgpt"), name=folder.name, id=id, resume="allow",
            dir=str(folder), config=config, allow_val_change=True, save_code=False,
            settings=wandb.Settings(console="off", x_stats_pid=os.getppid()),
        )  # fmt: skip
        offline = f"offline: wandb sync {shlex.quote(str(folder))}/wandb/offline-run-* uploads it"
        say(f"Weights & Biases: {self._run.url or offline}")
        # it can't rewind, and offline it does not know the last logged step
        self._last = folder / "wandb" / "last_step"
        stored = self._last.read_text("utf-8") if self._last.exists() else ""
        self._from = max(self._run.step, int(stored) + 1 if stored.isdecimal() else 0)

    def log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._from:
            self._run.log(values, step=step)
            self._last.write_text(str(step), "utf-8")

    def text(self, step: int, name: str, text: str) -> None:
        self.log(step, {name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or, by default, in the run's folder `mlflow`."""

    def __init__(self, folder: Path, id: str, config: dict[str, Any], first: int, say: Any):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, own = Metric, folder / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            own.mkdir(exist_ok=True)
            uri = f"sqlite:///{own}/mlflow.db"
            say(f"MLflow: mlflow ui --backend-store-uri {shlex.quote(uri)}")
        self._client = client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxgpt")
        if experiment := client.get_experiment_by_name(name):
            experiment_id = experiment.experiment_id
        else:
            place = None if "MLFLOW_TRACKING_URI" in os.environ else str(own / "artifacts")
            experiment_id = client.create_experiment(name, artifact_location=place)
        known = client.search_runs([experiment_id], f"tags.`jaxgpt.id` = '{id}'")
        if known:  # it can't rewind
            self._id, names = known[0].info.run_id, known[0].data.metrics
            steps = [metric.step for name in names for metric in client.get_metric_history(self._id, name)]
            self._from = max(steps, default=-1) + 1
            client.update_run(self._id, status="RUNNING")
        else:
            self._id = client.create_run(experiment_id, tags={"jaxgpt.id": id}, run_name=folder.name).info.run_id
            self._from = 0
            params = [Param(key, text[:500]) for key, text in flat(config).items()]
            for i in range(0, len(params), 100):  # MLflow's limit
                client.log_batch(self._id, params=params[i : i + 100])

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self._from:
            now = int(time.time() * 1000)
            self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in values.items()])

    def text(self, step: int, name: str, text: str) -> None:
        self._client.set_tag(self._id, f"{name} {step}", text[:5000])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested dicts to dotted names and texts."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return found


def main() -> None:
    """Read standard input to its end, and pass the objects on in order, however slow the tracker is."""
    name, title = sys.argv[1], TITLES[sys.argv[1]]
    parent = os.getppid()
    # packages print to both streams; only the tracker's address and its warning are for the user
    ours = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(line: str) -> None:
        os.write(ours, f"train: {line}\n".encode())

    lines: queue.Queue[str | None] = queue.Queue()
    start = json.loads(sys.stdin.readline())
    close_seconds = start.pop("close_seconds")

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        time.sleep(close_seconds)
        say(f"warning: {title} had not sent everything after {close_seconds:g} s; the rest is lost")
        if os.getppid() != parent:  # training is gone, so that nobody else kills the children
            os.killpg(0, signal.SIGKILL)
        os._exit(DROPPED)

    threading.Thread(target=read, daemon=True).start()
    try:
        kinds: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
        tracker = kinds[name](Path(start.pop("folder")), **start, say=say)
        finished = False  # training may be killed before it says so
        while (line := lines.get()) is not None:
            if not line.endswith("\n"):  # training was killed while writing
                break
            message = json.loads(line)
            if "values" in message:
                tracker.log(message["step"], message["values"])
            elif "text" in message:
                tracker.text(message["step"], message["name"], message["text"])
            else:
                finished = message["finished"]
        tracker.close(finished)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        say(f"warning: logging to {title} has stopped: {reason}; training continues")
        os._exit(DROPPED)  # without exit handlers, which may wait for a server
    os._exit(0)


if __name__ == "__main__":
    main()
