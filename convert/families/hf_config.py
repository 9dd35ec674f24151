"""Hugging Face's `config.json`: each field is honoured, at its default, kept for the export, or refused."""

import dataclasses
import json
import re
import reprlib
from dataclasses import replace
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.families.family import Family
from jaxgpt.convert.json_input import parse_json

OURS: dict[str, Any] = {"n_padding": 0}
"""Our own fields, written if they differ from this default; transformers keeps them and does not read them."""

FALLBACKS = {"n_ctx": "n_positions", "n_vocab": "vocab_size"}
"""Names that transformers does not read: they count only where a config does not have the field itself."""

IDS = ("bos_token_id", "eos_token_id")
"""Fields of which `config.json` may say more than the config has: several ids, or -1 for none."""

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
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "is_causal": (True, None),
    "per_layer_config": ({}, None),
}
"""Fields of any family that would change what the model computes: accepted at these values only."""

GROUPED, WINDOWS, SCALED = "grouped or multi-query attention", "attention in windows", "other scales"
OTHER_COMPUTATION = (
    (r"cross_att", "cross-attention"),
    (r"multi_?query|grouped_query|(key_value|kv)_heads?|heads?_kv", GROUPED),
    (r"(^|_)m?rope(_|$)|rotary", "rotary positions"),
    (r"alibi", "ALiBi"),
    (r"(sliding|local|attention|attn)_window|window_size|local_att|(attention|layer)_types|attention_layers", WINDOWS),
    (r"soft_?cap", "soft caps"),
    (r"experts?(_|$)|(^|_)moe(_|$)", "experts"),
    (r"quantiz|quantis|^quant_|load_in_\dbit|(^|_)(gptq|awq|bnb|fp8)(_|$)|bitsandbytes", "quantised weights"),
    (r"(^|_)(peft|q?lora|adapters?|ia3)(_|$)", "an adapter"),
    (r"^mup_|parallel_(residual|att)|(^|_)qk_(layer_?)?norm|rms_?norm|(^|_)post_(layer_?)?norm", "another block"),
    (r"^(embedding|residual|attention|logits?)_(multiplier|scale|scaling)$|scale_embedding", SCALED),
)
"""Patterns of fields by which other models change what they compute, and how. A family reads those of them that are in
its table, and none else, but a checkpoint that has one was probably trained by a program that does."""

OFF: tuple[Any, ...] = (None, False, 0, "", "none", "None", [])
"""Values at which such a field says that nothing is changed."""

ADDED = ("carried", "lora", "n_new_tokens", "head_bias")
"""Fields of ours that no `config.json` has to say: adapters are merged before, and a bias of the head is refused."""

WHAT_TO_DO = "if the weights were made without it, or no longer need it, delete the field from "

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
    top_p typical_p _num_labels classifier_dropout experts_implementation name_or_path summary_last_dropout
    hidden_dropout _commit_hash chunk_size_feed_forward""".split()
)
"""Fields that change nothing in the logits: bookkeeping, generation defaults, classification heads."""

WRITTEN = frozenset({"architectures", "model_type", "dtype", "torch_dtype"})
"""Fields that an export states anew."""


def family_of(fields: dict[str, Any]) -> Family:
    """Return the family of a `config.json`; that of GPT-2, if it states none.

    Raises:
        InputError: it is none that we compute.
    """
    kind = fields.get("model_type", "gpt2")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(
            f"config.json says model_type {reprlib.repr(kind)}: unsupported architecture; known are {known}"
        )
    return FAMILIES[kind]


def config_from_hf(fields: dict[str, Any], generation: dict[str, Any] | None = None) -> GPTConfig:
    """Read a parsed `config.json`.

    Args:
        fields: each is honoured, at its default, kept for the export, or refused.
        generation: the parsed `generation_config.json`, where there is one; it is kept for the export.

    Raises:
        InputError: the config is of another architecture, contradicts itself, or has a value out of its bounds.
    """
    family = family_of(fields)
    merged = _merged(family, fields)
    told = {ours: merged[theirs] for theirs, (ours, _) in family.fields.items()}
    told |= {name: merged[name] for name in OURS} | family.fixed | family.read(merged)
    activation = told["activation_function"]
    if isinstance(activation, str):
        told["activation_function"] = ACTIVATION_ALIASES.get(activation, activation)
    told |= {name: _ids(name, told[name]) for name in IDS}
    return GPTConfig(**told, model_type=family.model_type, carried=_carry(family, fields, generation))


def _merged(family: Family, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields under the names of the family's table, with its defaults, and refuse what we do not compute."""
    given: dict[str, Any] = {}
    at_default = AT_DEFAULT | family.at_default
    for name, value in fields.items():
        field = family.aliases.get(name, name)
        if field in family.fields or field in OURS:
            if field in given and given[field] != value:
                raise InputError(f"config.json contradicts itself: {field} is {given[field]!r} and {name} is {value!r}")
            given[field] = value
        elif name in at_default and value not in at_default[name]:
            raise InputError(
                f"config.json: {name} = {reprlib.repr(value)} is not supported, only {at_default[name][0]!r}: "
                f"{WHAT_TO_DO}config.json and try again"
            )
    fallbacks = {field: fields[name] for name, field in FALLBACKS.items() if fields.get(name) is not None}
    defaults = {theirs: default for theirs, (_, default) in family.fields.items()}
    together = {name: fields[name] for name in family.read_together if name in fields}
    merged = defaults | OURS | {name: v for name, v in fallbacks.items() if name in defaults} | given | together
    n_head = next(merged[theirs] for theirs, (ours, _) in family.fields.items() if ours == "n_head")
    refuse_other_computation("config.json", unread_fields(fields), fields, n_head)
    return merged


