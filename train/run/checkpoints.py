"""The checkpoints of a run: everything that training needs to go on as if it had never stopped."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats import orbax
from jaxgpt.mesh import replicated
from jaxgpt.params import leaves_by_path
from jaxgpt.train.run.eval_state import EvalState
from jaxgpt.train.step.step import TrainState
from jaxgpt.vocab import fill_padding


@dataclass
class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint of the best evaluation."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of a run: Orbax writes them in the background, each complete or not there at all."""

    def __init__(self, folder: Path, keep: int):
        self._best = _Best()
        policies = [ocp.checkpoint_managers.LatestN(keep), self._best]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies), cleanup_tmp_directories=True
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

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
        step = int(state.step)
        run = self._folder.parent
        if not any(run.iterdir()):  # Orbax would make it anew, and the rest of the run would not be there
            raise FileNotFoundError(errno.ENOENT, "the folder of the run is empty", str(run))
        self.best = eval_state.best_step
        if step in self._manager.all_steps():
            return
        moments = ocp.args.StandardSave(leaves_by_path(state.opt_state))
        with orbax.full_disk_as_os_error():
            items = orbax.items(state.params, config) | {
                "opt_state": moments,
                "eval_state": ocp.args.JsonSave(eval_state.as_json()),
            }
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, step: int, shapes: TrainState, config: GPTConfig) -> tuple[TrainState, EvalState]:
        """Return the state of a step and that of the evaluations, whatever devices and processes wrote them.

        Args:
            shapes: the shape and sharding of each array.
            config: the model's; the checkpoint may have more or fewer rows of padding, as another mesh needs them.

        Raises:
            InputError: the checkpoint is damaged, or its model or plan differs.
        """
        written = orbax.read_config(self._folder / str(step))
        if (written.dims | {"V": written.n_tokens}) != (config.dims | {"V": config.n_tokens}):
            raise InputError(
                f"--resume: checkpoint {self._folder / str(step)} is of a model with other shapes; give the "
                "--model of that run, or another --out"
            )
        has_other_rows = written.vocab_size != config.vocab_size
        item = "eval_state" if (self._folder / str(step) / "eval_state").exists() else "standing"  # of version 0.1
        arguments = ocp.args.Composite(
            params=ocp.args.StandardRestore(shapes.params, strict=not has_other_rows),
            opt_state=ocp.args.StandardRestore(leaves_by_path(shapes.opt_state), strict=not has_other_rows),
            **{item: ocp.args.JsonRestore()},
        )
        try:
            restored = self._manager.restore(step, args=arguments)
            eval_state = EvalState.from_json(restored[item])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--resume: checkpoint {self._folder / str(step)} is damaged ({orbax.brief(error)}); "
                "delete that folder, and --resume goes on from the one before it"
            ) from None
        params, moments = restored["params"], restored["opt_state"]
        if has_other_rows:
            params = fill_padding(params, config)
        state = TrainState(
            replicated(np.int32(step), shapes.step.sharding.mesh),
            {name: params[name] for name in shapes.trainable},
            {name: params[name] for name in shapes.frozen},
            jax.tree.unflatten(
                jax.tree.structure(shapes.opt_state), [moments[k] for k in leaves_by_path(shapes.opt_state)]
            ),
        )
        self.best = eval_state.best_step
        return state, eval_state

    def wait(self) -> None:
        """Wait until all is on disk; raise what went wrong in the background."""
        with orbax.full_disk_as_os_error():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """End the background work."""
        self._manager.close()
