"""Recognising the dialect and the config of a checkpoint from its names, shapes and config."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxgpt.convert.config import ACTIVATIONS, GPTConfig
from jaxgpt.convert.contents import Contents
from jaxgpt.convert.dialect import EMBEDDING, HEAD_BIAS, Dialect, Row, Tensors
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.dialects.flax import FLAX
from jaxgpt.convert.dialects.hf import DIALOGPT, HF
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.dialects.lesson import LESSON
from jaxgpt.convert.dialects.llmc import LLMC
from jaxgpt.convert.dialects.mixed_names import mixture_of
from jaxgpt.convert.dialects.nanogpt import BUILD_NANOGPT, MINGPT, NANOGPT, UNKNOWN_LINEAR
from jaxgpt.convert.dialects.old_mingpt import OLD_MINGPT
from jaxgpt.convert.dialects.raschka import RASCHKA
from jaxgpt.convert.dialects.user_table import read_dialect
from jaxgpt.convert.dialects.video_lecture import LECTURE
from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.hf_config import (
    ACTIVATION_ALIASES,
    config_from_hf,
    family_of,
    refuse_other_computation,
    unread_fields,
)
from jaxgpt.convert.unwrap import Unwrapped, unwrap

FORMS = {"gelu": "gelu (the exact form)", "gelu_new": "gelu_new (the tanh form)"}
"""Activations that files leave to the reader, in words."""

ACTIVATION_NAMES = ("activation_function", "activation", "activation_fn", "act", "act_fn", "hidden_act", "nonlinearity")
"""Names under which model_args may state the activation."""

FAMILIES_BY_NAME = (
    (r"gpt_neox\.|(^|\.)layers\.\d+\.attention\.query_key_value", "GPT-NeoX"),
    (r"attn\.attention\.(q|k|v)_proj", "GPT-Neo"),
    (r"(^|\.)decoder\.layers\.\d+\.self_attn\.(q|k|v)_proj", "OPT"),
    (r"(^|\.)layers\.\d+\.self_attn\.(q|k|v)_proj", "a Llama or one of its relatives"),
)
"""Patterns of names by which families are known whose `config.json` must lie beside the weights."""

OTHER_ARCHITECTURES = (
    (r"(^|\.)h\.\d+\.attn\.(q|k|v)_proj", "GPT-J"),
    (r"(^|\.)layers\.\d+\.self_attn", "another model of Llama's kind"),
    (r"rotary_emb", "a model with rotary positions, such as CodeShell"),
    (r"mlp\.c_fc2", "BTLM"),
    (r"crossattention|ln_cross_attn", "a GPT-2 with cross-attention"),
    (r"h\.\d+\.norm_1|attn\.(qkv|attn)\.(weight|bias)$", "litgpt"),
    (
        r"(^|\.)(lora_|ia3_|base_layer\.|modules_to_save\.|prompt_encoder\.)",
        "an adapter such as LoRA, which has to be merged first",
    ),
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
    notes: tuple[str, ...] = ()
    """A sentence for each thing that was left out, ignored or assumed."""


def recognise(
    contents: Contents,
    *,
    dialect: str | None = None,
    n_head: int | None = None,
    activation: str | None = None,
    drop_heads: bool = False,
) -> Recognised:
    """Find the dialect, unless it is given, and the config, as stated in the checkpoint or from the shapes.

    Raises:
        InputError: the checkpoint is of another architecture, or it does not state what has to be known.
    """
    given = None if dialect is None else dialect_called(dialect)
    family = None if contents.config_json is None else family_of(contents.config_json)
    if given is None and family is not None and family.dialect.needs_config:
        given, why = family.dialect, f"config.json says model_type {family.model_type!r}"
    else:
        why = "it was given"
    if given is None and contents.format != "Orbax":  # ours, which may have adapters
        _refuse_other_architectures(contents.tensors)
    if given is not None and given.needs_config and family is None:
        raise InputError(
            f"the weights of {given.title} need their config.json beside them, and there is none: put it there, "
            "since their shapes do not tell what the model computes"
        )
    unwrapped = Unwrapped(dict(contents.tensors)) if contents.config is not None else unwrap(contents.tensors, given)
    tensors, notes = unwrapped.tensors, []
    if unwrapped.heads and not drop_heads:
        shown, what = next(iter(unwrapped.heads.items()))
        raise InputError(
            f"{shown} is {what}; a language model has no such head: drop_heads=True reads the language model alone, "
            "and ignores such heads"
        )
    if left_out := [*unwrapped.heads, *unwrapped.left_out]:
        notes.append(f"left out, as no part of the language model: {_listed(left_out)}")
    found, reason = (given, why) if given is not None else _dialect_by_names(contents, tensors)
    if contents.config is not None:
        config = contents.config
    elif contents.config_json is not None and found not in (NANOGPT, BUILD_NANOGPT):  # theirs is in the file
        config = config_from_hf(contents.config_json, contents.generation_json)
        if unread := unread_fields(contents.config_json):
            notes.append(
                f"fields of config.json that {family_of(contents.config_json).title.partition(' (')[0]} does not have, "
                f"ignored and kept for an export: {_listed(unread)}"
            )
    else:
        model_args = _plain(contents.model_args or {})
        told = _stated_activation(model_args) or activation
        config = _config_by_shapes(found, found.bare_names(tensors), model_args, n_head, told)
        if told is None and found.assumed:
            assumed = config.activation_function
            notes.append(
                f"the activation is not stated in the file: {FORMS.get(assumed, assumed)} is assumed, as in the code "
                f"of {found.title}; if the model was trained with another, give activation="
            )
        if found.caution:
            notes.append(found.caution)
    if n_head not in (None, config.n_head):
        raise InputError(f"n_head={n_head} contradicts the checkpoint, which says {config.n_head}")
    if activation not in (None, config.activation_function):
        raise InputError(f"activation={activation} contradicts the checkpoint's {config.activation_function}")
    return Recognised(found, reason, tensors, config, tuple(notes))


def _listed(names: Sequence[str], n_most: int = 20) -> str:
    """Return names in one line, however strange they are."""
    shown = [name if name.isprintable() and len(name) < 100 else repr(name)[:100] for name in names[:n_most]]
    more = f" and {len(names) - n_most:,} more" if len(names) > n_most else ""
    return ", ".join(shown) + more


def _plain(model_args: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of nanoGPT's model_args that can say something: names, numbers and the like.

    Raises:
        InputError: they say what other models compute, such as rotary positions.
    """
    kinds = (bool, int, float, str, type(None))
    plain = {name: value for name, value in model_args.items() if isinstance(name, str) and isinstance(value, kinds)}
    refuse_other_computation("model_args", list(plain), plain, plain.get("n_head"))
    return plain


