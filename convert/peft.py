"""PEFT's folders of an adapter for a model that is elsewhere: `adapter_config.json`, `adapter_model.safetensors`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.adapter import LoRA, input_axes, merged, with_rows
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.contents import open_file
from jaxgpt.convert.dialect import EMBEDDING, HEAD, Dialect, Row, Tensors, problem_list
from jaxgpt.convert.disk import write_json
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.formats import safetensors
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.layout import axes_of, relayout, shape_of, swap
from jaxgpt.convert.mapping import same
from jaxgpt.convert.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HUB_NAME, check_link

FILES = (ADAPTER_CONFIG, "README.md", *ADAPTER_WEIGHTS)
"""Names of the files in such a folder, beside a tokenizer's."""

PREFIX = "base_model.model."

NUMBER = re.compile(r"(?:^|\.)(?:h|layers)\.(0|[1-9]\d{0,4})(?=\.)")
"""The number of a block in the name of one of its tensors."""

SETTINGS = frozenset(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights
    layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_core megatron_config trainable_token_indices
    loftq_config eva_config corda_config lora_ga_config use_dora qalora_group_size ensure_weight_tying
    runtime_config""".split()
)
"""Settings that say nothing about the computation, or are read here; any other one that is on is refused by name."""

SUFFIXES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "lora_m"}
"""The ends of PEFT's names, and of ours."""

ROWS_OF_TOKENS = "token_adapter.trainable_tokens_delta"
"""The end of the name of a table's rows that train alone; `trainable_token_indices` has their numbers."""


def base_of(folder: Path) -> str:
    """Return the name of the model that an adapter is for.

    Raises:
        InputError: the adapter names none, or a path, which is not followed: a file must not choose what is opened.
    """
    name = _settings(folder).get("base_model_name_or_path")
    if isinstance(name, str) and HUB_NAME.fullmatch(name) and not Path(name).exists():
        return name
    where = f"it was made for {name!r}" if isinstance(name, str) and name else "it does not say for which model"
    raise InputError(
        f"{folder} is an adapter, and {where[:200]}: give the model that it belongs to, and this folder as its adapter "
        "(model=…, adapter=…)"
    )


def _settings(folder: Path) -> dict[str, Any]:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"adapter={folder}: there is no {ADAPTER_CONFIG} in it, so that it is no adapter of PEFT's")
    check_link(folder / ADAPTER_CONFIG, folder)
    return read_json(folder / ADAPTER_CONFIG)


def with_adapter(params: Tensors, config: GPTConfig, folder: Path) -> tuple[dict[str, Any], GPTConfig]:
    """Return the parameters and the config of a model with an adapter on it.

    Raises:
        InputError: the adapter is of a kind that is not supported, or does not fit the model.
    """
    said = _settings(folder)
    _refuse_other_kinds(folder, said)
    weights = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder}: the adapter's weights are missing: {' or '.join(ADAPTER_WEIGHTS)}")
    found: dict[str, Any] = {}
    saved, adapted = set(), set()
    dialect = _dialect(config)
    for name, array in open_file(weights).items():
        module = re.split(r"\.lora_|\.(?=[^.]+$)", _bare(name, dialect))[0]
        if "lora_" in name:
            adapted.add(module)
        elif ".base_layer." not in name and ROWS_OF_TOKENS not in name:
            saved.add(module)
        if (bare := _bare(name, dialect)) in found:
            raise InputError(f"{folder}: {bare[:100]!r} appears twice in the adapter")
        found[bare] = array
    if twice := saved & adapted:
        raise InputError(
            f"{folder}: {min(twice)[:100]!r} is saved whole (as by modules_to_save) and has an adapter too. PEFT would "
            "ignore the adapter: remove one of the two"
        )
    if not found:
        raise InputError(f"{folder}: the adapter holds no tensors")
    if config.lora is not None or config.n_new_tokens:
        raise InputError(f"{folder}: the model has an adapter already; merge that first (jaxgpt convert … --to=hf)")
    params = dict(params)
    own = {name: found.pop(name) for name in [*found] if not any(end in name for end in (*SUFFIXES, ROWS_OF_TOKENS))}
    config = _replace_own(folder, params, config, own)
    config = _replace_rows(folder, params, config, found, said.get("trainable_token_indices"))
    adapters = {_our_name(folder, name, dialect): array for name, array in found.items()}
    if not adapters:
        return params, config
    modules = {name.rpartition(".")[0] for name in adapters}
    layers = [row.ours.removesuffix(".kernel") for row in dialect.expand(config) if row.ours.endswith(".kernel")]
    lora = LoRA(
        r=said.get("r", 8), alpha=said.get("lora_alpha", 8), dropout=said.get("lora_dropout", 0.0),
        rslora=said.get("use_rslora", False), dora=said.get("use_dora", False),
        modules=tuple(layer for layer in layers if layer in modules),
    )  # fmt: skip
    config = replace(config, lora=lora)
    problems = []
    for name, layout in _layouts(config):
        expected = shape_of(layout.split(" -> ")[0], config.dims)
        if name not in adapters:
            problems.append(f"missing: {name} {expected}")
        elif tuple(adapters[name].shape) != expected:
            problems.append(f"shape: {name} is {tuple(adapters[name].shape)}, the adapter's settings say {expected}")
        else:
            params[name] = relayout(adapters.pop(name), layout, config.dims)
    problems += [f"unknown: {name} {tuple(array.shape)}" for name, array in adapters.items() if name not in params]
    if problems:
        raise problem_list(f"{folder}: the adapter does not fit the model", problems)
    return params, config


