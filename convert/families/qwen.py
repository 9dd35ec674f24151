"""Qwen's `config.json`: Qwen2 and 2.5, with biases on q, k and v only, and Qwen3, which norms queries and keys."""

from dataclasses import replace
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.llama import LLAMA
from jaxgpt.convert.dialects.qwen3 import QWEN3
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families import rotary
from jaxgpt.convert.families.family import Family, Fields, n_blocks, window_size
from jaxgpt.convert.families.llama import FIELDS, FIXED, read_attention, write_attention

WINDOW, N_WITHOUT = 4096, 28
"""The defaults of transformers."""

WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
"""Fields about windows."""


def read_windows(fields: Fields) -> dict[str, Any]:
    """Return which blocks have windows, as transformers decides it."""
    n_layer = n_blocks(fields["num_hidden_layers"])
    window = window_size(fields.get("sliding_window", WINDOW) if fields.get("use_sliding_window", False) else None)
    first, kinds = fields.get("max_window_layers", N_WITHOUT), fields.get("layer_types")
    if kinds is None:
        if window and (not isinstance(first, int) or isinstance(first, bool)):
            raise InputError("config.json: max_window_layers must be a number of blocks")
        kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(n_layer)]
    is_known = isinstance(kinds, list) and all(kind in ("sliding_attention", "full_attention") for kind in kinds)
    if not is_known or len(kinds) != n_layer:
        raise InputError("config.json: layer_types must say full_attention or sliding_attention for each block")
    if not window and "sliding_attention" in kinds:
        raise InputError("config.json contradicts itself: layer_types has windows, and there is no sliding_window")
    return {"windows": tuple(window if kind == "sliding_attention" else 0 for kind in kinds)}


def write_windows(config: GPTConfig) -> dict[str, Any]:
    """Return the fields about windows."""
    windows = config.windows or (0,) * config.n_layer
    sizes = {*windows} - {0}
    if len(sizes) > 1:
        raise InputError(f"a Qwen has one size of windows, not {len(sizes)}")
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"use_sliding_window": bool(sizes), "sliding_window": next(iter(sizes), None), "layer_types": kinds}


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    title="Qwen2 (Qwen2.5)",
    dialect=LLAMA,
    fields=FIELDS
    | {
        "vocab_size": ("vocab_size", 151936),
        "max_position_embeddings": ("n_positions", 32768),
        "num_key_value_heads": ("n_kv_head", 32),
        "intermediate_size": ("n_inner", 22016),
        "bos_token_id": ("bos_token_id", None),
        "eos_token_id": ("eos_token_id", None),
    },
    fixed=FIXED | {"bias": ("qkv",)},
    read_together=(*rotary.NAMES, *WINDOWS),
    read=lambda fields: read_attention(fields) | read_windows(fields),
    written=lambda config: write_attention(config) | write_windows(config),
)


def _read_qwen3(fields: Fields) -> dict[str, Any]:
    bias = fields.get("attention_bias", False)
    if not isinstance(bias, bool):
        raise InputError("config.json: attention_bias must be true or false")
    return read_attention(fields) | read_windows(fields) | {"bias": ("qkv", "attn_out") if bias else False}


QWEN3_FAMILY = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    title="Qwen3",
    dialect=QWEN3,
    fields=QWEN2.fields | {"head_dim": ("head_dim", 128)},
    fixed=FIXED | {"qk_norm": True},
    read_together=(*QWEN2.read_together, "attention_bias"),
    read=_read_qwen3,
    written=lambda config: (
        write_attention(config) | write_windows(config) | {"attention_bias": config.has_bias("q_proj")}
    ),
)
