"""Devices to compile for: this machine's, or those of a slice that need not exist."""

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
from jaxgpt.training.compile_only.chips import CHIPS, Chip, chip_of

QUIET = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # otherwise libtpu asks a cloud's metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",  # by default libtpu writes logs to /tmp
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise a lock that another process holds ends this one
}
"""Environment that keeps libtpu quiet and from looking for a TPU; libtpu reads it when it is loaded."""


@dataclass(frozen=True)
class Topology:
    """The chips that a program is compiled for."""

    name: str
    devices: Sequence[Any]
    """JAX's devices; some chips are two of them."""
    chip: Chip | None
    """None for devices that are not in the table, such as a CPU."""

    @property
    def n_chips(self) -> int:
        return len(self.devices) // (self.chip.cores if self.chip else 1)

    @property
    def usable_bytes(self) -> float | None:
        """Bytes that a program may use on each device; None where that is unknown. CPU devices share the machine's."""
        if self.chip:
            return self.chip.usable_bytes / self.chip.cores
        if self.is_cpu and (n_bytes := machine_memory()):
            return n_bytes / len(self.devices)
        return None

    @property
    def is_cpu(self) -> bool:
        return self.devices[0].platform == "cpu"


def machine_memory() -> int | None:
    """Return the bytes of this machine's memory; None where the operating system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def find_topology(name: str | None) -> Topology:
    """Return the slice that `--topology` names, or this machine's own devices for None.

    Raises:
        InputError: the name is unknown, or its compiler is not installed.
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
        raise InputError(f"--topology: {name!r} is unknown; known are {known}; h100:GPUS; h100:HOSTSxGPUS")
    return Topology(name, _tpus(name, chip), chip)


def _tpus(name: str, chip: Chip) -> Sequence[Any]:
    if not os.environ.get("TPU_LIBRARY_PATH") and importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology={name}: the TPU compiler, libtpu, is missing: pip install 'jaxgpt[tpu]'")
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")  # leave a local TPU or GPU to other programs
    jax.config.update("jax_enable_compilation_cache", False)  # it can't load programs for other devices
    options: dict[str, Any] = {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device for both cores of a chip, as on a real v4
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # libraries of other versions raise other types
        raise InputError(
            f"--topology={name}: libtpu can't describe this slice ({str(error).splitlines()[0]})"
        ) from None


def _gpus(name: str, chip: str, size: str) -> Sequence[Any]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None and importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise InputError(f"--topology={name}: the GPU compiler is missing: pip install 'jaxgpt[gpu]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a missing driver is no reason to warn
    jax.config.update("jax_platforms", "cpu")
    target = (Path(__file__).parent / "gpus" / f"{chip}.txtpb").read_text("utf-8")
    try:
        return topologies.get_topology_desc("", "cuda", target_config=target, topology=size).devices
    except Exception as error:
        raise InputError(
            f"--topology={name}: the CUDA plugin can't describe this slice ({str(error).splitlines()[0]})"
        ) from None
