"""GPT-NeoX's `config.json`, as of Pythia."""

import math
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.gpt_neox import GPT_NEOX
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families import rotary
from jaxgpt.convert.families.family import Family, Fields

SHARE = 0.25
"""The share of a head that is rotated, where a config does not say it."""


def _read(fields: Fields) -> dict[str, Any]:
    found = rotary.read_rotary(fields, "rotary_emb_base", "rotary_pct")
    share, width, n_head = found.pop("share"), fields["hidden_size"], fields["num_attention_heads"]
    share = SHARE if share is None else share
    if not all(isinstance(n, int) and n > 0 for n in (width, n_head)) or not isinstance(share, (int, float)):
        raise InputError("config.json: hidden_size, num_attention_heads and rotary_pct must be numbers")
    if fields.get("head_dim") not in (None, width // n_head):  # by which transformers rotates, and nothing else
        raise InputError("config.json: a head_dim other than hidden_size / num_attention_heads is not supported")
    bias = fields.get("attention_bias", True)
    if not isinstance(bias, bool) or not 0 < share <= 1:
        raise InputError("config.json: attention_bias must be true or false, and rotary_pct in (0, 1]")
    return found | {"rotary_dim": int(width // n_head * share), "bias": bias or ("mlp", "norm")}


def _written(config: GPTConfig) -> dict[str, Any]:
    said = rotary.write_rotary(config)
    n_rotated, size = 2 * config.dims["J"], config.dims["H"]
    share = n_rotated / size
    if int(size * share) < n_rotated:  # as transformers rounds
        share = math.nextafter(share, 1)
    return {
        "rotary_emb_base": said["rope_theta"],
        "rotary_pct": share,
        "rope_scaling": said["rope_scaling"],
        "attention_bias": config.has_bias("c_attn"),
    }


NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    title="GPT-NeoX (Pythia)",
    dialect=GPT_NEOX,
    fields={
        "vocab_size": ("vocab_size", 50432),
        "max_position_embeddings": ("n_positions", 2048),
        "hidden_size": ("n_embd", 6144),
        "num_hidden_layers": ("n_layer", 44),
        "num_attention_heads": ("n_head", 64),
        "intermediate_size": ("n_inner", 24576),
        "hidden_act": ("activation_function", "gelu"),
        "layer_norm_eps": ("layer_norm_epsilon", 1e-5),
        "use_parallel_residual": ("parallel_residual", True),
        "tie_word_embeddings": ("tie_word_embeddings", False),
        "attention_dropout": ("attn_pdrop", 0.0),
        "bos_token_id": ("bos_token_id", 0),
        "eos_token_id": ("eos_token_id", 2),
    },
    fixed={"positions": "rotary"},
    read_together=(*rotary.NAMES, "rotary_emb_base", "rotary_pct", "attention_bias", "hidden_dropout", "head_dim"),
    read=lambda fields: _read(fields) | dict.fromkeys(("embd_pdrop", "resid_pdrop"), fields.get("hidden_dropout", 0.0)),
    written=lambda config: _written(config) | {"hidden_dropout": config.resid_pdrop},
)
