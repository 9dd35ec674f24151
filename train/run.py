"""The folder of a run: what lies where, and what may be touched."""

import dataclasses
import json
import platform
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from convert.disk import write_json
from convert.errors import InputError
from convert.source import complete_steps
from train.settings import Settings

FREE_TO_CHANGE = ("out", "resume", "force", "mesh", "checkpoint_every", "log_every", "keep", "track")
"""Settings that may differ when a run is resumed; all others would make it another run."""


class Run:
    """A run on disk, by what lies in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = folder / "run.json"
        self.metrics = folder / "metrics.jsonl"
        self.updates = folder / "updates.jsonl"
        self.samples = folder / "samples.md"
        self.report = folder / "report.html"
        self.plots = folder / "plots"
        self.tokenizer = folder / "tokenizer"
        self.checkpoints = folder / "checkpoints"
        self.trackers = folder / "trackers.json"

    @property
    def files(self) -> list[Path]:
        """Everything that a run writes, and that `--force` deletes."""
        return [
            self.settings, self.metrics, self.updates, self.samples, self.report, self.plots, self.tokenizer,
            self.checkpoints, self.trackers, *(self.folder / name for name in ("tensorboard", "wandb", "mlflow")),
        ]  # fmt: skip

    @property
    def last_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        steps = complete_steps(self.folder)
        return steps[-1] if steps else None

    def check(self, settings: Settings) -> None:
        """Refuses a folder that can't be written to, or holds something that must not be resumed or replaced."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--out: {self.folder} is not a folder")
        if settings.resume and settings.force:
            raise InputError("--resume and --force contradict each other")
        for name in ("config.json", "params", "model.safetensors"):
            if (self.folder / name).exists():
                raise InputError(f"--out: {self.folder} is a checkpoint ({name} lies there); choose another folder")
        there = [path for path in self.files if path.exists()]
        if not there:
            return
        if not self.settings.is_file():
            raise InputError(
                f"--out: {self.folder} holds {there[0].name} but no run.json, so that it is no run that can be "
                "resumed or replaced; choose another folder"
            )
        if not settings.resume and not settings.force:
            raise InputError(
                f"--out: {self.folder} holds a run already: --resume goes on with it, --force deletes it and starts "
                "over, --out=OTHER leaves it"
            )
        steps = [path for path in self.checkpoints.glob("*") if path.name.isdecimal()]
        if settings.resume and steps and self.last_step is None:
            raise InputError(
                f"--resume: {steps[0]} is damaged (_CHECKPOINT_METADATA is missing), and there is no other checkpoint; "
                "--force deletes the run and starts over"
            )

    def check_same(self, settings: Settings, digest: str) -> None:
        """Refuses to resume a run with other settings or other data than it was started with."""
        try:
            before = json.loads(self.settings.read_text("utf-8"))
            old, data = dict(before["settings"]), before["data"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"--resume: {self.settings} can't be read ({type(error).__name__}: {error})") from None
        changed = [
            f"--{name.replace('_', '-')} was {old.get(name, 'unknown')} and is {value}"
            for name, value in plain(settings).items()
            if name not in FREE_TO_CHANGE and old.get(name, "unknown") != value
        ]
        changed += ["the tokenised text is another"] * (data != digest)
        if changed:
            raise InputError(f"--resume: this would be another run than {self.folder} holds: {'; '.join(changed)}")

    def start(self, settings: Settings, facts: dict[str, Any]) -> None:
        """Makes the folder, without what is left of an earlier run: `check` has allowed that."""
        for path in self.files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")
        machine = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": [device.device_kind for device in jax.local_devices()],
            "packages": {name: version(name) for name in packages},
        }
        write_json(
            self.settings, {"settings": plain(settings), "command": _command(settings), **facts, "machine": machine}
        )

    def save_tokenizer(self, tokenizer: Any) -> None:
        """Puts the tokenizer beside the checkpoints, if it is not there."""
        if not self.tokenizer.exists():
            tokenizer.save_pretrained(self.tokenizer)


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def _command(settings: Settings) -> str:
    """The command line that makes this run, in full only where it differs from the defaults."""
    words = ["python", "-m", "train"]
    for name, value in plain(settings).items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("resume", "force") or value == plain(Settings())[name]:
            continue
        if isinstance(value, list):
            words += [flag, *value]
        else:
            words.append(flag if value is True else f"{flag}={value}")
    return shlex.join(words)
