"""A run's checkpoints: everything that training needs to go on as if it had never stopped."""

from pathlib import Path

import jax
from orbax import checkpoint as ocp

from convert.config import GPTConfig
from convert.errors import InputError
from convert.formats import orbax
from jaxgpt.params import by_path
from train.step import State


class Checkpoints:
    """A run's checkpoints: written by Orbax in the background, each complete or not there at all."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: State, config: GPTConfig) -> None:
        """Starts to write a checkpoint; the state may be donated right after."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        moments = ocp.args.StandardSave(by_path(state.opt_state))
        with orbax.full_disk_as_os_error():
            self._manager.save(
                step, args=ocp.args.Composite(**orbax.items(state.params, config), opt_state=moments), force=True
            )

    def restore(self, step: int, shapes: State) -> State:
        """The state of a step; `shapes` says of what shape each array is, and where it is to lie."""
        arguments = ocp.args.Composite(
            params=ocp.args.StandardRestore(shapes.params),
            opt_state=ocp.args.StandardRestore(by_path(shapes.opt_state)),
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"--resume: checkpoint {self._folder / str(step)} is damaged ({orbax.brief(error)}); "
                "delete that folder, and --resume goes on from the one before it"
            ) from None
        params, moments = restored["params"], restored["opt_state"]
        return State(
            jax.device_put(jax.numpy.int32(step), shapes.step.sharding),
            {name: params[name] for name in shapes.trainable},
            {name: params[name] for name in shapes.frozen},
            jax.tree.unflatten(jax.tree.structure(shapes.opt_state), [moments[k] for k in by_path(shapes.opt_state)]),
        )

    def wait(self) -> None:
        """Until all is on disk; raises what went wrong in the background."""
        with orbax.full_disk_as_os_error():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
