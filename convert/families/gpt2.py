"""GPT-2's `config.json`, as `GPT2Config` reads it."""

from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.families.family import Family, Fields


def _read(fields: Fields) -> dict[str, Any]:
    width = fields["n_embd"]
    return {"n_inner": 4 * width} if fields["n_inner"] is None and isinstance(width, int) else {}


def _written(config: GPTConfig) -> dict[str, Any]:
    return {"n_inner": None if config.n_inner == 4 * config.n_embd else config.n_inner}


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    title="GPT-2",
    dialect=HF,
    fields={
        "vocab_size": ("vocab_size", 50257),
        "n_positions": ("n_positions", 1024),
        "n_embd": ("n_embd", 768),
        "n_layer": ("n_layer", 12),
        "n_head": ("n_head", 12),
        "n_inner": ("n_inner", None),
        "activation_function": ("activation_function", "gelu_new"),
        "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "scale_attn_weights": ("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx", False),
        "reorder_and_upcast_attn": ("reorder_and_upcast_attn", False),
        "tie_word_embeddings": ("tie_word_embeddings", True),
        "embd_pdrop": ("embd_pdrop", 0.1),
        "attn_pdrop": ("attn_pdrop", 0.1),
        "resid_pdrop": ("resid_pdrop", 0.1),
        "bos_token_id": ("bos_token_id", 50256),
        "eos_token_id": ("eos_token_id", 50256),
    },
    read=_read,
    written=_written,
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    at_default={
        "add_cross_attention": (False, None),
        "position_embedding_type": ("absolute", None),
        "do_layer_norm_before": (True,),
        "apply_residual_connection_post_layernorm": (False,),
    },
)
