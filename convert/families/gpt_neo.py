"""GPT-Neo's `config.json`, as of TinyStories: some blocks see a window only, and no scores are scaled."""

import reprlib
from typing import Any

from jaxgpt.convert.config import MAX_LAYERS, GPTConfig
from jaxgpt.convert.dialects.gpt_neo import GPT_NEO
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.family import Family, Fields, window_size

WINDOW, TYPES = 256, [[["global", "local"], 12]]
"""The defaults of transformers."""


def _read(fields: Fields) -> dict[str, Any]:
    window = window_size(fields.get("window_size", WINDOW))
    types: Any = fields.get("attention_types") or TYPES
    layers: list[str] = []
    try:
        for kinds, times in types:
            if len(kinds) * times > MAX_LAYERS:
                raise ValueError
            layers += [*kinds] * times
        if not {*layers} <= {"global", "local"}:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f'config.json: attention_types must be like [[["global", "local"], 6]], not {reprlib.repr(types)}'
        ) from None
    said = fields.get("attention_layers")
    if said is not None and said != layers:
        raise InputError("config.json contradicts itself: attention_layers are not those of attention_types")
    if len(layers) != fields["num_layers"]:
        raise InputError(
            f"config.json contradicts itself: attention_types has {len(layers)} blocks, num_layers is "
            f"{reprlib.repr(fields['num_layers'])}"
        )
    n_inner = fields["intermediate_size"]
    if n_inner is None and isinstance(fields["hidden_size"], int):
        n_inner = 4 * fields["hidden_size"]
    return {"windows": tuple(window if kind == "local" else 0 for kind in layers), "n_inner": n_inner}


def _written(config: GPTConfig) -> dict[str, Any]:
    windows = config.windows or (0,) * config.n_layer
    sizes = {*windows} - {0}
    if len(sizes) > 1:
        raise InputError(f"a GPT-Neo has one size of windows, not {len(sizes)}")
    kinds = ["local" if window else "global" for window in windows]
    return {"attention_types": [[kinds, 1]], "window_size": next(iter(sizes), WINDOW)}


NEO = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    title="GPT-Neo (TinyStories)",
    dialect=GPT_NEO,
    fields={
        "vocab_size": ("vocab_size", 50257),
        "max_position_embeddings": ("n_positions", 2048),
        "hidden_size": ("n_embd", 2048),
        "num_layers": ("n_layer", 24),
        "num_heads": ("n_head", 16),
        "intermediate_size": ("n_inner", None),
        "activation_function": ("activation_function", "gelu_new"),
        "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": ("tie_word_embeddings", True),
        "embed_dropout": ("embd_pdrop", 0.0),
        "attention_dropout": ("attn_pdrop", 0.0),
        "resid_dropout": ("resid_pdrop", 0.0),
        "bos_token_id": ("bos_token_id", 50256),
        "eos_token_id": ("eos_token_id", 50256),
    },
    fixed={"split_qkv": True, "scale_attn_weights": False, "bias": ("attn_out", "mlp", "norm")},
    read_together=("attention_types", "attention_layers", "window_size"),
    read=_read,
    written=_written,
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
)
