"""The folder of a run: which file is where, and what may be touched."""

import os
import platform
import re
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxgpt.convert.command_line.console import say
from jaxgpt.convert.disk import remove, temporary_sibling
from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.distributed import is_first
from jaxgpt.training.run.lock import NAME as LOCK
from jaxgpt.training.run.lock import RunLock
from jaxgpt.training.run.place import Place
from jaxgpt.training.run.run_json import IDENTITY, NAME, RunInfo, refusal
from jaxgpt.training.settings import Settings, changed_settings, stored_settings, to_json

LEFTOVER = re.compile(r"(run|metrics|updates|samples|trackers)\.tmp|\.(tokenizer|report\.html)\.[0-9a-f]{8}\.tmp")
"""Names under which files and folders are written until they are whole; a kill or a full disk leaves them."""


class RunFolder:
    """A run on disk; of several processes only the first writes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.is_writer = is_first()
        self.is_begun = False
        """True once something in the folder is changed."""
        self._lock = RunLock(folder)
        self.place = Place(folder)
        self.run_json = folder / NAME
        self.metrics = folder / "metrics.jsonl"
        self.updates = folder / "updates.jsonl"
        self.samples = folder / "samples.md"
        self.report = folder / "report.html"
        self.plots = folder / "plots"
        self.tokenizer = folder / "tokenizer"
        self.checkpoints = folder / "checkpoints"
        self.trackers = folder / "trackers.json"
        self.log = folder / "run.log"

    @property
    def files(self) -> list[Path]:
        """Everything that a run writes, and that `--force` deletes."""
        return [
            self.run_json, self.metrics, self.updates, self.samples, self.report, self.log, self.plots,
            self.tokenizer, self.checkpoints, self.trackers,
            *(self.folder / name for name in ("tensorboard", "wandb", "mlflow")),
        ]  # fmt: skip

    @property
    def last_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        steps = complete_steps(self.folder)
        return steps[-1] if steps else None

    def check(self, settings: Settings) -> None:
        """Refuse a folder that can't be written to, or holds something that must not be resumed or replaced."""
        if self.folder.absolute().resolve().parent == self.folder.absolute().resolve():
            raise InputError(f"--out: {self.folder} is the root of a disk: name a folder in it")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--out: {self.folder} is not a folder")
        parent = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"--out: {parent} can't be written to")
        resumes = settings.resume or settings.resume_anyway
        if resumes and settings.force:
            raise InputError("--resume and --force contradict each other")
        for name in ("config.json", "params", "model.safetensors"):
            if (self.folder / name).exists():
                raise InputError(f"--out: {self.folder} is a checkpoint (it holds {name}); choose another folder")
        there = [path for path in self.files if path.exists() or path.is_symlink()]
        if not there:
            return
        if resumes:
            self._refuse_links(there)
        if not self.run_json.is_file():
            raise InputError(
                f"--out: {self.folder} holds {there[0].name} but no run.json: it can't be resumed or "
                "replaced; choose another folder"
            )
        if not resumes and not settings.force:
            if (self.folder / LOCK).exists():
                self.lock()  # which says so if the run still goes on
            raise InputError(
                f"--out: {self.folder} holds a run already: --resume goes on with it, --force deletes it and starts "
                "over, --out=OTHER leaves it"
            )
        steps = [path for path in self.checkpoints.glob("*") if path.name.isdecimal()]
        if resumes and steps and self.last_step is None:
            raise InputError(
                f"--resume: {steps[0]} is damaged (_CHECKPOINT_METADATA is missing), and there is no other checkpoint; "
                "--force deletes the run and starts over"
            )

    def _refuse_links(self, paths: list[Path]) -> None:
        """Refuse a run, which may be a stranger's, of which something that is written to is elsewhere by a link."""
        inside = Path(os.path.realpath(self.folder))
        for path in paths:
            for link in filter(Path.is_symlink, (path, *(path.iterdir() if path.is_dir() else ()))):
                if not (target := Path(os.path.realpath(link))).is_relative_to(inside):
                    raise InputError(
                        f"--resume: {link} is a link to {target}, outside of {self.folder}: nothing is written through "
                        "links; replace the link by what it leads to"
                    )

    def lock(self) -> None:
        """Lock the folder for this process, if it is there, until the process ends.

        Raises:
            InputError: another process holds it.
        """
        if self.is_writer:
            self._lock.take()

    def unlock(self) -> None:
        """Let other processes have the folder."""
        self.place.forget()
        self._lock.give_back()

    def read(self) -> RunInfo:
        """Read run.json.

        Raises:
            InputError: it can't be read.
        """
        with about("--resume"):
            return RunInfo.read(self.folder)

    def changes(self, settings: Settings, info: RunInfo) -> list[str]:
        """Return which settings, data and tokenizer differ from those that the run was started with.

        Raises:
            InputError: there are some, and `--resume-anyway` was not given; or run.json can't be read.
        """
        stored = self.read()
        with about("--resume"):
            earlier = stored_settings(stored.settings)
        now = {name: getattr(settings, name) for name in to_json(settings)}
        changes = changed_settings(earlier, now)
        before, after = asdict(stored.data), asdict(info.data)
        changes += [says for name, says in IDENTITY.items() if before[name] != after[name]]
        if changes and not settings.resume_anyway:
            raise InputError(refusal(self.folder, changes))
        return changes

    def note_changes(self, info: RunInfo, step: int, changes: list[str]) -> None:
        """Write into run.json that from a step on the run was another."""
        say(f"resumed after step {step} with changes: {'; '.join(changes)}")
        if not self.is_writer:
            return
        earlier = self.read().changed
        replace(info, changed=[*earlier, {"step": step, "what": changes}], machine=_machine()).write(self.folder)

    def note_failure(self, step: int, what: str) -> None:
        """Write into run.json that training broke off, for the report."""
        if self.is_writer:
            replace(self.read(), failure={"step": step, "what": what}).write(self.folder)

    def start(self, info: RunInfo, settings: Settings) -> None:
        """Make the folder, without what is left of an earlier run.

        Whether that may go is looked at again, under the lock: another run may have come since the first `check`.
        run.json comes last: a folder without one can neither be resumed nor replaced.

        Raises:
            InputError: as `check` and `lock`.
        """
        if not self.is_writer:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock()
        self.check(settings)
        self.is_begun = True
        for path in self.files:
            if path != self.run_json:
                remove(path)
        self._remove_leftovers()
        replace(info, machine=_machine()).write(self.folder)

    def go_on(self) -> None:
        """Make ready to write where an earlier process stopped."""
        self.is_begun = True
        if self.is_writer:
            self._remove_leftovers()
            self.report.unlink(missing_ok=True)  # it would tell of less
            if (info := self.read()).failure:
                replace(info, failure={}).write(self.folder)

    def _remove_leftovers(self) -> None:
        for path in self.folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                remove(path)

    def save_tokenizer(self, tokenizer: Any) -> None:
        """Write the tokenizer beside the checkpoints, if it is not there."""
        if self.is_writer and not self.tokenizer.exists():
            with temporary_sibling(self.tokenizer) as temporary:
                try:
                    tokenizer.save_pretrained(temporary)
                except Exception as error:  # of the tokenizers package, which raises no OSError
                    if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
                        raise
                    raise OSError(int(found[1]), os.strerror(int(found[1])), str(self.tokenizer)) from None
                temporary.rename(self.tokenizer)


def _machine() -> dict[str, Any]:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "packages": {name: version(name) for name in packages},
    }
