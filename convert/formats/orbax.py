"""Our own form on disk: an Orbax checkpoint with the items `params` (dotted name -> array) and `config`.

A training run's step folder has the same two items beside its optimizer state, so that one reader serves both. It may
have the item `base` too, for what it leaves in the model that the run began as,
and the item `ema`, of the same names as `params`, for the moving average of what trains.
"""

import contextlib
import dataclasses
import errno
import gc
import glob as glob_module
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils.epath.gpath import PosixGPath
from orbax import checkpoint as ocp

from jaxgpt.convert.base import Base
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.digests import ANNOUNCEMENT, find_damage, write_digests
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats.array_headers import check_arrays
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.layout import LazyArray
from jaxgpt.convert.source import run_of

CHUNK_BYTES = 2**26
"""Largest piece of an array that is written, and has to be read, at once."""

NEWER_FIELDS = frozenset(
    """n_padding carried head_bias lora n_new_tokens n_kv_head head_dim split_qkv qk_norm gated_mlp parallel_residual
    norm positions position_offset rotary_dim rope_theta rope_scaling windows model_type""".split()
)
"""Fields that older checkpoints lack; they are at their defaults."""


def read_config(path: Path) -> GPTConfig:
    """Read the item `config`."""
    stored = path / "config" / "metadata"
    try:
        fields = read_json(stored)
        known = {field.name for field in dataclasses.fields(GPTConfig)}
        if not known - NEWER_FIELDS <= fields.keys() <= known:
            raise InputError(f"its fields must be {', '.join(sorted(known))}")
        return GPTConfig(**fields)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: the item `config` can't be read ({brief(error)})") from None


def read_base(path: Path) -> Base | None:
    """Read the item `base`: the parameters that the checkpoint leaves in another; nothing if it holds them all.

    Raises:
        InputError: it is damaged.
    """
    stored = path / "base" / "metadata"
    if not stored.exists():
        return None
    try:
        return Base.from_json(read_json(stored))
    except (OSError, InputError) as error:
        raise InputError(f"{path}: the item `base` can't be read ({brief(error)})") from None


def read(path: Path, *, averaged: bool = False) -> tuple[dict[str, LazyArray], GPTConfig, Base | None]:
    """Return the parameters, which are read when they are used, the config, and where other parameters are.

    All are as they were written.

    Args:
        averaged: take those that have a moving average by it.

    Raises:
        InputError: there is no average, or a file is damaged or missing, or asks for what can't be.
    """
    step = int(path.name) if run_of(path) else None
    arrays = ("params", "ema") if averaged else ("params",)
    if averaged and not (path / "ema").is_dir():
        raise InputError(f"{path}: averaged=True: the run kept no average of its weights; jaxgpt train --ema keeps one")
    if damage := find_damage(path, (*arrays, "config", "base"), step):
        _refuse_deleted(path)
        raise InputError(f"{path} is damaged: {damage}{_another(path)}")
    refusal = f"{path}: Orbax can't read this checkpoint ({{}}){_another(path)}"
    items = ("config", "base")
    for place in (*(path / item for item in (*arrays, *items)), *(path / item / "metadata" for item in items)):
        if place.is_symlink():
            raise InputError(f"{path}: {place.name} is a link, which is not followed")
    found: dict[str, LazyArray] = {}
    for folder in (path.absolute() / item for item in arrays):
        check(folder, refusal)
        with reading(refusal, path):
            tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            found |= {
                str(name): LazyArray(tuple(m.shape), np.dtype(m.dtype), _reader(folder, name))
                for name, m in tree.items()
            }
    return found, read_config(path), read_base(path)


def _another(path: Path) -> str:
    """Return what to say of the checkpoint before one of a run's, if there is one."""
    if run_of(path) is None:
        return ""
    steps = [int(other.name) for other in path.parent.iterdir() if other.name.isdecimal()]
    earlier = [step for step in steps if step < int(path.name)]
    return f"; the checkpoint before it is {path.parent / str(max(earlier))}" if earlier else ""


