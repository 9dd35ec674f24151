"""Writing a checkpoint: to a temporary sibling, read back and compared, and only then renamed."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert import peft
from jaxgpt.convert.adapter import merged
from jaxgpt.convert.checkpoint import Checkpoint, open_checkpoint
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import EMBEDDING, HEAD, HEAD_BIAS, Dialect, Tensors
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.dialects.lesson import LESSON
from jaxgpt.convert.dialects.nanogpt import NANOGPT
from jaxgpt.convert.disk import (
    check_free,
    check_space,
    parse_size,
    publish,
    target_path,
    temporary_sibling,
    with_progress,
)
from jaxgpt.convert.errors import InputError, did_you_mean
from jaxgpt.convert.families.hf_config import config_to_hf
from jaxgpt.convert.formats import torch_zip
from jaxgpt.convert.hf_folder import FILES, size_in_bytes, write_hf_folder
from jaxgpt.convert.layout import shape_of
from jaxgpt.convert.mapping import check_params, same, to_theirs
from jaxgpt.convert.recognise import dialect_called
from jaxgpt.convert.source import SIDECARS

TARGETS: dict[str, tuple[Dialect, tuple[str, ...]]] = {
    "orbax": (JAXGPT, ("_CHECKPOINT_METADATA", "commit_success.txt", "digests.json", "params", "config", "tokenizer")),
    "hf": (HF, FILES),  # or the dialect of the model's own family
    "nanogpt": (NANOGPT, ()),
    "lesson": (LESSON, ()),
    "peft": (HF, (*peft.FILES, *SIDECARS)),
}
"""Forms that can be written: the dialect, and the files of its folder that may be replaced (none: one file)."""

DTYPES = ("float32", "float16", "bfloat16")

FIXED_AS_IN_GPT2 = (
    "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_norm_epsilon", "n_kv_head", "head_dim", "split_qkv",
    "qk_norm", "gated_mlp", "parallel_residual", "norm", "positions", "position_offset", "windows",
)  # fmt: skip
"""Fields that nanoGPT's and the lesson's files can't state: their models compute them as GPT-2 does."""

NOT_IN_PT_FILES = (
    "n_padding", "bos_token_id", "eos_token_id", "reorder_and_upcast_attn", "embd_pdrop", "attn_pdrop", "resid_pdrop",
    "carried", "model_type",
)  # fmt: skip
"""Fields that a `.pt` file does not store; none of them changes a logit."""


