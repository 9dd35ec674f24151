"""Several processes of one run: how they find each other, and agree.

All of them run the same program over one mesh; the first one alone writes text.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.convert.command_line.flags import spelled
from jaxgpt.convert.errors import InputError
from jaxgpt.training.settings import Settings, to_json, trait

LOST_SECONDS = 30
"""How long a process may be silent until the others give up; JAX's own default is 100."""

LONGEST = 2**16
"""Bytes in which processes tell each other their settings."""

SEVERAL = {
    "JAX_COORDINATOR_ADDRESS": lambda value: bool(value),
    "SLURM_STEP_NUM_TASKS": lambda value: value not in ("", "1"),
    "OMPI_COMM_WORLD_SIZE": lambda value: value not in ("", "1"),
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
}
"""Variables by which JAX, srun, mpirun and GKE say that a process is one of several."""


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment says that there are other processes of the same run."""
    return any(says(environment[name]) for name, says in SEVERAL.items() if name in environment)


def connect(settings: Settings) -> None:
    """Join the other processes of the run, if there are any; before anything else of JAX.

    Raises:
        InputError: the flags contradict each other, or the others can't be reached.
    """
    address, n, index = settings.coordinator, settings.processes, settings.process
    by_hand = address not in (None, "auto")
    if by_hand != (n is not None) or by_hand != (index is not None):
        raise InputError("--coordinator=HOST:PORT, --processes and --process: all three of them, or none")
    if address is not None and by_hand and not re.fullmatch(r"\S+:\d{1,5}", address):
        raise InputError(f"--coordinator: {address!r} is not auto or HOST:PORT")
    if n is not None and index is not None and not 0 <= index < n:
        raise InputError(f"--process: must be from 0 to {n - 1}, not {index}")
    if (address is None and not is_one_of_several(os.environ)) or jax.distributed.is_initialized():
        return  # Python may have connected before
    print("waiting for the other processes of the run, at most five minutes", flush=True)
    # JAX would take SIGTERM for itself; a signal is agree_on_step upon after each step
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address if by_hand else None, n, index,
            heartbeat_timeout_seconds=LOST_SECONDS, shutdown_timeout_seconds=LOST_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"--coordinator={address}: {why} (is that port free, and can it be reached?)") from None
    is_own = trait("is_per_process")
    check_processes_agree({spelled(name): value for name, value in to_json(settings).items() if not is_own[name]})
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the first one's lines are everybody's


def is_first() -> bool:
    """Tell whether this is the process that writes text."""
    return jax.process_index() == 0


def any_process(flag: bool) -> Any:
    """Return whether the flag is set in any process, on its way: `bool` of it waits. All processes must ask."""
    if jax.process_count() == 1:
        return flag
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    sharding = NamedSharding(mesh, P("all"))
    flags = jax.make_array_from_callback((jax.device_count(),), sharding, lambda index: np.asarray([flag]))
    return _any(flags)


_any = jax.jit(lambda flags: flags.any())


def check_processes_agree(what: Mapping[str, Any]) -> None:
    """Refuse what differs between processes, which would train on without a word. All processes must ask.

    Raises:
        InputError: in all of them; those that differ from the first say in what.
    """
    if jax.process_count() == 1:
        return
    own = json.loads(json.dumps(what, default=str))
    text = np.frombuffer(json.dumps(own).encode().ljust(LONGEST), np.uint8)
    theirs = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
    others = [f"{name} is {own[name]} here and {theirs[name]} there" for name in own if own[name] != theirs[name]]
    if bool(any_process(bool(others))):
        differs = f"differs from process 0: {'; '.join(others)}" if others else "another process differs"
        raise InputError(
            f"process {jax.process_index()}: {differs}; all processes need the same data, and the same flags but for "
            "--process"
        )


def agree_on_step(step: int | None) -> int | None:
    """Return the first process's step: a shared folder may look older to others. All processes must ask."""
    if jax.process_count() == 1:
        return step
    found = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if found < 0 else found


def wait_for_all(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def disconnect() -> None:
    """Leave together with the others, where the program ends without its usual cleaning up."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