def restore(
    path: Path, shardings: Mapping[str, Any], dtypes: Mapping[str, Any], *, averaged: bool = False
) -> dict[str, Any]:
    """Read the parameters as JAX arrays of these shardings and dtypes; a host reads only what its devices hold.

    Args:
        averaged: as of `read`.
    """
    targets = {
        name: ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtypes[name], strict=False)
        for name, sharding in shardings.items()
    }
    found: dict[str, Any] = {}
    with reading(f"{path}: the checkpoint is damaged ({{}})", path), ocp.PyTreeCheckpointer() as checkpointer:
        for item in ("ema", "params") if averaged else ("params",):
            folder = path.absolute() / item
            there = ocp.PyTreeCheckpointHandler().metadata(folder).tree if averaged else targets
            wanted = {name: how for name, how in targets.items() if name in there and name not in found}
            arguments = ocp.args.PyTreeRestore(
                item=dict.fromkeys(wanted, 0), restore_args=wanted, partial_restore=averaged
            )
            if wanted:
                found |= checkpointer.restore(folder, arguments)
    return found


def check(arrays: Path, refusal: str) -> None:
    """Refuse arrays that can't be what they say, before Orbax sees them; see `reading`."""
    try:
        check_arrays(arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(refusal.replace("{}", brief(error))) from None


@contextlib.contextmanager
def reading(refusal: str, checkpoint: Path | None = None) -> Iterator[None]:
    """Refuse what Orbax can't read in one line; it raises all kinds of exceptions for a damaged file.

    Args:
        refusal: the message, with `{}` for what Orbax says.
        checkpoint: the folder, which may have been deleted meanwhile.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = brief(error)
        _forget(error)
        if checkpoint is not None:
            _refuse_deleted(checkpoint)
        raise InputError(refusal.replace("{}", reason)) from None


def _refuse_deleted(path: Path) -> None:
    """Refuse a checkpoint that is not there any more: it was not damaged."""
    if not path.exists():
        raise InputError(
            f"{path} was deleted while it was read: a run that is still running keeps only its newest checkpoints "
            "(--keep); try again, with a newer one"
        ) from None


def _forget(error: BaseException | None) -> None:
    """Collect the tasks that failed beside the one whose error is told, which would say so later."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    _ignore_late_callbacks()
    hook, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    try:
        with _quiet("asyncio", logging.CRITICAL), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = hook


def _ignore_late_callbacks() -> None:
    """From now on, say nothing of results that TensorStore's threads have for tasks that Orbax has given up."""
    hook = sys.unraisablehook
    if getattr(hook, "ignores_late_callbacks", False):
        return

    def unraisable(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":
            hook(told)

    unraisable.ignores_late_callbacks = True  # type: ignore[attr-defined]
    sys.unraisablehook = unraisable


def brief(error: BaseException) -> str:
    """Return the first line of an error, or of its cause; TensorStore's can have hundreds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(str(error)) or type(error).__name__


def first_line(text: str) -> str:
    """Return the first line in which there is something, at most 200 letters of it."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 200 else f"{line[:200]}…"


def write(path: Path, params: Mapping[str, Any], config: GPTConfig, dtype: np.dtype | None = None) -> None:
    """Write a new checkpoint; Orbax writes to a temporary sibling and renames it.

    Arrays are neither copied nor compressed nor gathered into one file, so that only a few chunks of a mapped
    checkpoint are in memory; Orbax's defaults take 1.7 times the checkpoint. An array that has to be cast, re-laid or
    read is first written to a scratch file beside `path`, one at a time, and mapped.
    """
    # Orbax warns that there is nothing to merge and no `jax.Array`, which is intended
    with full_disk_as_os_error(), _quiet("absl", logging.CRITICAL):
        _ignore_late_callbacks()
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
            checkpointer.save(path.absolute(), args=ocp.args.Composite(**items), custom_metadata=ANNOUNCEMENT)
        shutil.rmtree(scratch)
        write_digests(path)


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
            raise OSError(int(found[1]), f"{os.strerror(int(found[1]))} (a checkpoint was being written)") from None
        raise


class Noise:
    """The messages of Orbax when a save fails: each of its threads logs all errors, with tracebacks.

    An error that is raised is said by whoever catches it. One that is only logged is said here, in one line.
    """

    def __init__(self) -> None:
        self._heard: list[str] = []
        self.error: BaseException | None = None
        """The first error that was logged since the last time that nothing was."""

    def close(self) -> None:
        """Let Orbax speak for itself again."""
        logging.getLogger("absl").removeFilter(self._keep_out)

    def listen(self) -> None:
        """Hear from now on what is logged."""
        logging.getLogger("absl").addFilter(self._keep_out)  # once
        _ignore_late_callbacks()

    @contextlib.contextmanager
    def said_once(self) -> Iterator[None]:
        """Say at the end what was logged, if nothing is raised."""
        try:
            yield
        except BaseException:
            # every other tensor fails too: one message is enough
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        heard, self._heard, self.error = self._heard, [], None
        for text in dict.fromkeys(heard):
            logging.getLogger(__name__).warning("%s", text)

    def _keep_out(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:
            return True
        error = record.exc_info[1] if record.exc_info else None
        self.error = self.error or error
        said = re.sub(r"^(\[[^]]*\])+ *", "", first_line(record.getMessage()))  # begins with process, thread, step
        self._heard.append(f"{said}: {brief(error)}" if error else said)
        return False


@contextlib.contextmanager
def _quiet(name: str, level_inside: int) -> Iterator[None]:
    """Silence what is logged below a level."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(level_inside)
    try:
        yield
    finally:
        logger.setLevel(level)


def confirm(checkpoint: Path, smallest: Mapping[str, str | None], *, is_alone: bool = True) -> None:
    """Open what was just saved, and read an array of each of its items, before it is called a checkpoint.

    Args:
        smallest: the name of the smallest array of each item, or None where an item has none.
        is_alone: False in one of several processes, where Orbax reads only if all do: what was merged is looked for.

    Raises:
        OSError: one of them is not there.
    """
    for name, array in smallest.items():
        item = checkpoint.absolute() / name
        if not (item / "manifest.ocdbt").is_file():
            raise OSError(errno.EIO, "what was saved is incomplete: Orbax has not joined its parts", str(item))
        if not is_alone or array is None:
            continue
        try:
            _reader(item, array)()
        except Exception as error:  # Orbax raises all kinds
            raise OSError(errno.EIO, f"what was saved can't be read ({brief(error)})", str(item)) from None


def take_folders_literally() -> None:
    """Let etils search in a folder whose name has `[`, `*` or `?` in it.

    It reads the whole path as a pattern. Orbax then finds none of the files that it is to merge, and says nothing.
    """
    if getattr(PosixGPath.glob, "takes_folders_literally", False):
        return
    search = PosixGPath.glob

    def glob(self: Any, pattern: str) -> Iterator[Any]:
        folder = os.fspath(self)
        if "://" in folder or glob_module.escape(folder) == folder:
            return search(self, pattern)
        return (type(self)(os.fspath(found)) for found in sorted(Path(folder).glob(pattern)))

    glob.takes_folders_literally = True  # type: ignore[attr-defined]
    PosixGPath.glob = glob


take_folders_literally()


def items(params: Mapping[str, Any], config: GPTConfig, base: Base | None = None) -> dict[str, Any]:
    """Make the items of a checkpoint, for `ocp.args.Composite`; `base` is one if some parameters stay there."""
    made = {"params": ocp.args.StandardSave(dict(params)), "config": ocp.args.JsonSave(dataclasses.asdict(config))}
    return made if base is None else made | {"base": ocp.args.JsonSave(base.as_json())}


def _reader(params: Path, name: str):
    def read_one() -> np.ndarray:
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
        with (
            reading(f"{params.parent}: {name} is damaged ({{}})", params.parent),
            ocp.PyTreeCheckpointer() as checkpointer,
        ):
            arguments = ocp.args.PyTreeRestore(item={name: 0}, restore_args=how, partial_restore=True)
            return checkpointer.restore(params, arguments)[name]

    return read_one
