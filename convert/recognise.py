"""Recognising the dialect and the config of a checkpoint from its names, shapes and config."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.convert.config import ACTIVATIONS, GPTConfig
from jaxgpt.convert.contents import Contents
from jaxgpt.convert.dialect import EMBEDDING, Dialect, Tensors
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.dialects.hf import DIALOGPT, HF
from jaxgpt.convert.dialects.hf_config import config_from_hf
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.dialects.lesson import LESSON
from jaxgpt.convert.dialects.linear import MINGPT, NANOGPT, UNKNOWN_LINEAR
from jaxgpt.convert.dialects.llmc import LLMC
from jaxgpt.convert.dialects.old_mingpt import OLD_MINGPT
from jaxgpt.convert.dialects.own import read_dialect
from jaxgpt.convert.dialects.raschka import RASCHKA
from jaxgpt.convert.errors import InputError

WRAPPERS = ("_orig_mod.", "module.", "model.")
"""Prefixes that torch.compile, DataParallel and Lightning add to every name."""

OTHER_ARCHITECTURES = (
    (r"gpt_neox\.", "GPT-NeoX"),
    (r"attn\.attention\.(q|k|v)_proj", "GPT-Neo"),
    (r"attn\.(q|k|v)_proj|(^|\.)layers\.\d+\.self_attn", "GPT-J or a Llama"),
    (r"rotary_emb", "a model with rotary positions, such as CodeShell"),
    (r"mlp\.c_fc2", "BTLM"),
    (r"crossattention|ln_cross_attn", "a GPT-2 with cross-attention"),
    (r"h\.\d+\.norm_1|attn\.(qkv|attn)\.(weight|bias)$", "litgpt"),
    (r"\.lora_|base_model\.", "a LoRA adapter: merge it into its base model first"),
)
"""Patterns of names that no GPT-2 has, and the similar architectures that have them."""


@dataclass(frozen=True)
class Recognised:
    """The dialect and config of a checkpoint."""

    dialect: Dialect
    reason: str
    tensors: Tensors
    """Tensors by the dialect's names, without wrappers."""
    config: GPTConfig


def recognise(
    contents: Contents, *, dialect: str | None = None, n_head: int | None = None, activation: str | None = None
) -> Recognised:
    """Find the dialect, unless it is given, and the config, as stated in the checkpoint or from the shapes.

    Raises:
        InputError: the checkpoint is of another architecture, or it does not state what has to be known.
    """
    given = None if dialect is None else dialect_called(dialect)
    tensors = unwrap(contents.tensors)
    found, reason = (given, "it was given") if given is not None else _dialect_by_names(contents, tensors)
    if contents.config is not None:
        config = contents.config
    elif contents.config_json is not None and found is not NANOGPT:  # nanoGPT's own model_args are in the file
        config = config_from_hf(contents.config_json)
    else:
        config = _config_by_shapes(found, found.bare_names(tensors), contents.model_args or {}, n_head, activation)
    if n_head not in (None, config.n_head):
        raise InputError(f"n_head={n_head} contradicts the checkpoint, which says {config.n_head}")
    if activation not in (None, config.activation_function):
        raise InputError(f"activation={activation} contradicts the checkpoint's {config.activation_function}")
    return Recognised(found, reason, tensors, config)


def dialect_called(name: str) -> Dialect:
    """Return the dialect of a name, or that of a user's own table, `my.toml`.

    Raises:
        InputError: there is no such dialect, or the table is not right.
    """
    if str(name).endswith(".toml"):
        return read_dialect(Path(name).expanduser())
    if name not in DIALECTS:
        raise InputError(
            f"dialect={name!r}: unknown dialect; known are {', '.join(DIALECTS)}, or a table of your own (my.toml)"
        )
    return DIALECTS[name]


def unwrap(tensors: Tensors) -> dict[str, Any]:
    """Remove wrappers from the names, and rename LayerNorm's old gamma and beta."""
    unwrapped = dict(tensors)
    for wrapper in WRAPPERS * 2:  # in any order
        if unwrapped and all(name.startswith(wrapper) for name in unwrapped):
            unwrapped = {name.removeprefix(wrapper): array for name, array in unwrapped.items()}
    renamed: dict[str, Any] = {}
    for name, array in unwrapped.items():
        new = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if new in renamed:
            raise InputError(f"{new} appears twice, under its old name and its new one")
        renamed[new] = array
    return renamed