def write(
    path: str | Path,
    params: Tensors,
    config: GPTConfig,
    *,
    to: str,
    dtype: str | None = None,
    shard_size: str = "5GB",
    tokenizer: Mapping[str, Path] | None = None,
    base: Checkpoint | None = None,
    base_name: str = "",
    force: bool = False,
) -> None:
    """Write a checkpoint, read it back and compare it, and then rename it to `path`.

    Args:
        path: a folder for `"hf"` and `"orbax"`, a file such as `ckpt.pt` for `"nanogpt"` and `"lesson"`.
        params: arrays by our names; they are read one at a time.
        to: the form, one of `TARGETS`, or a table of your own, `"my.toml"`: a `.pt` file with a plain state dict.
        dtype: `"float32"`, `"float16"` or `"bfloat16"` to cast to; by default nothing is cast.
        shard_size: size of the largest safetensors file, such as `"5GB"`.
        tokenizer: files to copy beside the weights, by name.
        base: for `"peft"`, which writes an adapter: the model that this one began as.
        base_name: how PEFT finds that model.
        force: replace a checkpoint at `path`.

    Raises:
        InputError: `path` is taken, or the form can't represent these parameters.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    path = target_path(path).absolute()
    if to not in TARGETS and not to.endswith(".toml"):
        meant = did_you_mean(to, TARGETS)
        raise InputError(
            f"to={to!r}: unknown form{meant}; known are {', '.join(TARGETS)}, or a table of your own (my.toml)"
        )
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: unknown type; known are {', '.join(DTYPES)}")
    dialect, replaceable = TARGETS[to] if to in TARGETS else (dialect_called(to), ())
    shard_bytes = parse_size(shard_size)
    cast_to = np.dtype(dtype) if dtype else None
    check_params(params, config, JAXGPT)
    if to == "peft":
        return _write_adapter(path, params, config, base, base_name, dtype, tokenizer or {}, force)
    if to != "orbax":
        params, config = merged(params, config.lora, config.n_tokens), replace(config, lora=None, n_new_tokens=0)
    if to == "hf" and config.model_type == "gpt2" and config.bias is not True:
        params, config = with_zero_biases(params, config)
    _check_representable(dialect, config)
    check_free(path, replaceable, force)
    size = sum(size_in_bytes(array, cast_to) for array in params.values())
    check_space(path, 2 * size if to == "orbax" else size)  # Orbax may need scratch files
    with temporary_sibling(path) as temporary:
        match to:
            case "hf":
                write_hf_folder(temporary, params, config, cast_to, shard_bytes, tokenizer or {})
            case "orbax":
                _write_orbax(temporary, params, config, cast_to, tokenizer or {})
            case "nanogpt":
                tree = {"model": to_theirs(NANOGPT, params, config), "model_args": model_args(config)}
                torch_zip.write(temporary, tree | {"iter_num": 0, "best_val_loss": 1e9, "config": {}}, cast_to)
            case _:
                torch_zip.write(temporary, to_theirs(dialect, params, config), cast_to)
        if to not in ("hf", "orbax", "nanogpt"):  # a plain state dict states neither
            told: dict[str, Any] = {"n_head": config.n_head, "activation": config.activation_function}
            written = open_checkpoint(temporary, dialect=None if to in TARGETS else to, **told)
        else:
            written = open_checkpoint(temporary)
        _compare(written, params, config, cast_to, to)
        publish(temporary, path, replaces=force)


def _write_adapter(
    path: Path,
    params: Tensors,
    config: GPTConfig,
    base: Checkpoint | None,
    base_name: str,
    dtype: str | None,
    tokenizer: Mapping[str, Path],
    force: bool,
) -> None:
    """Write what differs from `base` as PEFT does, and read it back over `base`."""
    if base is None or dtype is not None:
        raise InputError(
            "to='peft' writes only what a LoRA model adds to a base model: give that model as base=, and no dtype="
        )
    if base.config.tie_word_embeddings != config.tie_word_embeddings or base.config.bias != config.bias:
        raise InputError(
            "to='peft': the model and base= differ in which biases they have, or in whether the head is tied: write it "
            "as another form"
        )
    check_free(path, TARGETS["peft"][1], force)
    params, config = peft.adapted_or_whole(params, config, base.params)
    with temporary_sibling(path) as temporary:
        peft.write_peft_folder(temporary, params, config, base.params, base_name)
        for name, file in tokenizer.items():
            shutil.copyfile(file, temporary / name)
        again, _ = peft.with_adapter(base.params, base.config, temporary)
        expected = merged({name: p for name, p in params.items() if ".lora_" not in name}, None, config.n_tokens)
        for name, array in again.items():
            ours = np.asarray(expected[name] if name in expected else params[name])
            theirs = np.asarray(array).astype(ours.dtype)
            if config.n_new_tokens and name in (EMBEDDING, HEAD):  # without padding
                n = config.n_tokens
                ours, theirs = (x[:n] if name == EMBEDDING else x[:, :n] for x in (ours, theirs))
            if not same(ours, theirs):
                raise RuntimeError(f"{temporary}: {name} differs when read back; is the disk damaged?")
        publish(temporary, path, replaces=force)


def with_zero_biases(params: Tensors, config: GPTConfig) -> tuple[dict[str, Any], GPTConfig]:
    """Add zero biases to a model without biases, for a form that has them."""
    config, dims = replace(config, bias=True), config.dims
    dtype = next(iter(params.values())).dtype
    rows = JAXGPT.expand(config)
    zeros = {row.ours: np.zeros(shape_of(row.right, dims), dtype) for row in rows if row.ours not in params}
    return {**params, **zeros}, config


def model_args(config: GPTConfig) -> dict[str, Any]:
    """Make nanoGPT's config."""
    names = {"vocab_size": "vocab_size", "block_size": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer"}
    sizes = {theirs: getattr(config, ours) for theirs, ours in names.items()}
    return {**sizes, "n_head": config.n_head, "bias": config.bias, "dropout": float(config.resid_pdrop)}


def _check_representable(dialect: Dialect, config: GPTConfig) -> None:
    """Refuse a model that the readers of such a file would compute differently."""
    if config.head_bias and all(row.ours != HEAD_BIAS for row in dialect.rows):
        raise InputError(f"{dialect.title} can't represent this model: its output head has a bias")
    if dialect is JAXGPT:
        return
    if dialect is HF:
        config_to_hf(config)
        return
    gpt2 = GPTConfig()
    wanted = {name: getattr(gpt2, name) for name in FIXED_AS_IN_GPT2}
    wanted |= {"bias": bool(config.bias)}  # all or none
    wanted |= {"n_inner": 4 * config.n_embd} if dialect in (NANOGPT, LESSON) else {}
    wanted |= dict(dialect.fixed) | dict(dialect.assumed)
    if dialect.name == "nanogpt":
        wanted["tie_word_embeddings"] = True
        wanted |= dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.resid_pdrop)
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise InputError(
                f"{dialect.title} can't represent this model: there, {name} is always {value!r}; the model's is "
                f"{getattr(config, name)!r}"
            )


def _write_orbax(
    folder: Path, params: Tensors, config: GPTConfig, dtype: np.dtype | None, tokenizer: Mapping[str, Path]
) -> None:
    from jaxgpt.convert.formats import orbax

    orbax.write(folder, params, config, dtype)
    (folder / "tokenizer").mkdir()
    for name, file in tokenizer.items():
        shutil.copyfile(file, folder / "tokenizer" / name)


def _cast(array: Any, dtype: np.dtype | None) -> np.ndarray:
    return np.asarray(array).astype(dtype or array.dtype, copy=False)


def _compare(written: Checkpoint, params: Tensors, config: GPTConfig, dtype: np.dtype | None, to: str) -> None:
    expected = config
    if to == "hf":  # what was carried came with the ids of its time
        expected = replace(config, carried=written.config.carried)
    elif to != "orbax":  # such files do not store these
        expected = replace(config, **{name: getattr(written.config, name) for name in NOT_IN_PT_FILES})
    if written.config != expected:
        raise RuntimeError(f"{written.path}: reads back as {written.config}, not as {expected}")
    for name in with_progress("comparing", params, params, dtype):
        if not same(_cast(params[name], dtype), written.params[name]):
            raise RuntimeError(f"{written.path}: {name} differs when read back; is the disk damaged?")