def _stated_activation(model_args: dict[str, Any]) -> str | None:
    """Return the activation that model_args state, under our name for it, if they do."""
    stated = next((model_args[name] for name in ACTIVATION_NAMES if model_args.get(name) is not None), None)
    if stated is None:
        return None
    known = ACTIVATION_ALIASES.get(str(stated).lower(), str(stated).lower())
    if known not in ACTIVATIONS:
        raise InputError(f"model_args states the activation {stated!r}; known are {', '.join(ACTIVATIONS)}")
    return known


def _refuse_other_architectures(names: Iterable[str]) -> None:
    for pattern, what in FAMILIES_BY_NAME:
        if hit := next((name for name in names if re.search(pattern, name)), None):
            raise InputError(
                f"{hit} is a tensor of {what}, whose weights need their config.json beside them, and there is "
                "none: put it there, since their shapes do not tell what the model computes"
            )
    for pattern, what in OTHER_ARCHITECTURES:
        if hit := next((name for name in names if re.search(pattern, name)), None):
            raise InputError(f"{hit} is a tensor of {what}: unsupported")


def dialect_called(name: str) -> Dialect:
    """Return the dialect of a name, or that of a user's own table, `my.toml`.

    Raises:
        InputError: there is no such dialect, or the table is not right.
    """
    if str(name).endswith(".toml"):
        return read_dialect(local_path(name))
    if name not in DIALECTS:
        raise InputError(
            f"dialect={name!r}: unknown dialect; known are {', '.join(DIALECTS)}, or a table of your own (my.toml)"
        )
    return DIALECTS[name]


