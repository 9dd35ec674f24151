"""Writing a folder like that of transformers' `save_pretrained`."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import Tensors
from jaxgpt.convert.disk import write_json
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.families.hf_config import config_to_hf, generation_to_hf
from jaxgpt.convert.formats import safetensors
from jaxgpt.convert.mapping import to_theirs
from jaxgpt.convert.source import SIDECARS

FILES = (
    "config.json", "generation_config.json", "README.md", "model*.safetensors", "model.safetensors.index.json",
    *SIDECARS,
)  # fmt: skip
"""Names of the files in such a folder."""


def write_hf_folder(
    folder: Path,
    params: Tensors,
    config: GPTConfig,
    dtype: np.dtype | None,
    shard_bytes: int,
    tokenizer: Mapping[str, Path],
) -> None:
    """Write configs, model card, tokenizer, and weights in shards of at most `shard_bytes`."""
    folder.mkdir()
    family = FAMILIES[config.model_type]
    tensors = to_theirs(family.dialect, params, config)
    fields = config_to_hf(config) | {"dtype": np.dtype(dtype or next(iter(tensors.values())).dtype).name}
    write_json(folder / "config.json", fields)
    write_json(folder / "generation_config.json", generation_to_hf(config))
    n_params = sum(math.prod(array.shape) for array in params.values())
    title, tag = family.title.partition(" (")[0], family.model_type
    card = (
        f"A {title} of {n_params:,} parameters, written by jaxgpt. Describe here its training data and its purpose.\n"
    )
    head = f"---\nlibrary_name: transformers\ntags: [{tag}, jaxgpt]\n---\n"
    (folder / "README.md").write_text(f"{head}\n{card}", "utf-8")
    for name, source in tokenizer.items():
        shutil.copyfile(source, folder / name)
    shards = _shards(tensors, dtype, shard_bytes)
    if len(shards) == 1:
        return safetensors.write(folder / "model.safetensors", tensors, dtype)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        safetensors.write(folder / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(size_in_bytes(array, dtype) for array in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: Tensors, dtype: np.dtype | None, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + size_in_bytes(array, dtype) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += size_in_bytes(array, dtype)
    return shards


def size_in_bytes(array: Any, dtype: np.dtype | None) -> int:
    """Return the bytes of an array, cast to `dtype` if there is one."""
    return math.prod(array.shape) * np.dtype(dtype or array.dtype).itemsize