def write_peft_folder(folder: Path, params: Tensors, config: GPTConfig, base: Tensors, base_name: str) -> None:
    """Write a model's adapter, and whatever else differs from the model that it began as.

    Args:
        base: parameters of the model that it began as, by our names.
        base_name: how PEFT finds that model.

    Raises:
        InputError: nothing differs, or only whole layers do.
    """
    folder.mkdir()
    dialect = _dialect(config)
    tensors: dict[str, Any] = {}
    for name, layout in _layouts(config):
        module, part = name.rpartition(".")[::2]
        ending = next(theirs for theirs, ours in SUFFIXES.items() if ours == part)
        tensors[f"{PREFIX}{_their_module(module, dialect)}.{ending}"] = relayout(
            params[name], swap(layout), config.dims
        )
    changed = _changed([row.ours for row in dialect.expand(config)], params, base, config)
    for row in dialect.expand(config):
        if row.ours.rpartition(".")[0] in changed:
            tensors[f"{PREFIX}{_prefixed(row, dialect)}"] = relayout(params[row.ours], swap(row.layout), config.dims)
    if "tok_emb" in changed and config.tie_word_embeddings:  # PEFT copies what is saved whole, so that it is untied
        changed.add("lm_head")
        tensors[f"{PREFIX}{_prefixed(dialect.row(HEAD), dialect)}"] = params[EMBEDDING]
    rows: dict[str, list[int]] = {}
    for module in ("tok_emb", "lm_head"):
        if (new := params.get(f"{module}.new")) is not None:
            table = _their_module(module, dialect)
            layout = "S D -> S D" if module == "tok_emb" else "D S -> S D"
            tensors[f"{PREFIX}{table}.{ROWS_OF_TOKENS}"] = relayout(new, layout, config.dims)
            rows[table.rpartition(".")[2]] = list(range(config.n_tokens - config.n_new_tokens, config.n_tokens))
    if not tensors:
        raise InputError(f"nothing differs from {base_name}: there is no adapter to write")
    if config.lora is None and not rows:
        raise InputError(
            "the model can't be written as an adapter, because it has none, or because the weights under its adapters "
            "were trained too; write the whole model, as --to=hf does"
        )
    lora = config.lora or LoRA(modules=("lm_head",))
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True,
        "r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.rslora,
        "use_dora": lora.dora, "fan_in_fan_out": config.model_type == "gpt2", "bias": "none",
        "target_modules": [_their_module(module, dialect) for module in lora.modules] if config.lora else [],
        "modules_to_save": [_their_module(module, dialect) for module in sorted(changed)] or None,
        "trainable_token_indices": rows or None,
    }  # fmt: skip
    write_json(folder / ADAPTER_CONFIG, fields)
    safetensors.write(folder / ADAPTER_WEIGHTS[0], tensors, None)
    (folder / "README.md").write_text(_card(base_name, rows_to_add(config, base)), "utf-8")


def rows_to_add(config: GPTConfig, base: Tensors) -> int:
    """Return how many rows the base's embedding needs before PEFT can put the adapter on it; 0 if none."""
    return config.vocab_size if config.vocab_size != base[EMBEDDING].shape[0] else 0


