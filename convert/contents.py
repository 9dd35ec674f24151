"""The contents of a folder or file: its format, its tensors by their own names, and the configs that it holds."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.base import Base
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import Tensors
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats import flax_msgpack, llmc, safetensors, torch_legacy, torch_zip
from jaxgpt.convert.formats.pickle_names import Attributes
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.source import check_link

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)
"""Files of a folder that may hold the weights, in the order of precedence."""

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict", "module", "model_state", "net", "network", "weights")
"""Keys under which a training script may have saved its state dict, or a dict that holds it under another of them."""

MAX_SHARDS = 1000
"""Files of one checkpoint, at most."""

MAX_DEPTH = 6
"""How many such keys may lead to a state dict."""


@dataclass(frozen=True)
class Contents:
    """An opened checkpoint whose dialect is not recognised yet."""

    format: str
    tensors: Tensors
    config: GPTConfig | None = None
    """Our config, where the format has one."""
    config_json: dict[str, Any] | None = None
    """Hugging Face's config, where there is one beside the weights."""
    generation_json: dict[str, Any] | None = None
    """Its settings of generation, where they are beside the config."""
    model_args: dict[str, Any] | None = None
    """nanoGPT's config, where the file has one."""
    is_build_nanogpt: bool = False
    """True if these are a config object as build-nanogpt saves it, which has no `bias`."""
    base: Base | None = None
    """Where other parameters are, which a run's checkpoint leaves in the model that the run began as."""


def open_contents(path: Path, *, averaged: bool = False) -> Contents:
    """Open a folder or a file without reading tensor data.

    Args:
        averaged: take parameters by their moving average, which a run may have kept.

    Raises:
        InputError: there are no weights, or no averages of them, or they are damaged.
    """
    if path.is_dir() and (path / "params").is_dir():
        from jaxgpt.convert.formats import orbax

        params, config, base = orbax.read(path, averaged=averaged)
        return Contents("Orbax", params, config=config, base=base)
    if averaged:
        raise InputError(f"{path}: averaged=True reads checkpoints of runs that kept an average; this is not one")
    weights = path if path.is_file() else next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise InputError(f"{path}: no checkpoint found; looked for {', '.join(WEIGHT_FILES)} and Orbax's params")
    found = _open_weights(weights)
    for name in found.tensors:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{weights}: the name {name!r} is not valid Unicode") from None
    if (weights.parent / "config.json").is_file() and found.config is None:
        for name in ("config.json", "generation_config.json"):  # what they hold goes into an export
            check_link(weights.parent / name, weights.parent)
        found = replace(found, config_json=read_json(weights.parent / "config.json"))
        with contextlib.suppress(InputError):  # a broken one changes nothing that is computed
            found = replace(found, generation_json=read_json(weights.parent / "generation_config.json"))
    return found


def _open_weights(weights: Path) -> Contents:
    if weights.name.endswith(".safetensors.index.json"):
        return Contents("safetensors in shards", read_shards(weights, ".safetensors", safetensors.read))
    if weights.name.endswith(".index.json"):
        return Contents("PyTorch files in shards", read_shards(weights, ".bin", _state_dict))
    if weights.suffix == ".safetensors":
        return Contents("safetensors", safetensors.read(weights))
    if weights.suffix == ".msgpack":
        return Contents("Flax msgpack", flax_msgpack.read(weights))
    if llmc.is_llmc(weights):
        tensors, config = llmc.read(weights)
        return Contents("llm.c", tensors, config=config)
    name, tree = _read_torch(weights)
    tensors = _find_state_dict(weights, tree)
    if not isinstance(tree, dict):
        return Contents(name, tensors)
    model_args, beside = tree.get("model_args"), tree.get("config")
    if isinstance(model_args, dict):
        return Contents(name, tensors, model_args=model_args)
    if isinstance(beside, Attributes) and {"block_size", "n_head"} <= beside.keys():
        return Contents(name, tensors, model_args=dict(beside), is_build_nanogpt="bias" not in beside)
    return Contents(name, tensors)


def open_file(path: Path) -> Tensors:
    """Return the tensors of a safetensors or PyTorch file, by name."""
    return safetensors.read(path) if path.suffix == ".safetensors" else _state_dict(path)


def read_shards(index: Path, suffix: str, read: Callable[[Path], Tensors]) -> dict[str, Any]:
    """Read all tensors of an index, each from the file that it names in the index's own folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: not an index of shards")
    shards = sorted(set(weight_map.values()))
    if len(weight_map) > safetensors.MAX_TENSORS or len(shards) > MAX_SHARDS:
        raise InputError(
            f"{index}: {len(weight_map):,} tensors in {len(shards):,} shards; no GPT-2 has more than "
            f"{safetensors.MAX_TENSORS:,} in {MAX_SHARDS:,}"
        )
    if wrong := [shard for shard in shards if Path(shard).name != shard or Path(shard).suffix != suffix]:
        raise InputError(f"{index}: {wrong[0]!r} is not the name of a {suffix} file in the same folder")
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise InputError(f"{index}: shards are missing: {', '.join(missing[:8])}{' …' * (len(missing) > 8)}")
    found: dict[str, Any] = {}
    for shard in shards:
        tensors = read(index.parent / shard)
        if strays := [name for name in tensors if weight_map.get(name) != shard]:
            raise InputError(f"{index}: {shard} holds {strays[0]!r}, which the index does not place there")
        found |= tensors
    if absent := [name for name in weight_map if name not in found]:
        raise InputError(f"{index}: {absent[0]!r} is not in {weight_map[absent[0]]}")
    return found


def _read_torch(path: Path) -> tuple[str, Any]:
    """Return the name of a PyTorch file's format, and the object in it."""
    with path.open("rb") as file:
        magic = file.read(512)
    if magic[:4] == b"PK\3\4":
        return "PyTorch zip", torch_zip.read(path)
    if torch_legacy.is_legacy(magic):
        return "PyTorch before 1.6", torch_legacy.read(path)
    raise InputError(f"{path}: {_describe_unreadable(magic)}")


def _state_dict(path: Path) -> Tensors:
    return _find_state_dict(path, _read_torch(path)[1])


def _find_state_dict(path: Path, tree: Any) -> dict[str, np.ndarray]:
    """Return the dict of tensors in what a file holds: itself, or the first one under the keys, by their depth."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        for found in level:
            if isinstance(found, Mapping) and found and all(isinstance(v, np.ndarray) for v in found.values()):
                if not all(isinstance(name, str) for name in found):
                    raise InputError(f"{path}: the names of its tensors are not strings")
                return dict(found)
        inner = [found.get(key) for found in level if isinstance(found, Mapping) for key in STATE_DICT_KEYS]
        level = list({id(found): found for found in inner if isinstance(found, Mapping)}.values())  # no circles
    found_instead = f"it holds {', '.join(map(repr, list(tree)[:8]))}" if isinstance(tree, Mapping) else "it is no dict"
    raise InputError(f"{path}: no state dict in it, nor under {', '.join(STATE_DICT_KEYS)}; {found_instead}")


def _describe_unreadable(magic: bytes) -> str:
    resave = "load it with torch.load(…, weights_only=True) in PyTorch and torch.save its state dict again"
    if magic[257:262] == b"ustar":
        return f"a tar archive of PyTorch before 0.2, which is not supported: {resave}"
    if magic[:1] == b"\x80":
        return f"a bare pickle, which is not supported: {resave}"
    return "no safetensors, PyTorch or llm.c file"
