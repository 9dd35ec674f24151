"""Hugging Face's `config.json` of a GPT-2: each of its fields is honoured, irrelevant, at its default, or refused."""

from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError

FIELDS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
"""Fields of `config.json` that we honour, by their names in `GPTConfig`, with the defaults of `GPT2Config`."""

OURS: dict[str, Any] = {"n_padding": 0}
"""Our own fields, written if they differ from this default; transformers keeps them and does not read them."""

ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "n_ctx": "n_positions",
}
"""Other names of those fields; if both are given they must agree."""

ACTIVATION_ALIASES = {
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_python": "gelu",
    "swish": "silu",
}
"""transformers' `ACT2FN` names of the same functions (`quick_gelu` is a different function, and refused)."""

AT_DEFAULT: dict[str, tuple] = {
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "chunk_size_feed_forward": (0,),
    "position_embedding_type": ("absolute",),
}
"""Fields that would change what the model computes: accepted at these values only."""

IRRELEVANT = frozenset(
    """_name_or_path _attn_implementation_autoset architectures attn_implementation dtype torch_dtype
    transformers_version use_cache initializer_range summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj gradient_checkpointing n_special predict_special_tokens
    output_past output_attentions output_hidden_states return_dict return_dict_in_generate use_return_dict
    pad_token_id sep_token_id decoder_start_token_id cls_token_id task_specific_params id2label label2id num_labels
    problem_type finetuning_task tokenizer_class prefix torchscript use_bfloat16 tf_legacy_loss is_decoder
    cross_attention_hidden_size tie_encoder_decoder bad_words_ids begin_suppress_tokens suppress_tokens do_sample
    early_stopping max_length min_length num_beams num_beam_groups num_return_sequences diversity_penalty
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty no_repeat_ngram_size output_scores remove_invalid_values repetition_penalty temperature top_k
    top_p typical_p _num_labels classifier_dropout""".split()
)
"""Fields that change nothing in the logits: bookkeeping, generation defaults, classification heads."""


def config_from_hf(fields: dict[str, Any]) -> GPTConfig:
    """Read a parsed `config.json`: every field is honoured, irrelevant, at its default, or refused."""
    if (kind := fields.get("model_type", "gpt2")) != "gpt2":
        raise InputError(f"config.json says model_type {kind!r}: this architecture is not GPT-2")
    given: dict[str, Any] = {}
    for name, value in fields.items():
        field = ALIASES.get(name, name)
        if field in FIELDS or field in OURS:
            if field in given and given[field] != value:
                raise InputError(f"config.json contradicts itself: {field} is {given[field]!r} and {name} is {value!r}")
            given[field] = value
        elif name in AT_DEFAULT:
            if value not in AT_DEFAULT[name]:
                raise InputError(f"config.json: {name} = {value!r} is not supported, only {AT_DEFAULT[name][0]!r}")
        elif name not in IRRELEVANT:
            raise InputError(f"config.json: the field {name!r} is unknown, and may change what the model computes")
    merged = FIELDS | OURS | given
    if merged["n_inner"] is None and isinstance(merged["n_embd"], int):
        merged["n_inner"] = 4 * merged["n_embd"]
    activation = merged["activation_function"]
    if isinstance(activation, str):
        merged["activation_function"] = ACTIVATION_ALIASES.get(activation, activation)
    return GPTConfig(**merged)


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Make the fields of a `config.json` that `GPT2LMHeadModel.from_pretrained` reads."""
    fields = {name: getattr(config, name) for name in FIELDS}
    ours = {name: getattr(config, name) for name, default in OURS.items() if getattr(config, name) != default}
    if config.n_inner == 4 * config.n_embd:
        fields["n_inner"] = None
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **fields, **ours}