def unread_fields(fields: dict[str, Any]) -> list[str]:
    """Return the fields of a `config.json` that neither its family in transformers nor we read, in their order."""
    family = family_of(fields)
    known = {*family.known, *OURS, *AT_DEFAULT, *IRRELEVANT, "model_type"}
    agreeing = {name for name, field in FALLBACKS.items() if fields.get(name) == fields.get(field, fields.get(name))}
    return [name for name in fields if name not in known and name not in agreeing]


def refuse_other_computation(where: str, names: list[str], fields: dict[str, Any], n_head: Any) -> None:
    """Refuse fields that are known to change what other models compute, unless their value says that they don't.

    Raises:
        InputError: names the field, what it stands for, and what to do.
    """
    for name in names:
        what = next((what for pattern, what in OTHER_COMPUTATION if re.search(pattern, name.lower())), None)
        if what is not None and not _is_off(fields[name], what, n_head):
            shown = repr(name)[1:-1][:100]  # on one line, whatever is in it
            raise InputError(
                f"{where}: {shown} = {reprlib.repr(fields[name])} stands for {what}, which this architecture does not "
                f"have: unsupported; {WHAT_TO_DO}{where} and try again"
            )


def _is_off(value: Any, what: str, n_head: Any) -> bool:
    if what == WINDOWS and (kinds := set(re.findall("[a-z_]+", json.dumps(value).lower())) - {"null", "false"}):
        return kinds <= {"full_attention", "full", "global"}
    return value in OFF or (what == GROUPED and value == n_head) or (what == SCALED and value == 1)


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Make the fields of a `config.json` that transformers' class of its family reads, and those that were kept.

    Raises:
        InputError: no model of the family computes what this one does.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise InputError(f"config: model_type {config.model_type!r} is unknown; known are {', '.join(FAMILIES)}")
    fields = {theirs: getattr(config, ours) for theirs, (ours, _) in family.fields.items()} | family.written(config)
    ours = {name: getattr(config, name) for name, default in OURS.items() if getattr(config, name) != default}
    kept = carried_of(config, "config.json") or {}
    same_ids = {name: kept[name] for name in IDS if name in kept and name not in changed_ids(config)}
    fixed = {"architectures": [family.architecture], "model_type": family.model_type}
    made = fixed | fields | {name: kept[name] for name in kept if name not in fields} | ours | same_ids
    read = replace(config_from_hf(made), carried=config.carried)
    for name in (field.name for field in dataclasses.fields(GPTConfig)):
        if name not in ADDED and getattr(read, name) != getattr(config, name):
            raise InputError(
                f"{family.title} can't represent this model: there, {name} would be {getattr(read, name)!r}; the "
                f"model's is {getattr(config, name)!r}"
            )
    return made


def generation_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Make a `generation_config.json`: the one that was kept, with the ids that the model has got since."""
    kept = carried_of(config, "generation_config.json")
    if kept is None:
        return {"_from_model_config": True, **{name: getattr(config, name) for name in IDS}}
    return kept | changed_ids(config)


def carried_of(config: GPTConfig, file: str) -> dict[str, Any] | None:
    """Return what is kept of a file of the Hugging Face folder that the model came from."""
    return parse_json(config.carried or "{}").get(file)


def changed_ids(config: GPTConfig) -> dict[str, Any]:
    """Return the ids of the model that are others than those of the folder it came from."""
    kept = carried_of(config, "config.json") or {}
    return {name: getattr(config, name) for name in IDS if _ids(name, kept.get(name)) != getattr(config, name)}


def _carry(family: Family, fields: dict[str, Any], generation: dict[str, Any] | None) -> str:
    """Return as JSON text what an export writes again, with the ids as they were said."""
    ours = {*family.fields, *family.read_together, *OURS, *family.aliases, *WRITTEN} - set(IDS)
    kept = {name: value for name, value in fields.items() if name not in ours}
    ids = {name: family.fields[name][1] for name in IDS}
    files = {"config.json": ids | kept, "generation_config.json": generation}
    return json.dumps({file: found for file, found in files.items() if found is not None}, sort_keys=True)


def _ids(name: str, value: Any) -> Any:
    """Return what the config has for an id as `config.json` says it: none for -1, and one where only one can be."""
    if isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        several = tuple(item for item in value if item >= 0)
        return several if name == "eos_token_id" and len(several) > 1 else several[0] if several else None
    return None if type(value) is int and value < 0 else value
