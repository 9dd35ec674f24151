"""Llama's `config.json`, as of TinyLlama and SmolLM2, and Mistral's."""

from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.llama import LLAMA
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families import rotary
from jaxgpt.convert.families.family import Family, Fields, n_blocks, window_size

FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "max_position_embeddings": ("n_positions", 2048),
    "hidden_size": ("n_embd", 4096),
    "num_hidden_layers": ("n_layer", 32),
    "num_attention_heads": ("n_head", 32),
    "num_key_value_heads": ("n_kv_head", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("n_inner", 11008),
    "hidden_act": ("activation_function", "silu"),
    "rms_norm_eps": ("layer_norm_epsilon", 1e-6),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "attention_dropout": ("attn_pdrop", 0.0),
    "bos_token_id": ("bos_token_id", 1),
    "eos_token_id": ("eos_token_id", 2),
}
"""Fields that all families have which are made like Llama, with Llama's defaults."""

FIXED = {"split_qkv": True, "gated_mlp": True, "norm": "rms", "positions": "rotary"}
"""Fields of ours that are the same in all of them."""


def write_attention(config: GPTConfig) -> dict[str, Any]:
    """Return the fields about heads and positions, each said in full: defaults differ between releases."""
    dims = config.dims
    return rotary.write_rotary(config) | {"num_key_value_heads": dims["K"], "head_dim": dims["H"]}


def read_attention(fields: Fields) -> dict[str, Any]:
    """Return what all such families say about positions; a null dropout is none."""
    found = rotary.whole_heads(rotary.read_rotary(fields))
    return found | ({"attn_pdrop": 0.0} if fields["attention_dropout"] is None else {})


def _read(fields: Fields) -> dict[str, Any]:
    attention, mlp = fields.get("attention_bias", False), fields.get("mlp_bias", False)
    if not isinstance(attention, bool) or not isinstance(mlp, bool):
        raise InputError("config.json: attention_bias and mlp_bias must be true or false")
    bias = (*(("qkv", "attn_out") if attention else ()), *(("mlp",) if mlp else ()))
    return read_attention(fields) | {"bias": bias}


def _written(config: GPTConfig) -> dict[str, Any]:
    bias = {"attention_bias": config.has_bias("q_proj"), "mlp_bias": config.has_bias("fc1")}
    return write_attention(config) | bias


def _read_mistral(fields: Fields) -> dict[str, Any]:
    window = window_size(fields.get("sliding_window", 4096))
    windows = (window,) * n_blocks(fields["num_hidden_layers"])
    kinds = fields.get("layer_types")  # with which transformers makes another class, that has them
    if kinds is not None and kinds != ["sliding_attention" if window else "full_attention"] * len(windows):
        raise InputError(
            "config.json: layer_types that disagrees with sliding_window is not supported: is it a Ministral?"
        )
    return read_attention(fields) | {"windows": windows, "bias": False}


def _written_mistral(config: GPTConfig) -> dict[str, Any]:
    if len({*config.windows}) > 1:
        raise InputError("a Mistral has one window for all blocks")
    return write_attention(config) | {"sliding_window": config.window(0) or None}


LLAMAS = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    title="Llama (TinyLlama, SmolLM2)",
    dialect=LLAMA,
    fields=FIELDS,
    fixed=FIXED,
    read_together=(*rotary.NAMES, "attention_bias", "mlp_bias"),
    read=_read,
    written=_written,
    irrelevant=frozenset({"pretraining_tp"}),
)

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    title="Mistral",
    dialect=LLAMA,
    fields=FIELDS
    | {
        "max_position_embeddings": ("n_positions", 4096 * 32),
        "num_key_value_heads": ("n_kv_head", 8),
        "intermediate_size": ("n_inner", 14336),
    },
    fixed=FIXED,
    read_together=(*rotary.NAMES, "sliding_window", "layer_types"),
    read=_read_mistral,
    written=_written_mistral,
)
