"""Our own form on disk: an Orbax checkpoint with the items `params` (dotted name -> array) and `config`.

A training run's step folder has the same two items beside its optimizer state, so that one reader serves both.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from orbax import checkpoint as ocp

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import LazyArray

CHUNK_BYTES = 2**26
"""Largest piece of an array that is written, and has to be read, at once."""

NEWER_FIELDS = frozenset({"n_padding", "carried", "head_bias", "lora", "n_new_tokens"})
"""Fields that older checkpoints lack; they are at their defaults."""


def read_config(path: Path) -> GPTConfig:
    """Read the item `config`."""
    try:
        fields = json.loads((path / "config" / "metadata").read_text("utf-8"))
        known = {field.name for field in dataclasses.fields(GPTConfig)}
        if not isinstance(fields, dict) or not known - NEWER_FIELDS <= fields.keys() <= known:
            raise InputError(f"its fields must be {', '.join(sorted(known))}")
        return GPTConfig(**fields)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the item `config` can't be read ({error})") from None


def read(path: Path) -> tuple[dict[str, LazyArray], GPTConfig]:
    """Return the parameters, which are read when they are used, and the config."""
    params = path.absolute() / "params"
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(params).tree
        found = {
            str(name): LazyArray(tuple(m.shape), np.dtype(m.dtype), _reader(params, name)) for name, m in tree.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: Orbax can't read this checkpoint ({brief(error)})") from None
    return found, read_config(path)


def restore(path: Path, shardings: Mapping[str, Any], dtypes: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parameters as JAX arrays of these shardings and dtypes; a host reads only what its devices hold."""
    targets = {
        name: ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtypes[name], strict=False)
        for name, sharding in shardings.items()
    }
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            arguments = ocp.args.PyTreeRestore(item=dict.fromkeys(targets, 0), restore_args=targets)
            return checkpointer.restore(path.absolute() / "params", arguments)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({brief(error)})") from None


def brief(error: Exception) -> str:
    """Return the first line of an error; TensorStore's can have hundreds."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def write(path: Path, params: Mapping[str, Any], config: GPTConfig, dtype: np.dtype | None = None) -> None:
    """Write a new checkpoint; Orbax writes to a temporary sibling and renames it.

    Arrays are neither copied nor compressed nor gathered into one file, so that only a few chunks of a mapped
    checkpoint are in memory; Orbax's defaults take 1.7 times the checkpoint. An array that has to be cast, re-laid or
    read is first written to a scratch file beside `path`, one at a time, and mapped.
    """
    with full_disk_as_os_error(), _quiet("absl"):
        scratch = path.with_name(f"{path.name}.scratch")
        scratch.mkdir()
        arrays = {name: _mapped(array, dtype, scratch / name) for name, array in params.items()}
        numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
        params_handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False,
            use_compression=False,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, numpy_handler)),
        )
        handler = ocp.CompositeCheckpointHandler(params=params_handler, config=ocp.JsonCheckpointHandler())
        chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
        items = {
            "params": ocp.args.PyTreeSave(arrays, save_args=chunked),
            "config": ocp.args.JsonSave(dataclasses.asdict(config)),
        }
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.Composite(**items))
        shutil.rmtree(scratch)


def _mapped(array: Any, dtype: np.dtype | None, scratch: Path) -> np.ndarray:
    """Return the array in row-major order, in memory or in a mapped file."""
    if isinstance(array, np.ndarray) and array.flags.c_contiguous and dtype in (None, array.dtype):
        return array
    if 0 in array.shape:
        return np.empty(array.shape, dtype or array.dtype)
    copy = np.memmap(scratch, dtype or array.dtype, "w+", shape=array.shape or (1,)).reshape(array.shape)
    copy[...] = np.asarray(array)
    return np.asarray(copy)


@contextlib.contextmanager
def full_disk_as_os_error() -> Iterator[None]:
    """Raise OSError for TensorStore's ValueError that ends in `[os_error_code='28']`."""
    try:
        yield
    except ValueError as error:
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            # every other tensor fails too: one message is enough
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise OSError(int(found[1]), f"while a checkpoint was written: {os.strerror(int(found[1]))}") from None
        raise


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence Orbax's warnings that there is nothing to merge and no `jax.Array`, which is intended."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def items(params: Mapping[str, Any], config: GPTConfig) -> dict[str, Any]:
    """Make the two items of a checkpoint, for `ocp.args.Composite`."""
    return {
        "params": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave(dataclasses.asdict(config)),
    }


def _reader(params: Path, name: str):
    def read_one() -> np.ndarray:
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                arguments = ocp.args.PyTreeRestore(item={name: 0}, restore_args=how, partial_restore=True)
                return checkpointer.restore(params, arguments)[name]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{params.parent}: {name} is damaged ({brief(error)})") from None

    return read_one