def _dialect_by_names(contents: Contents, tensors: Tensors) -> tuple[Dialect, str]:
    if contents.format == "Orbax":
        return JAXGPT, "an Orbax checkpoint with the items `params` and `config`"
    if contents.format == "llm.c":
        return LLMC, "the file begins with llm.c's magic number"
    names = {HF.bare(name) for name in tensors}
    if "lm_head.decoder.weight" in names:
        return DIALOGPT, "its head is called lm_head.decoder.weight"
    mixed = mixture_of(names)
    if mixed is not None and all(mixed.names != known.names for known in (OLD_MINGPT, LESSON)):
        return mixed, "its parts are named as in several small GPTs"
    if "blocks.0.attn.key.weight" in names:
        return OLD_MINGPT, "query, key and value are separate"
    if "h.0.attn.c_attn.kernel" in names:
        return FLAX, "its names are Flax's: kernel, scale and embedding"
    if "trf_blocks.0.att.W_query.weight" in names:
        return RASCHKA, "its names are trf_blocks, att.W_query and out_head"
    if "blocks.0.sa.heads.0.key.weight" in names:
        return LECTURE, "each head has a query, key and value of its own"
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
        if contents.is_build_nanogpt:
            return BUILD_NANOGPT, f"it has build-nanogpt's config, and {linear}"
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
    stated: dict[str, Any] = {"n_head": n_head, "activation_function": None, **dialect.fixed, **dialect.assumed}
    if activation is not None:
        stated["activation_function"] = activation
    bias = dialect.row("ln_f.bias").names[0] in tensors
    head_bias = any(name in tensors for row in dialect.rows if row.ours == HEAD_BIAS for name in row.names)
    stated |= {"head_bias": head_bias, "tie_word_embeddings": not head_bias}
    counted = _count_heads(dialect.row("blocks.{i}.attn.c_attn.kernel"), tensors, n_layer)
    if model_args:
        stated["n_head"] = model_args.get("n_head", n_head)
        bias = model_args.get("bias", True)
        for name, size in (("vocab_size", V), ("block_size", T), ("n_embd", D), ("n_layer", n_layer)):
            if name in model_args and model_args[name] != size:
                raise InputError(f"model_args says {name} = {model_args[name]!r}, the tensors {size}")
        stated |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), model_args.get("dropout", 0.0))
    if counted is not None:
        stated["n_head"] = counted
    if stated["n_head"] is None:
        raise InputError(
            f"the tensors' shapes don't determine the number of heads, and a wrong number silently gives wrong output: "
            f"give n_head=, a divisor of {D}; checkpoints that jaxgpt convert wrote as orbax, hf or nanogpt contain it"
        )
    if stated["activation_function"] is None:
        raise InputError(
            f"{dialect.title} does not state its activation: give activation=, one of {', '.join(ACTIVATIONS)}; "
            "gelu_new is GPT-2's tanh form, gelu the exact one"
        )
    return GPTConfig(vocab_size=V, n_positions=T, n_embd=D, n_layer=n_layer, n_inner=F, bias=bias, **stated)


def _count_heads(row: Row, tensors: Tensors, n_layer: int) -> int | None:
    """Count the heads that have tensors of their own, in the first block; None, if one tensor holds all of them."""
    if "{j}" not in row.names[0]:
        return None
    pattern = re.compile(re.escape(row.names[0]).replace(r"\{i\}", "0").replace(r"\{j\}", r"\d+"))
    n_heads = sum(bool(pattern.fullmatch(name)) for name in tensors)
    if n_heads * n_layer > len(tensors):
        raise InputError(
            f"incomplete: the first block has tensors for {n_heads} heads; {n_layer} such blocks would need more "
            f"tensors than the {len(tensors)} that are there"
        )
    return n_heads


def _axis_sizes(tensors: Tensors, name: str, side: str, letters: str) -> list[int]:
    """Return the sizes of some axes of a tensor, by their letters in its layout."""
    axes = side.split()
    if name not in tensors or len(tensors[name].shape) != len(axes):
        raise InputError(f"{name} is missing or does not have {len(axes)} axes: the model's size can't be determined")
    return [int(tensors[name].shape[axes.index(letter)]) for letter in letters]
