"""From a checkpoint to a model and back: `from_pretrained`, `save_pretrained`, and our own Orbax `save` and `load`."""

import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgpt import convert
from jaxgpt.convert.disk import target_path
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.hub import check_upload, set_license, upload
from jaxgpt.convert.source import SIDECARS
from jaxgpt.loading import to_jax
from jaxgpt.model.gpt import GPT, abstract
from jaxgpt.params import named_params, with_params
from jaxgpt.quantised import is_quantised, quantise_model
from jaxgpt.tokenizer import decide_ids
from jaxgpt.vocab import pad_vocab


def from_pretrained(
    source: str | Path | convert.Checkpoint,
    *,
    dialect: str | None = None,
    n_head: int | None = None,
    activation: str | None = None,
    drop_heads: bool = False,
    adapter: str | Path | None = None,
    averaged: bool = False,
    mesh: Mesh | None = None,
    param_dtype=None,
    dtype=None,
    weights: str = "float",
) -> GPT:
    """Load the model of a checkpoint.

    Args:
        source: `"tiny"` (bundled), a Hugging Face folder, a `.safetensors`, `.pt` or `.bin` file, an Orbax checkpoint,
            a training run (its newest checkpoint), or a hub name such as `"gpt2"` or `"gpt2@main"`; or a
            checkpoint that `convert.read` has opened.
        dialect: how its tensors are named and laid out; detected by default.
        n_head: the number of heads, needed where the file has tensors only.
        activation: the activation function, needed where neither config nor dialect states it.
        drop_heads: leave other heads behind, such as a classifier's or a value head.
        adapter: a LoRA adapter of PEFT's for this model, a folder or a hub name; `merge_lora` puts it into the weights.
        averaged: of a run that kept a moving average of what trains (`--ema`), load that.
        mesh: where the parameters go, by the rules of `jaxgpt.mesh`; the first device without. A vocabulary that its
            `tensor` does not divide is padded.
        param_dtype: what the parameters are kept in; float32 by default, whatever the file holds.
        dtype: what matrix products compute in; `param_dtype` by default.
        weights: `"int8"` keeps the kernels in 8 bits, for text at batch 1 on a CPU; see `jaxgpt.quantised`. Such a
            model can't be saved.

    Raises:
        InputError: tensors are missing, unknown or of another shape; the message lists them all. Or `weights="int8"`
            with a mesh.
    """
    if weights not in ("float", "int8"):
        raise InputError(f"weights must be 'float' or 'int8', not {weights!r}")
    if weights == "int8" and mesh is not None:
        raise InputError("weights='int8' is for one device: leave out mesh=")
    if isinstance(source, convert.Checkpoint):
        checkpoint = source
    else:
        checkpoint = convert.read(
            source, dialect=dialect, n_head=n_head, activation=activation, drop_heads=drop_heads, adapter=adapter,
            averaged=averaged,
        )  # fmt: skip
    param_dtype = np.dtype(param_dtype or jnp.float32)
    model = abstract(checkpoint.config, dtype=dtype or param_dtype, param_dtype=param_dtype)
    model = with_params(model, to_jax(checkpoint, param_dtype, mesh))
    if weights == "int8":
        return quantise_model(model)
    return model if mesh is None else pad_vocab(model, mesh)


def save_pretrained(
    model: GPT,
    path: str | Path,
    *,
    dialect: str = "hf",
    tokenizer: Any = None,
    dtype: str | None = None,
    shard_size: str = "5GB",
    force: bool = False,
    push_to_hub: str | None = None,
    license: str | None = None,
    private: bool = True,
) -> None:
    """Write what PyTorch reads, by default a folder for transformers, and read it back to compare.

    Args:
        dialect: `"hf"`; `"nanogpt"` or `"lesson"` for a `.pt` file; `"orbax"` for our own form.
        tokenizer: a transformers tokenizer, saved beside the weights.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; the parameters' own by default.
        shard_size: bytes of the largest file, as in `"5GB"`.
        force: replace a checkpoint that is there; with `push_to_hub` also the model in the repository.
        push_to_hub: `"OWNER/NAME"`, a repository of the hub, into which the folder is uploaded.
        license: with `push_to_hub`, which needs it: the hub's name of a licence, such as `"mit"` or `"other"`.
        private: whether a repository that is made is private.

    Raises:
        InputError: `path` is taken, the form can't represent the model, or the hub refuses something.
    """
    if is_quantised(model):
        raise InputError("a model with int8 weights can't be saved: save the model that it was made from")
    if push_to_hub is not None:
        if dialect != "hf" or license is None:
            raise InputError("push_to_hub= works only with dialect='hf', and needs license=, such as license='mit'")
        check_upload(push_to_hub, license)
    with tempfile.TemporaryDirectory() as folder:
        config = model.config
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
            config, _ = decide_ids(config, tokenizer)
        files = {name: Path(folder) / name for name in SIDECARS if (Path(folder) / name).is_file()}
        convert.write(
            path, named_params(model), config,
            to=dialect, dtype=dtype, shard_size=shard_size, tokenizer=files, force=force,
        )  # fmt: skip
    if push_to_hub is not None and license is not None:
        written = target_path(path)
        set_license(written / "README.md", license)
        upload(written, push_to_hub, private=private, force=force)


def save(model: GPT, path: str | Path, *, tokenizer: Any = None, force: bool = False) -> None:
    """Write an Orbax checkpoint: every parameter under its dotted name, and the config."""
    save_pretrained(model, path, dialect="orbax", tokenizer=tokenizer, force=force)


def load(path: str | Path, **how: Any) -> GPT:
    """Read what `save` wrote, or any other checkpoint: `from_pretrained`, with the same arguments."""
    return from_pretrained(path, **how)
