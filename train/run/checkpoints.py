"""The checkpoints of a run: everything that training needs to go on as if it had never stopped."""

import contextlib
import errno
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

from jaxgpt.convert.command_line.console import say
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.digests import ANNOUNCEMENT, find_damage, write_digests
from jaxgpt.convert.disk import remove
from jaxgpt.convert.errors import InputError, writing
from jaxgpt.convert.formats import orbax
from jaxgpt.convert.source import steps_of
from jaxgpt.mesh import replicated
from jaxgpt.params import leaves_by_path
from jaxgpt.training.distributed import agree_on_step, any_process, wait_for_all
from jaxgpt.training.run.base import RunBase
from jaxgpt.training.run.eval_state import EvalState
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.step.step import TrainState
from jaxgpt.vocab import fill_padding


@dataclass
class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint of the best evaluation."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def newest_undamaged(run: Path) -> tuple[int | None, dict[int, str]]:
    """Return the step of the newest checkpoint that is as it was written, and what is wrong with each newer one.

    All processes must ask; each compares a part of the bytes.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    damaged: dict[int, str] = {}
    steps, share = steps_of(run), (jax.process_index(), jax.process_count())
    while (step := agree_on_step(max((step for step in steps if step not in damaged), default=None))) is not None:
        damage = find_damage(run / "checkpoints" / str(step), step=step, share=share)
        if not bool(any_process(bool(damage))):
            return step, damaged
        damaged[step] = damage or "as another process says"
    if damaged:
        newest = max(damaged)
        raise InputError(
            f"--resume: {run}/checkpoints/{newest} is damaged ({damaged[newest]}), and no other checkpoint is "
            "intact; --force deletes the run and starts over"
        )
    return None, damaged


class Checkpoints:
    """The checkpoints of a run: Orbax writes them in the background, each complete or not there at all."""

    def __init__(self, run: RunFolder, keep: int, base: RunBase, *, standalone: bool = False):
        """Open the folder of checkpoints.

        Args:
            keep: how many of the newest stay.
            base: what a checkpoint may leave out while it is frozen.
            standalone: leave nothing out.
        """
        self._best = _Best()
        self._base, self._standalone = base, standalone
        self._held: set[str] = set()
        """Names of parameters that trained once, or may have: every further checkpoint holds them."""
        self._saved: int | None = None
        """The step whose checkpoint is being written, if one is."""
        self._smallest: dict[str, str | None] = {}
        """The smallest array of each of its items that hold arrays."""
        policies = [ocp.checkpoint_managers.LatestN(keep), self._best]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        self._run, self._folder = run, run.checkpoints
        self._noise = orbax.Noise()
        self._manager = ocp.CheckpointManager(self._folder.absolute(), options=options)

    @property
    def best(self) -> int | None:
        """The step of the best evaluation: its checkpoint stays."""
        return self._best.step

    @best.setter
    def best(self, step: int | None) -> None:
        self._best.step = step

    def save(self, state: TrainState, config: GPTConfig, eval_state: EvalState) -> None:
        """Start to write a checkpoint; the state may be donated right after.

        Raises:
            OSError: the disk is full, read-only or gone; this save's failure, or that of the one before.
        """
        step, run = int(state.step), self._run.folder
        self._run.place.check()  # Orbax would make it anew, and the rest of the run would not be there
        if not any(run.iterdir()):
            raise FileNotFoundError(errno.ENOENT, "the folder of the run is empty", str(run))
        self.best = eval_state.best_step
        if step in self._manager.all_steps():
            return
        self.wait()  # for the one before, whose step is named by `_saved`
        self._saved = step
        moments = leaves_by_path(state.opt_state)
        self._noise.listen()
        self._held |= state.params.keys() if self._standalone else state.trainable.keys()
        left_out = (state.frozen.keys() & self._base.unchanged) - self._held
        held = {name: p for name, p in state.params.items() if name not in left_out}
        self._smallest = {
            item: min(arrays, key=lambda name: arrays[name].size, default=None)
            for item, arrays in (("params", held), ("opt_state", moments))
        }
        with writing(self._folder / str(step)), orbax.full_disk_as_os_error():
            items = orbax.items(held, config, self._base.without(left_out)) | {
                "opt_state": ocp.args.StandardSave(moments),
                "eval_state": ocp.args.JsonSave(eval_state.as_json()),
            }
            if state.ema:
                items["ema"] = ocp.args.StandardSave(state.ema)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True, custom_metadata=ANNOUNCEMENT)

    def _write_digests(self) -> None:
        """Write the digests of a checkpoint: in Orbax's thread, of the first process, once all files are there.

        Orbax then gives the folder its name.
        """
        self._run.place.check()
        [folder] = self._unfinished()
        orbax.confirm(folder, self._smallest, is_alone=jax.process_count() == 1)
        write_digests(folder, self._saved)

    def _unfinished(self) -> list[Path]:
        return list(self._folder.glob(f"{self._saved}.orbax-checkpoint-tmp*"))

    def set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        """Rename damaged checkpoints, so that others can be written in their places. All processes must ask.

        Args:
            damaged: by their steps, in what.
            step: the one that the run goes on from.
        """
        if not damaged:
            return
        if self._run.is_writer:
            for other, damage in damaged.items():
                folder = self._folder / str(other)
                names = (folder.with_name(f"{other}.damaged{n or ''}") for n in itertools.count())
                aside = folder.rename(next(name for name in names if not name.exists()))
                say(
                    f"checkpoint {folder} is damaged ({damage}) and set aside as {aside.name}; the run goes on from "
                    f"step {step}"
                )
        wait_for_all("damaged checkpoints are set aside")
        self._manager.reload()

    def restore(
        self, step: int, shapes: TrainState, config: GPTConfig, params: Mapping[str, jax.Array]
    ) -> tuple[TrainState, EvalState]:
        """Return the state of a step and that of the evaluations, whatever devices and processes wrote them.

        Args:
            shapes: the shape and sharding of each array.
            config: the model's; the checkpoint may have more or fewer rows of padding, as another mesh needs them.
            params: what the run began with, for what the checkpoint leaves out.

        Raises:
            InputError: the checkpoint is damaged, its model or plan differs, or the base has changed.
        """
        folder = self._folder / str(step)
        written = orbax.read_config(folder)
        if (written.dims | {"V": written.n_tokens}) != (config.dims | {"V": config.n_tokens}):
            raise InputError(
                f"--resume: checkpoint {folder} is of a model with other shapes; give the --model of that run, or "
                "another --out"
            )
        has_other_rows = written.vocab_size != config.vocab_size
        base = orbax.read_base(folder)
        if base is not None:
            self._base.check(base)
        left_out = {} if base is None else {name: params[name] for name in base.digests if name in params}
        self._held = shapes.params.keys() - left_out.keys()
        if rounded := [name for name in self._held if shapes.params[name].dtype != np.float32]:
            raise InputError(
                f"--resume: checkpoint {folder} holds {min(rounded)}, which --frozen-dtype would round: leave out that "
                "flag"
            )
        item = "eval_state" if (folder / "eval_state").exists() else "standing"  # of version 0.1
        averages = {"ema": shapes.ema} if shapes.ema else {}
        arguments = ocp.args.Composite(
            params=ocp.args.StandardRestore(
                {name: shapes.params[name] for name in self._held}, strict=not has_other_rows
            ),
            opt_state=ocp.args.StandardRestore(leaves_by_path(shapes.opt_state), strict=not has_other_rows),
            **{name: ocp.args.StandardRestore(ema, strict=not has_other_rows) for name, ema in averages.items()},
            **{item: ocp.args.JsonRestore()},
        )
        refusal = (
            f"--resume: checkpoint {folder} is damaged ({{}}); delete that folder, and --resume goes on from the one "
            "before it"
        )
        for arrays in ("params", "opt_state", *averages):
            orbax.check(folder.absolute() / arrays, refusal)
        with orbax.reading(refusal):
            restored = self._manager.restore(step, args=arguments)
            eval_state = EvalState.from_json(restored[item])
            found, ema = restored["params"], restored["ema"] if averages else {}
            moments = [restored["opt_state"][name] for name in leaves_by_path(shapes.opt_state)]
        if has_other_rows:
            found, ema = fill_padding(found, config), fill_padding(ema, config)
        found |= left_out
        state = TrainState(
            replicated(np.int32(step), shapes.step.sharding.mesh),
            {name: found[name] for name in shapes.trainable},
            {name: found[name] for name in shapes.frozen},
            jax.tree.unflatten(jax.tree.structure(shapes.opt_state), moments),
            {name: ema[name] for name in shapes.ema},
        )
        self.best = eval_state.best_step
        return state, eval_state

    def wait(self) -> None:
        """Wait until all is on disk; raise what went wrong in the background."""
        with (
            writing(self._folder / str(self._saved or "")),
            self._noise.said_once(),
            orbax.full_disk_as_os_error(),
        ):
            self._manager.wait_until_finished()
            saved, self._saved = self._saved, None
            if saved is not None and self._run.is_writer and not (self._folder / str(saved)).is_dir():
                # Orbax raises only some of its errors
                raise self._noise.error or OSError(errno.EIO, "Orbax wrote no checkpoint", str(self._folder))

    def abandon(self) -> None:
        """Remove what Orbax has written where the run's folder was before it was renamed or removed."""
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        for _ in range(10):  # its threads may go on writing for a moment
            for path in self._unfinished():
                remove(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()  # if nothing else is there
                self._run.folder.rmdir()
            time.sleep(0.05)

    def close(self) -> None:
        """End the background work."""
        self._manager.close()
        self._noise.close()
