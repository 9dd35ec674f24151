"""OPT's `config.json`. OPT-350m, whose norms come after and whose embeddings are narrower, is refused."""

from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.opt import OPT
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.family import Family, Fields


def _read(fields: Fields) -> dict[str, Any]:
    narrow, width = fields.get("word_embed_proj_dim"), fields["hidden_size"]
    if narrow not in (None, width) or fields.get("do_layer_norm_before", True) is not True:
        raise InputError(
            "config.json: an OPT with norms after each layer, or embeddings of another width than its blocks, as "
            "OPT-350m has: unsupported; the other sizes are read"
        )
    bias = fields.get("enable_bias", True)
    if not isinstance(bias, bool):
        raise InputError("config.json: enable_bias must be true or false")
    return {"bias": bias or ("norm",)}


def _written(config: GPTConfig) -> dict[str, Any]:
    return {
        "word_embed_proj_dim": config.n_embd,
        "do_layer_norm_before": True,
        "enable_bias": config.has_bias("fc1"),
    }


OPT_FAMILY = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    title="OPT",
    dialect=OPT,
    fields={
        "vocab_size": ("vocab_size", 50272),
        "max_position_embeddings": ("n_positions", 2048),
        "hidden_size": ("n_embd", 768),
        "num_hidden_layers": ("n_layer", 12),
        "num_attention_heads": ("n_head", 12),
        "ffn_dim": ("n_inner", 3072),
        "activation_function": ("activation_function", "relu"),
        "tie_word_embeddings": ("tie_word_embeddings", True),
        "attention_dropout": ("attn_pdrop", 0.0),
        "dropout": ("resid_pdrop", 0.1),
        "bos_token_id": ("bos_token_id", 2),
        "eos_token_id": ("eos_token_id", 2),
    },
    fixed={"split_qkv": True, "position_offset": 2, "layer_norm_epsilon": 1e-5},
    read_together=("word_embed_proj_dim", "do_layer_norm_before", "enable_bias"),
    read=_read,
    written=_written,
    at_default={
        "_remove_final_layer_norm": (False,),
        "layer_norm_elementwise_affine": (True,),
        "layerdrop": (0.0, None),
    },
    irrelevant=frozenset({"init_std", "activation_dropout"}),
)
