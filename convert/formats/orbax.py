"""Our own form on disk: an Orbax checkpoint with the items `params` (dotted name -> array) and `config`.

A training run's step folder holds the same two items beside its optimizer state, so that one reader serves both.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from orbax import checkpoint as ocp

from convert.config import GPTConfig
from convert.errors import InputError
from convert.layout import LazyArray


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a complete checkpoint: Orbax renames it into place when all of it is written."""
    return (path / "_CHECKPOINT_METADATA").is_file() and (path / "params" / "_METADATA").is_file()


def read_config(path: Path) -> GPTConfig:
    """The item `config`."""
    try:
        return GPTConfig(**json.loads((path / "config" / "metadata").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: the item `config` can't be read ({error})") from None


def read(path: Path) -> tuple[dict[str, LazyArray], GPTConfig]:
    """The parameters, each read when asked for, and the config."""
    params = path.absolute() / "params"
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(params).tree
        found = {
            str(name): LazyArray(tuple(m.shape), np.dtype(m.dtype), _reader(params, name)) for name, m in tree.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a checkpoint that Orbax can read ({error})") from None
    return found, read_config(path)


def restore(path: Path, places: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The parameters as JAX arrays in their places (shardings by name); a host reads only what its devices hold."""
    targets = {name: ocp.ArrayRestoreArgs(sharding=place, dtype=dtype, strict=False) for name, place in places.items()}
    with ocp.PyTreeCheckpointer() as checkpointer:
        arguments = ocp.args.PyTreeRestore(item=dict.fromkeys(targets, 0), restore_args=targets)
        return checkpointer.restore(path.absolute() / "params", arguments)


def write(path: Path, params: Mapping[str, Any], config: GPTConfig) -> None:
    """Writes a new checkpoint; Orbax writes to a temporary sibling and renames it."""
    with full_disk_as_os_error():
        _write(path, params, config)


@contextlib.contextmanager
def full_disk_as_os_error() -> Iterator[None]:
    """TensorStore reports what the operating system refused as a ValueError that ends in `[os_error_code='28']`."""
    try:
        yield
    except ValueError as error:
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            # each of the other tensors failed too: one message is enough
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise OSError(int(found[1]), f"while a checkpoint was written: {os.strerror(int(found[1]))}") from None
        raise


def _write(path: Path, params: Mapping[str, Any], config: GPTConfig) -> None:
    handler = ocp.CompositeCheckpointHandler(params=ocp.StandardCheckpointHandler(), config=ocp.JsonCheckpointHandler())
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.Composite(**items(params, config)))


def items(params: Mapping[str, Any], config: GPTConfig) -> dict[str, Any]:
    """The two items of a checkpoint, for `ocp.args.Composite`."""
    return {
        "params": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave(dataclasses.asdict(config)),
    }


def _reader(params: Path, name: str):
    def read_one() -> np.ndarray:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(
                params,
                ocp.args.PyTreeRestore(
                    item={name: 0}, restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)}, partial_restore=True
                ),
            )[name]

    return read_one