def _card(base_name: str, n_rows: int) -> str:
    resized = f"base.resize_token_embeddings({n_rows})  # the adapter's rows, padding included\n" if n_rows else ""
    return (
        f"---\nlibrary_name: peft\nbase_model: {base_name}\n---\n\nAn adapter for {base_name}, written by jaxgpt.\n\n"
        "```python\nimport torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base_name}", dtype=torch.float32)\n{resized}'
        'model = PeftModel.from_pretrained(base, "this folder")\n```\n'
    )


def adapted_or_whole(params: Tensors, config: GPTConfig, base: Tensors) -> tuple[Tensors, GPTConfig]:
    """Merge the adapters of layers that differ from the base's themselves: PEFT takes a whole layer, or an adapter."""
    if config.lora is None:
        return params, config
    own = [row.ours for row in _dialect(config).expand(config) if row.ours.rpartition(".")[0] in config.lora.modules]
    whole = _changed(own, params, base, config)
    layers = {name: p for name, p in params.items() if name.rpartition(".")[0] in whole}
    rest = {name: p for name, p in params.items() if name not in layers}
    modules = tuple(module for module in config.lora.modules if module not in whole)
    lora = replace(config.lora, modules=modules) if modules else None
    return rest | merged(layers, config.lora, config.n_tokens), replace(config, lora=lora)


def _layouts(config: GPTConfig) -> Iterator[tuple[str, str]]:
    """Yield the names of LoRA's parameters in a model, with their layouts `"theirs -> ours"`."""
    for row in _dialect(config).expand(config):
        module = row.ours.removesuffix(".kernel")
        if config.lora is None or module not in config.lora.modules or module == row.ours:
            continue
        axes, n_in = row.right.split(), input_axes(module)
        inputs, outputs = axes[:n_in], axes[n_in:]
        # as their kernel has them: GPT-NeoX's outputs are not in our order
        their_inputs, their_outputs = (
            next(axis for axis in axes_of(row.left) if {*axis.strip("()").split()} == {*ours})
            for ours in (inputs, outputs)
        )
        yield f"{module}.lora_a", f"R {their_inputs} -> {' '.join([*inputs, 'R'])}"
        yield f"{module}.lora_b", f"{their_outputs} R -> {' '.join(['R', *outputs])}"
        if config.lora.dora:
            yield f"{module}.lora_m", f"{their_outputs} -> {' '.join(outputs)}"


def _refuse_other_kinds(folder: Path, said: Mapping[str, Any]) -> None:
    if (kind := said.get("peft_type")) != "LORA":
        raise InputError(f"{folder}: an adapter of the kind {str(kind)[:50]!r}: only LORA is supported")
    on = [name for name, value in said.items() if name not in SETTINGS and value not in (None, False, 0, "", [], {})]
    on += [name for name in ("rank_pattern", "alpha_pattern") if said.get(name)]
    if on:
        raise InputError(f"{folder}: the adapter's setting {on[0][:100]!r} is on, which is not supported")


def _dialect(config: GPTConfig) -> Dialect:
    return FAMILIES[config.model_type].dialect


def _bare(name: str, dialect: Dialect) -> str:
    """Return a tensor's name in the model; PEFT stores the kernel under an adapter of the head too."""
    return name.removeprefix(PREFIX).removeprefix(dialect.prefix).replace(".base_layer.", ".")


def _our_name(folder: Path, name: str, dialect: Dialect) -> str:
    """Return our name of a tensor such as `h.0.attn.c_attn.lora_A.weight`."""
    stem, end = next((name.removesuffix(f".{end}"), end) for end in SUFFIXES if end in name)
    number = NUMBER.search(stem)
    general = stem if number is None else f"{stem[: number.start(1)]}{{i}}{stem[number.end(1) :]}"
    kernels = [row for row in dialect.rows if row.ours.endswith(".kernel")]
    row = next((row for row in kernels if row.names[0] == f"{general}.weight"), None)
    if row is None or not name.endswith(f".{end}"):
        raise InputError(f"{folder}: {name[:100]!r} is an adapter, but not of a linear layer of {dialect.title}")
    module = row.ours.removesuffix(".kernel").replace("{i}", number[1] if number else "")
    return f"{module}.{SUFFIXES[end]}"


def _their_module(module: str, dialect: Dialect) -> str:
    general = re.sub(r"^blocks\.\d+\.", "blocks.{i}.", module)
    row = next(row for row in dialect.rows if row.ours.rpartition(".")[0] == general)
    name = _prefixed(row, dialect).rpartition(".")[0]
    return name.replace("{i}", module.split(".")[1]) if module.startswith("blocks.") else name


