"""The folder of a run: what lies where, and what may be touched."""

import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxgpt.convert.disk import temporary_sibling, write_json
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.source import complete_steps
from jaxgpt.train.config import command, plain
from jaxgpt.train.distributed import is_first
from jaxgpt.train.run.run_json import Facts
from jaxgpt.train.settings import Settings

FREE_TO_CHANGE = (
    "out", "resume", "resume_anyway", "force", "config", "mesh", "checkpoint_every", "log_every", "keep", "cache",
    "workers", "track", "coordinator", "processes", "process",
)  # fmt: skip
"""Settings that may differ when a run is resumed; all others would make it another run."""


IDENTITY = {
    "sha256": "the contents of --data are others",
    "held_out_sha256": "the contents of --eval-data are others",
    "tokenizer": "the tokenizer is another",
}
"""Facts of the data that make a run what it is, and what is said if they changed."""


class Run:
    """A run on disk, by what lies in its folder; of several processes only the first writes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.writes = is_first()
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
        parent = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"--out: {parent} can't be written to")
        resume = settings.resume or settings.resume_anyway
        if resume and settings.force:
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
        if not resume and not settings.force:
            raise InputError(
                f"--out: {self.folder} holds a run already: --resume goes on with it, --force deletes it and starts "
                "over, --out=OTHER leaves it"
            )
        steps = [path for path in self.checkpoints.glob("*") if path.name.isdecimal()]
        if resume and steps and self.last_step is None:
            raise InputError(
                f"--resume: {steps[0]} is damaged (_CHECKPOINT_METADATA is missing), and there is no other checkpoint; "
                "--force deletes the run and starts over"
            )

    def changes(self, settings: Settings, facts: Facts) -> list[str]:
        """Settings, data and tokenizer that are others than those that the run was started with.

        Raises:
            InputError: there are some, and `--resume-anyway` was not given; or run.json can't be read.
        """
        old = self._read()
        changes = [
            f"--{name.replace('_', '-')} was {old['settings'].get(name, 'unknown')} and is {value}"
            for name, value in plain(settings).items()
            if name not in FREE_TO_CHANGE and old["settings"].get(name, "unknown") != value
        ]
        changes += [what for key, what in IDENTITY.items() if old["data"].get(key) != facts["data"].get(key)]
        if changes and not settings.resume_anyway:
            raise InputError(
                f"--resume: this would be another run than {self.folder} holds: {'; '.join(changes)}. "
                "--resume-anyway goes on with it nevertheless"
            )
        return changes

    def note_changes(self, settings: Settings, facts: Facts, step: int, changes: list[str]) -> None:
        """Puts into run.json that from a step on the run was another."""
        print(f"resumed after step {step} although {'; '.join(changes)}")
        if not self.writes:
            return
        earlier = self._read()["changed"]
        self._write(settings, facts | {"changed": [*earlier, {"step": step, "what": changes}]})

    def _read(self) -> Facts:
        try:
            found = json.loads(self.settings.read_text("utf-8"))
            return {
                "settings": dict(found["settings"]),
                "data": dict(found["data"]),
                "changed": list(found.get("changed", [])),
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"--resume: {self.settings} can't be read ({type(error).__name__}: {error})") from None

    def start(self, settings: Settings, facts: Facts) -> None:
        """Makes the folder, without what is left of an earlier run: `check` has allowed that.

        run.json comes last: a folder without one can neither be resumed nor replaced.
        """
        if not self.writes:
            return
        for path in self.files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.settings:
                path.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(settings, facts)

    def _write(self, settings: Settings, facts: Facts) -> None:
        packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")
        machine = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": [device.device_kind for device in jax.devices()],
            "processes": jax.process_count(),
            "packages": {name: version(name) for name in packages},
        }
        temporary = self.settings.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        write_json(temporary, {"settings": plain(settings), "command": command(settings), **facts, "machine": machine})
        temporary.replace(self.settings)

    def save_tokenizer(self, tokenizer: Any) -> None:
        """Puts the tokenizer beside the checkpoints, if it is not there."""
        if self.writes and not self.tokenizer.exists():
            with temporary_sibling(self.tokenizer) as temporary:
                tokenizer.save_pretrained(temporary)
                temporary.rename(self.tokenizer)