def _dialect_by_names(contents: Contents, tensors: Tensors) -> tuple[Dialect, str]:
    if contents.format == "Orbax":
        return JAXGPT, "an Orbax checkpoint with the items `params` and `config`"
    if contents.format == "llm.c":
        return LLMC, "the file begins with llm.c's magic number"
    for pattern, what in OTHER_ARCHITECTURES:
        if hit := next((name for name in tensors if re.search(pattern, name)), None):
            raise InputError(f"{hit} is a tensor of {what}, not of GPT-2: unsupported")
    names = {HF.bare(name) for name in tensors}
    if "lm_head.decoder.weight" in names:
        return DIALOGPT, "its head is called lm_head.decoder.weight"
    if "blocks.0.attn.key.weight" in names:
        return OLD_MINGPT, "query, key and value are separate"
    if "trf_blocks.0.att.W_query.weight" in names:
        return RASCHKA, "its names are trf_blocks, att.W_query and out_head"
    if "blocks.0.mlp.fc1.weight" in names:
        return LESSON, "its names are tok_emb, blocks, fc1 and fc2"
    kernel = next((tensors[name] for name in tensors if HF.bare(name) == "h.0.attn.c_attn.weight"), None)
    norm = next((tensors[name] for name in tensors if HF.bare(name) == "h.0.ln_1.weight"), None)
    if kernel is None or norm is None or len(kernel.shape) != 2 or len(norm.shape) != 1:
        some = ", ".join(list(tensors)[:4]) or "none"
        raise InputError(
            f"unknown checkpoint format: its {len(tensors)} names are like {some}; if they follow a known dialect, "
            f"give dialect=, one of {', '.join(DIALECTS)}; if not, a table of your own, which jaxgpt convert SRC "
            "--propose=my.toml drafts"
        )
    rows, columns = kernel.shape
    if columns == 3 * rows and rows == norm.shape[0]:
        return HF, f"c_attn is (in, out), {rows} x {columns}: Conv1D"
    if rows == 3 * columns and columns == norm.shape[0]:
        linear = f"c_attn is (out, in), {rows} x {columns}: nn.Linear"
        if contents.model_args is not None:
            return NANOGPT, f"it has nanoGPT's model_args, and {linear}"
        if any(HF.bare(name) == "h.0.attn.bias" for name in tensors):
            return MINGPT, f"{linear}, beside masks called attn.bias"
        return UNKNOWN_LINEAR, linear
    raise InputError(
        f"h.0.attn.c_attn.weight is {rows} x {columns}, and the width {norm.shape[0]}: not GPT-2's query, key, value "
        "(multi-query attention, as in BigCode?)"
    )


def _config_by_shapes(
    dialect: Dialect, tensors: Tensors, model_args: dict[str, Any], n_head: int | None, activation: str | None
) -> GPTConfig:
    """Derive the config of a checkpoint that has none."""
    fc1, pos, tok = dialect.row("blocks.{i}.mlp.fc1.kernel"), dialect.row("pos_emb.embedding"), dialect.row(EMBEDDING)
    V, D = _axis_sizes(tensors, tok.at(0).names[0], tok.left, "VD")
    (T,) = _axis_sizes(tensors, pos.names[0], pos.left, "T")
    (F,) = _axis_sizes(tensors, fc1.at(0).names[0], fc1.left, "F")
    block = re.compile(re.escape(fc1.names[0]).replace(r"\{i\}", r"(\d+)"))
    n_layer = 1 + max(int(found[1]) for name in tensors if (found := block.fullmatch(name)))
    stated = {"n_head": n_head, "activation_function": activation} | dict(dialect.fixed)
    if activation is not None:
        stated["activation_function"] = activation
    bias = dialect.row("ln_f.bias").names[0] in tensors
    if model_args:
        stated["n_head"] = model_args.get("n_head")
        bias = model_args.get("bias", True)
        for name, size in (("vocab_size", V), ("block_size", T), ("n_embd", D), ("n_layer", n_layer)):
            if name in model_args and model_args[name] != size:
                raise InputError(f"model_args says {name} = {model_args[name]!r}, the tensors {size}")
        stated |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), model_args.get("dropout", 0.0))
    if stated["n_head"] is None:
        raise InputError(
            f"the tensors' shapes don't determine the number of heads, and a wrong number silently gives wrong output: "
            f"give n_head=, a divisor of {D}; what jaxgpt convert writes as orbax, hf or nanogpt states it"
        )
    if stated["activation_function"] is None:
        raise InputError(
            f"{dialect.title} does not state its activation: give activation=, one of {', '.join(ACTIVATIONS)}; "
            "gelu_new is GPT-2's tanh form, gelu the exact one"
        )
    return GPTConfig(vocab_size=V, n_positions=T, n_embd=D, n_layer=n_layer, n_inner=F, bias=bias, **stated)


def _axis_sizes(tensors: Tensors, name: str, side: str, letters: str) -> list[int]:
    """Return the sizes of some axes of a tensor, by their letters in its layout."""
    axes = side.split()
    if name not in tensors or len(tensors[name].shape) != len(axes):
        raise InputError(f"{name} is missing or does not have {len(axes)} axes: the model's size can't be determined")
    return [int(tensors[name].shape[axes.index(letter)]) for letter in letters]