def _prefixed(row: Row, dialect: Dialect) -> str:
    return row.names[0] if row.ours == HEAD else dialect.prefix + row.names[0]


def _replace_own(folder: Path, params: dict[str, Any], config: GPTConfig, own: dict[str, Any]) -> GPTConfig:
    """Put whole modules of the adapter (`modules_to_save`) in the place of the model's."""
    dialect = _dialect(config)
    rows = {row.names[0]: row for row in dialect.expand(replace(config, tie_word_embeddings=False, head_bias=False))}
    if unknown := [name for name in own if name not in rows]:
        raise InputError(f"{folder}: {unknown[0][:100]!r} is no parameter of {dialect.title}")
    (of_tokens,), (of_head,) = dialect.row(EMBEDDING).names, dialect.row(HEAD).names
    table = own.get(of_tokens, own.get(of_head))
    if table is not None and len(table.shape) == 2 and table.shape[0] != config.vocab_size:
        config = replace(config, vocab_size=int(table.shape[0]), n_padding=0)  # tokens were added
    head = own.get(of_head)
    if head is not None and config.tie_word_embeddings:
        is_tied = of_tokens in own and same(np.asarray(head), np.asarray(own[of_tokens]))
        config = replace(config, tie_word_embeddings=is_tied)
        if is_tied:
            del own[of_head]
    for name, array in own.items():
        row = rows[name]
        if tuple(array.shape) != (expected := shape_of(row.left, config.dims)):
            raise InputError(f"{folder}: {name} is {tuple(array.shape)}, the model's is {expected}")
        params[row.ours] = relayout(array, row.layout, config.dims)
    for name in (EMBEDDING, HEAD):
        if name in params and config.vocab_size not in params[name].shape:
            raise InputError(f"{folder}: tokens were added, but {name} has no rows for them in the adapter")
    return config


def _replace_rows(
    folder: Path, params: dict[str, Any], config: GPTConfig, found: dict[str, Any], said: Any
) -> GPTConfig:
    """Put rows that trained alone (`trainable_token_indices`) in the place of the model's, and after its last."""
    n_rows, dialect = config.vocab_size, _dialect(config)
    for ours in (EMBEDDING, HEAD):
        module = dialect.row(ours).names[0].rpartition(".")[0]
        table = module.rpartition(".")[2]
        rows = found.pop(f"{module}.{ROWS_OF_TOKENS}", None)
        if rows is None:
            continue
        names = (table, module, f"{dialect.prefix}{module}")
        numbers = next((said[name] for name in names if name in said), None) if isinstance(said, dict) else said
        numbers = numbers if isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers) else []
        n_rows = max(n_rows, max(numbers, default=-1) + 1)
        is_whole = n_rows <= config.vocab_size + len(numbers) and {*range(config.vocab_size, n_rows)} <= {*numbers}
        if not is_whole or tuple(rows.shape) != (len(numbers), config.n_embd) or not numbers or ours not in params:
            raise InputError(f"{folder}: trainable_token_indices does not fit the rows of {table} in the adapter")
        params[ours] = with_rows(params[ours], numbers, rows.T if ours == HEAD else rows, ours == HEAD, n_rows)
    if any(n_rows not in params[name].shape for name in (EMBEDDING, HEAD) if name in params):
        raise InputError(f"{folder}: tokens were added, but not to both the embedding and the head")
    return config if n_rows == config.vocab_size else replace(config, vocab_size=n_rows, n_padding=0)


def _changed(names: list[str], params: Tensors, base: Tensors, config: GPTConfig) -> set[str]:
    """Return the modules of which one of these parameters is not the base's."""
    return {name.rpartition(".")[0] for name in names if not _is_same(params[name], base.get(name), name, config)}


def _is_same(ours: Any, theirs: Any, name: str, config: GPTConfig) -> bool:
    """Tell whether a parameter is what it began as; rows of new tokens are apart, and don't count."""
    if theirs is None:
        return False
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if config.n_new_tokens and name in (EMBEDDING, HEAD):
        n_kept = min(config.n_tokens - config.n_new_tokens, theirs.shape[0 if name == EMBEDDING else 1])
        ours, theirs = (array[:n_kept] if name == EMBEDDING else array[:, :n_kept] for array in (ours, theirs))
    return same(ours, theirs.astype(ours.dtype))
