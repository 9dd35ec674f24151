"""The folder of a run: what lies where, what may be touched, its metrics and its checkpoints."""

import dataclasses
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from orbax import checkpoint as ocp

from convert.config import GPTConfig
from convert.errors import InputError
from convert.formats import orbax
from convert.source import complete_steps
from train.settings import Settings
from train.step import State

FREE_TO_CHANGE = ("out", "resume", "force", "mesh", "checkpoint_every", "log_every", "keep")
"""Settings that may differ when a run is resumed; all others would make it another run."""


class Run:
    """A run on disk: `run.json`, `metrics.jsonl`, `samples.md`, `tokenizer/` and `checkpoints/<step>/`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = folder / "run.json"
        self.metrics = folder / "metrics.jsonl"
        self.samples = folder / "samples.md"
        self.tokenizer = folder / "tokenizer"
        self.checkpoints = folder / "checkpoints"

    @property
    def files(self) -> list[Path]:
        """Everything that a run writes, and that `--force` deletes."""
        return [self.settings, self.metrics, self.samples, self.tokenizer, self.checkpoints]

    @property
    def last_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        steps = complete_steps(self.folder)
        return steps[-1] if steps else None

    def check(self, settings: Settings) -> None:
        """Refuses a folder that can't be written to, or that holds a run and was not to be resumed or replaced."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--out: {self.folder} is not a folder")
        there = [path for path in self.files if path.exists()]
        if there and not settings.resume and not settings.force:
            raise InputError(
                f"--out: {self.folder} holds a run already ({there[0].name}): "
                "--resume goes on with it, --force deletes it and starts over, --out=OTHER leaves it"
            )
        if settings.resume and settings.force:
            raise InputError("--resume and --force contradict each other")

    def check_same(self, settings: Settings, digest: str) -> None:
        """Refuses to resume a run with other settings or other data than it was started with."""
        try:
            before = json.loads(self.settings.read_text("utf-8"))
            changed = [
                f"--{name.replace('_', '-')} was {before['settings'][name]} and is {value}"
                for name, value in _plain(settings).items()
                if name not in FREE_TO_CHANGE and before["settings"][name] != value
            ]
            changed += ["the tokenised text is another"] * (before["data"]["sha256"] != digest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"--resume: {self.settings} can't be read ({error})") from None
        if changed:
            raise InputError(f"--resume: this would be another run than {self.folder} holds: {'; '.join(changed)}")

    def start(self, settings: Settings, tokenizer: Any, facts: dict[str, Any]) -> None:
        """Makes the folder, without what an earlier run left where `--force` says so."""
        for path in self.files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(self.tokenizer)
        packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")
        machine = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": [device.device_kind for device in jax.local_devices()],
            "packages": {name: version(name) for name in packages},
        }
        self.settings.write_text(
            json.dumps({"settings": _plain(settings), **facts, "machine": machine}, indent=2) + "\n"
        )

    def truncate_metrics(self, step: int) -> None:
        """Forgets lines of steps after `step`, which will be written again, and a line that was cut off."""
        lines = self.metrics.read_text("utf-8").splitlines() if self.metrics.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), "utf-8")
        temporary.replace(self.metrics)

    def write_sample(self, step: int, text: str) -> None:
        """Puts a text into samples.md, in the place of one of the same step or later."""
        title = f"## After {step} steps" if step else "## Before training"
        earlier = self.samples.read_text("utf-8") if step and self.samples.exists() else ""
        earlier = earlier.split("\n## After ")[0].rstrip("\n")
        self.samples.write_text("\n\n".join(filter(None, [earlier, title, text])) + "\n", "utf-8")

    def log(
        self, step: int, metrics: dict[str, float] | None, eval_loss: float | None, speed: float | None, facts: dict
    ) -> None:
        """Appends one line to metrics.jsonl; before the first step there is only an evaluation."""
        known: dict[str, Any] = metrics or dict.fromkeys(("loss", "lr", "grad_norm"))
        line = {
            "step": step,
            "loss": known["loss"],
            "eval_loss": eval_loss,
            "lr": known["lr"],
            "grad_norm": known["grad_norm"],
            "tokens_per_s": speed,
            "trainable_params": facts["parameters"]["trainable"],
        }
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Checkpoints:
    """A run's checkpoints: written by Orbax in the background, each complete or not there at all."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: State, config: GPTConfig) -> None:
        """Starts to write a checkpoint; the state may be donated right after."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        moments = ocp.args.StandardSave(_by_path(state.opt_state))
        with orbax.full_disk_as_os_error():
            self._manager.save(
                step, args=ocp.args.Composite(**orbax.items(state.params, config), opt_state=moments), force=True
            )

    def restore(self, step: int, state: State) -> State:
        """The state of a step, in the shapes and places of the state given, whose values are not used."""

        def target(arrays):
            return {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in arrays.items()}

        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target(state.params)),
                opt_state=ocp.args.StandardRestore(target(_by_path(state.opt_state))),
            ),
        )
        params, moments = restored["params"], restored["opt_state"]
        return State(
            jax.device_put(jax.numpy.int32(step), state.step.sharding),
            {name: params[name] for name in state.trainable},
            {name: params[name] for name in state.frozen},
            jax.tree.unflatten(jax.tree.structure(state.opt_state), [moments[k] for k in _by_path(state.opt_state)]),
        )

    def wait(self) -> None:
        """Until all is on disk; raises what went wrong in the background."""
        with orbax.full_disk_as_os_error():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(settings).items()}
