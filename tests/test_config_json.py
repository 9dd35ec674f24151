"""config.json as an open format: what no GPT-2 reads is named and kept, what changes the computation is refused."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIMS, TINY, call, random_hf, random_tokens, torch_logits
from runs import without_digests
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.families.hf_config import config_from_hf, unread_fields
from jaxgpt.convert.mapping import same

T = DIMS["n_positions"]
TOKENS = random_tokens((2, T))


def edit(folder: Path, name: str = "config.json", without: tuple[str, ...] = (), **fields) -> None:
    known = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({k: v for k, v in (known | fields).items() if k not in without}))


def assert_same_logits(folder: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    assert np.abs(np.asarray(jaxgpt.from_pretrained(folder)(TOKENS)) - torch_logits(theirs, TOKENS)).max() <= 1e-4


# fields that nobody reads

UNREAD = [
    {"line_by_line": False, "n_vocab": 5, "loss_type": "ForCausalLMLoss", "xla_device": True, "model_max_length": 1024},
    {"eos_token_ids": [96], "unsloth_version": "2025.3", "auto_map": {"AutoModel": "evil.Model"}, "tie_weights_": 1},
    {"n_ctx": 32}, {"n_ctx": 7}, {"n_ctx": 1024, "predict_special_tokens": True, "resid_dropout": 0.3},
    {"attn_dropout": 0.5, "embed_dropout": 0.5, "n_vocab": 50257, "scale_by_depth": True, "lr": 6e-4, "epochs": [1, 2]},
    {"freeze_": {"a": [None, {"b": "ü☃"}]}, "use_flash_attn": True, "pretraining_tp": 1},
    {"hidden_act": "relu", "layer_norm_eps": 0.5, "intermediate_size": 7, "attention_dropout": 0.3},
]  # fmt: skip
OFF = [
    {"quantization_config": None}, {"rope_theta": None, "rope_scaling": None}, {"sliding_window": None},
    {"use_sliding_window": False, "max_window_layers": 28}, {"alibi": False}, {"multi_query": False},
    {"num_key_value_heads": 3}, {"layer_types": ["full_attention", "full_attention"]}, {"num_experts": 0},
    {"attention_types": [[["global"], 2]]}, {"attn_logit_softcapping": None}, {"peft_type": None},
    {"load_in_4bit": False}, {"logit_scale": 1.0}, {"position_embedding_type": "absolute"},
]  # fmt: skip
ON = [
    ({"n_head_kv": 1}, "grouped or multi-query attention"), ({"multi_query_attention": True}, "multi-query attention"),
    ({"rope_scaling": {"type": "linear"}}, "rotary positions"), ({"rotary_dim": 64}, "rotary positions"),
    ({"partial_rotary_factor": 0.5}, "rotary positions"), ({"use_alibi": True}, "ALiBi"),
    ({"attention_window": [512]}, "attention in windows"), ({"window_size": 256}, "attention in windows"),
    ({"attention_layers": ["global", "local"]}, "windows"), ({"attn_logit_softcapping": 50.0}, "soft caps"),
    ({"num_experts_per_tok": 2}, "experts"), ({"moe_layers": [1]}, "experts"), ({"quantization": "int8"}, "quantised"),
    ({"load_in_4bit": True}, "quantised"), ({"lora_r": 8}, "an adapter"), ({"adapters": {"a": 1}}, "an adapter"),
    ({"use_rope": "a\nb" * 1000}, "rotary positions"),
    ({"cross_attention_layers": [1]}, "cross-attention"), ({"use_parallel_residual": True}, "another block"),
    ({"qk_layernorm": True}, "another block"), ({"embedding_multiplier": 12.0}, "other scales"),
]  # fmt: skip


@pytest.mark.parametrize("fields", UNREAD + OFF, ids=str)
def test_what_gpt2_does_not_read_changes_no_logit_and_is_kept(hf_folder, tmp_path, fields, caplog):
    folder, theirs = hf_folder()
    edit(folder, **fields)
    model = jaxgpt.from_pretrained(folder)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert np.abs(np.asarray(model(TOKENS)) - torch_logits(theirs, TOKENS)).max() <= 1e-4
    assert_same_logits(folder)
    unread = [name for name in fields if name not in ("position_embedding_type", "predict_special_tokens")]
    assert len(said) == bool(unread)
    assert all(f"{name}" in said[0] for name in unread)
    out = tmp_path / "out"
    jaxgpt.save_pretrained(model, out)
    written = json.loads((out / "config.json").read_text())
    assert {name: written[name] for name in fields} == fields
    assert_same_logits(out)
    assert "kept for an export" in call("convert", folder).stdout or not unread


@pytest.mark.parametrize(("fields", "what"), ON, ids=str)
def test_what_changes_the_computation_elsewhere_is_refused_by_name(hf_folder, fields, what):
    folder, _ = hf_folder()
    edit(folder, **fields)
    done = call("convert", folder, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"convert: {folder}: config.json: {next(iter(fields))} = ")
    assert what in done.stderr
    assert "delete the field from config.json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_strange_names_are_shown_on_one_line(hf_folder, caplog):
    folder, _ = hf_folder()
    edit(folder, **{"a\nb": 1, "\x1b[31mred": 2, "x" * 5000: 3}, **{f"field_{i}": i for i in range(100)})
    convert.read(folder)
    (said,) = [record.message for record in caplog.records]
    assert said.isprintable()
    assert len(said) < 1000
    assert "and 83 more" in said


def test_an_ordinary_config_says_nothing(hf_folder, caplog):
    convert.read(hf_folder()[0])
    convert.read(TINY)
    assert not caplog.records
    fields = json.loads((TINY / "config.json").read_text())
    assert unread_fields(fields | {"n_ctx": 256}) == []
    assert unread_fields(fields | {"n_ctx": 128}) == ["n_ctx"]


# contexts


@pytest.mark.parametrize("n_ctx", [32, 40, 42, 1024])
@pytest.mark.parametrize("mask", [5, 40, 42, 64, None])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_n_ctx_and_masks_of_another_context_are_ignored(tmp_path, hf_folder, n_ctx, mask, prefix):
    folder, theirs = hf_folder()
    state = {f"{prefix}{k.removeprefix('transformer.')}": v for k, v in load_file(folder / "model.safetensors").items()}
    for i in range(DIMS["n_layer"] if mask else 0):
        kind = (torch.uint8, torch.float32)[i % 2]
        state[f"{prefix}h.{i}.attn.bias"] = torch.tril(torch.ones(mask, mask, dtype=kind)).view(1, 1, mask, mask)
        state[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    edit(folder, n_ctx=n_ctx)
    checkpoint = convert.read(folder)
    assert len(checkpoint.buffers) == (2 * DIMS["n_layer"] if mask else 0)
    assert np.abs(np.asarray(jaxgpt.from_pretrained(folder)(TOKENS)) - torch_logits(theirs, TOKENS)).max() <= 1e-4


def test_a_bias_named_like_a_mask_is_no_mask(hf_folder):
    folder, _ = hf_folder()
    for shape in ((1, 1, 5, 6), (5, 5), (1, 2, 5, 5), (36,), (1, 1, 1, 5, 5)):
        state = load_file(folder / "model.safetensors")
        state["transformer.h.0.attn.bias"] = torch.ones(shape)
        (folder / "model.safetensors").unlink()
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(convert.InputError, match=r"unknown: h\.0\.attn\.bias " + re.escape(str(shape))):
            convert.read(folder)


def test_a_config_without_the_fields_themselves_falls_back_on_the_old_names(hf_folder):
    folder, _ = hf_folder()
    edit(folder, without=("n_positions", "vocab_size"), n_ctx=T, n_vocab=97)
    config = convert.read(folder).config
    assert (config.n_positions, config.vocab_size) == (T, 97)


# ids


@pytest.mark.parametrize(
    ("said", "is_read_as"),
    [(-1, None), ([96], 96), ([7, 96], (7, 96)), ([], None), (None, None), (96, 96), (-100, None), ([-1, 7], 7)],
)
@pytest.mark.parametrize("field", ["eos_token_id", "bos_token_id"])
def test_ids_may_be_several_or_none_and_come_out_as_they_were(hf_folder, tmp_path, field, said, is_read_as):
    folder, _ = hf_folder()
    edit(folder, **{field: said})
    model = jaxgpt.from_pretrained(folder)
    is_read_as = 7 if field == "bos_token_id" and said == [7, 96] else is_read_as  # which is one
    assert getattr(model.config, field) == is_read_as
    jaxgpt.save_pretrained(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())[field] == said
    assert convert.read(tmp_path / "out").config == model.config


# export

GENERATION = {
    "bos_token_id": 96, "eos_token_id": [96, 10], "pad_token_id": 3, "do_sample": True, "top_k": 11, "my_own": {"a": 1},
    "transformers_version": "4.30.0", "max_length": 17,
}  # fmt: skip
CONFIG = {
    "pad_token_id": 5, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "summary_type": "last", "id2label": {"0": "no", "1": "yes"}, "line_by_line": True, "n_ctx": 9, "mine": [1, None],
    "initializer_range": 0.5, "transformers_version": "4.30.0",
}  # fmt: skip


@pytest.mark.parametrize("way", ["hf", "orbax", "python"])
def test_an_export_has_all_that_the_import_had(hf_folder, tmp_path, way):
    folder, _ = hf_folder()
    edit(folder, **CONFIG)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    out = tmp_path / "out"
    if way == "hf":
        call("convert", folder, out, "--to=hf")
    elif way == "orbax":
        call("convert", folder, tmp_path / "between", "--to=orbax")
        call("convert", tmp_path / "between", out, "--to=hf")
    else:
        jaxgpt.save_pretrained(jaxgpt.from_pretrained(folder), out)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, out))
    assert {name: after[name] for name in before} == before
    assert json.loads((out / "generation_config.json").read_text()) == GENERATION
    assert_same_logits(out)
    assert GPT2LMHeadModel.from_pretrained(out).generation_config.top_k == 11
    call("convert", out, tmp_path / "again", "--to=hf")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((out / name).read_text())


def test_an_id_that_the_model_has_got_since_is_the_one_that_is_written(hf_folder, tmp_path):
    folder, _ = hf_folder()
    edit(folder, eos_token_id=[96, 10], pad_token_id=5)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    checkpoint = convert.read(folder)
    config = replace(checkpoint.config, eos_token_id=4)
    convert.write(tmp_path / "out", checkpoint.params, config, to="hf")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"], written["pad_token_id"]) == (4, 96, 5)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == GENERATION | {"eos_token_id": 4}


def test_a_model_from_elsewhere_gets_the_configs_it_always_got(tmp_path):
    checkpoint = convert.read(TINY)
    convert.write(tmp_path / "out", checkpoint.params, replace(checkpoint.config, carried=""), to="hf")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"_from_model_config": True, "bos_token_id": 4095, "eos_token_id": 4095}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1, "a": 2}', "[" * 100_000, "\x00"])
def test_a_broken_generation_config_is_no_reason_to_refuse_a_model(hf_folder, tmp_path, text):
    folder, _ = hf_folder()
    (folder / "generation_config.json").write_text(text)
    jaxgpt.save_pretrained(jaxgpt.from_pretrained(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 96


@pytest.mark.parametrize("carried", ["[", "[1]", '{"config.json": 1}', 7, None, "[" * 100_000])
def test_what_is_carried_must_be_json(carried):
    with pytest.raises(convert.InputError, match="carried must be empty, or a JSON object"):
        jaxgpt.GPTConfig(carried=carried)


def test_an_orbax_checkpoint_from_before_has_nothing_to_carry(hf_folder, tmp_path):
    model = replace(config_from_hf(random_hf().config.to_dict()), carried="")
    checkpoint = convert.read(hf_folder()[0])
    convert.write(tmp_path / "new", checkpoint.params, model, to="orbax")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    without_digests(tmp_path / "old")
    file = tmp_path / "old" / "config" / "metadata"
    fields = json.loads(file.read_text())
    del fields["carried"]
    file.write_text(json.dumps(fields))
    old = convert.read(tmp_path / "old")
    assert old.config == model
    assert all(same(np.asarray(old.params[name]), np.asarray(checkpoint.params[name])) for name in old.params)
