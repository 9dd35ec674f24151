"""A checkpoint on disk, opened lazily whatever its format and dialect, and written safely."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.config import GPTConfig
from convert.dialect import Dialect, Tensors, same
from convert.dialects.hf_gpt2 import HF_GPT2, config_from_hf, config_to_hf
from convert.dialects.jaxgpt import JAXGPT
from convert.disk import check_free, check_space, parse_size, publish, temporary_sibling, write_json
from convert.errors import InputError
from convert.formats import safetensors
from convert.layout import Shape
from convert.source import SIDECARS, resolve

WRITTEN = {
    "hf": ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *SIDECARS),
    "orbax": ("_CHECKPOINT_METADATA", "commit_success.txt", "params", "config", "tokenizer"),
}
"""Names that `write` may make in its folder, and that it may replace there when it is forced to."""

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: nothing of its tensors is read until a parameter is."""

    path: Path
    format: str
    dialect: Dialect
    reason: str
    """What the dialect was recognised by."""
    config: GPTConfig
    tensors: Tensors
    """Theirs: name in the file -> array."""
    params: dict[str, Any]
    """Ours: dotted name -> array."""
    buffers: dict[str, Shape]
    """Tensors that are no parameters, and are left out."""


def read(source: str | Path) -> Checkpoint:
    """Opens a checkpoint: a Hugging Face folder, a `.safetensors` file, an Orbax folder, a training run, a hub name.

    Raises:
        InputError: nothing is there, or not all of what is there is understood.
    """
    path = resolve(source)
    if path.is_dir() and (path / "params").is_dir():
        from convert.formats import orbax

        arrays, config = orbax.read(path)
        params, config = _named(path, JAXGPT, arrays, config)
        return Checkpoint(path, "Orbax", JAXGPT, "it has the items `params` and `config`", config, arrays, params, {})
    tensors, form = _open_safetensors(path)
    config = config_from_hf(_read_json((path if path.is_dir() else path.parent) / "config.json"))
    params, config = _named(path, HF_GPT2, tensors, config)
    buffers = HF_GPT2.buffers_in(HF_GPT2.bare_names(tensors), config)
    return Checkpoint(
        path, form, HF_GPT2, "config.json is a GPT-2's, and every name fits", config, tensors, params, buffers
    )


def write(
    path: str | Path,
    params: Tensors,
    config: GPTConfig,
    *,
    to: str,
    dtype: str | None = None,
    shard_size: str = "5GB",
    tokenizer: Mapping[str, Path] | None = None,
    force: bool = False,
) -> None:
    """Writes a checkpoint as a folder, `to` "hf" or "orbax", reads it back and compares it before it gets its name.

    Raises:
        InputError: `path` is taken, or the parameters do not fit the config.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    path = Path(path).expanduser()
    if to not in WRITTEN:
        raise InputError(f"can't write {to!r}, only {' or '.join(WRITTEN)}")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    limit = parse_size(shard_size)
    check_free(path, WRITTEN[to], force)
    check_space(path, sum(_nbytes(array, dtype) for array in params.values()))
    with temporary_sibling(path) as temporary:
        if to == "hf":
            temporary.mkdir()
            _write_hf(temporary, params, config, dtype, limit)
            folder = temporary
        else:
            from convert.formats import orbax

            HF_GPT2.to_theirs(params, config)  # refuses what does not fit
            orbax.write(temporary, {name: _cast(array, dtype) for name, array in params.items()}, config)
            folder = temporary / "tokenizer"
            folder.mkdir()
        for name, file in (tokenizer or {}).items():
            shutil.copyfile(file, folder / name)
        _compare(read(temporary), params, config, dtype)
        publish(temporary, path)


def _open_safetensors(path: Path) -> tuple[Tensors, str]:
    if path.is_file() and path.suffix == ".safetensors":
        return safetensors.read(path), "safetensors"
    if path.is_dir() and (path / "model.safetensors").is_file():
        return safetensors.read(path / "model.safetensors"), "safetensors"
    if path.is_dir() and (index := path / "model.safetensors.index.json").is_file():
        tensors = safetensors.read_sharded(index)
        return tensors, "safetensors in shards"
    looked_for = "model.safetensors, model.safetensors.index.json or an Orbax checkpoint"
    raise InputError(f"{path}: no checkpoint that can be read here; looked for {looked_for}")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is missing: it says how many heads the model has, which no tensor does")
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: not a JSON object")
    return fields


def _named(path: Path, dialect: Dialect, tensors: Tensors, config: GPTConfig) -> tuple[dict[str, Any], GPTConfig]:
    try:
        return dialect.to_ours(tensors, config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _write_hf(folder: Path, params: Tensors, config: GPTConfig, dtype: str | None, limit: int) -> None:
    tensors = HF_GPT2.to_theirs(params, config)
    kind = np.dtype(dtype) if dtype else None
    fields = config_to_hf(config) | {"dtype": dtype or np.dtype(next(iter(tensors.values())).dtype).name}
    write_json(folder / "config.json", fields)
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    shards = _shards(tensors, dtype, limit)
    if len(shards) == 1:
        return safetensors.write(folder / "model.safetensors", tensors, kind)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        safetensors.write(folder / file, {name: tensors[name] for name in names}, kind)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_nbytes(array, dtype) for array in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: Tensors, dtype: str | None, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + _nbytes(array, dtype) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _nbytes(array, dtype)
    return shards


def _nbytes(array: Any, dtype: str | None) -> int:
    return int(np.prod(array.shape, dtype=np.int64)) * np.dtype(dtype or array.dtype).itemsize


def _cast(array: Any, dtype: str | None) -> np.ndarray:
    return np.asarray(array).astype(dtype or array.dtype, copy=False)


def _compare(written: Checkpoint, params: Tensors, config: GPTConfig, dtype: str | None) -> None:
    if written.config != config:
        raise RuntimeError(f"{written.path}: reads back as {written.config}, not as {config}")
    for name, array in params.items():
        if not same(_cast(array, dtype), written.params[name]):
            raise RuntimeError(
                f"{written.path}: {name} reads back differently from what was written; is the disk sound?"
            )
