"""Devices to compile for: this machine's, or those of a slice that is not there."""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from jaxgpt.convert.errors import InputError
from jaxgpt.train.compile_only.chips import CHIPS, Chip, chip_of

QUIET = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # libtpu would ask a cloud's metadata server what it runs on
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",  # by default it fills a folder in /tmp
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it takes a lock, and one that another process holds ends this one
}
"""What keeps libtpu from talking and from looking for a TPU; it reads the environment when it is loaded."""


@dataclass(frozen=True)
class Topology:
    """Chips that a program is compiled for."""

    name: str
    devices: Sequence[Any]
    """JAX's, of which some chips have two."""
    chip: Chip | None
    """None for what is in no table, such as a CPU."""

    @property
    def n_chips(self) -> int:
        return len(self.devices) // (self.chip.cores if self.chip else 1)

    @property
    def usable_bytes(self) -> float | None:
        """Bytes of memory that a program is given on each device."""
        return self.chip.usable_bytes / self.chip.cores if self.chip else None


def find_topology(name: str | None) -> Topology:
    """The slice that `--topology` names; this machine's own devices without a name.

    Raises:
        InputError: a name that there is not, or a compiler that is not installed.
    """
    if name is None:
        devices = jax.devices()
        return Topology(f"this machine's {devices[0].device_kind}", devices, chip_of(devices[0]))
    chips = {f"{chip.name}:{size}": chip for chip in CHIPS for size in chip.slices}
    gpus = re.fullmatch(r"(h100):(?:([1-9]\d{0,3})x)?([1-8])", name)
    if gpus:
        gpu = next(chip for chip in CHIPS if chip.name == gpus[1])
        return Topology(name, _gpus(name, gpu.name, f"1x{gpus[2] or 1}x{gpus[3]}"), gpu)
    if (chip := chips.get(name)) is None:
        known = "; ".join(f"{chip.name}:{{{','.join(chip.slices)}}}" for chip in CHIPS if chip.slices)
        raise InputError(f"--topology: {name!r} is none of {known}; h100:GPUS or h100:HOSTSxGPUS")
    return Topology(name, _tpus(name, chip), chip)


def _tpus(name: str, chip: Chip) -> Sequence[Any]:
    if not os.environ.get("TPU_LIBRARY_PATH") and importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology={name}: needs the TPU's compiler, libtpu: pip install 'jaxgpt[tpu]'")
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")  # a TPU or GPU that is here is for others
    jax.config.update("jax_enable_compilation_cache", False)  # it can't give back what is for other devices
    how: dict[str, Any] = {}
    if chip.name == "v4":
        how["chip_config_name"] = "megacore"  # one device for both cores of a chip, as JAX has it on a v4
    if name.endswith(":1x1"):
        how["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices
    except Exception as error:  # whatever a library of another version raises
        raise InputError(f"--topology={name}: libtpu can't make it ({str(error).splitlines()[0]})") from None


def _gpus(name: str, chip: str, size: str) -> Sequence[Any]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None and importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise InputError(f"--topology={name}: needs the GPU's compiler: pip install 'jaxgpt[gpu]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no driver is known
    jax.config.update("jax_platforms", "cpu")
    target = (Path(__file__).parent / "gpus" / f"{chip}.txtpb").read_text("utf-8")
    try:
        return topologies.get_topology_desc("", "cuda", target_config=target, topology=size).devices
    except Exception as error:
        raise InputError(f"--topology={name}: the plugin can't make it ({str(error).splitlines()[0]})") from None
