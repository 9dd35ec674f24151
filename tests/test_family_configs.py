"""A `config.json` of any family: each field is honoured or refused; whatever it holds gives a config, or one line."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import call
from families import FIRST, MODELS, random_model, write_model
from safetensors.numpy import load_file, save_file

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.config import GPTConfig, RopeScaling
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.families.hf_config import config_from_hf, config_to_hf

VALUES = (
    None, True, False, 0, 1, -1, 2.5, 10**30, -(10**30), 1e308, math.inf, math.nan, "", "x", "\x1b[31m" * 99, [], {},
    [1], [[["global"], 10**9]], [[["local"] * 9, 10**6]], ["full_attention"] * 3, {"rope_type": "llama3"},
    {"rope_type": "yarn", "factor": 4.0}, {"rope_theta": "1"}, {"rope_type": ["default"]}, [[[]]], [[1, 2, 3]],
)  # fmt: skip
"""What may stand in a field."""


def fields_of(name):
    return random_model(name).config.to_dict()


@pytest.mark.bounded(seconds=15)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_in_any_field_is_read_or_refused(family):
    table, base = FAMILIES[family], {} if family == "gpt2" else fields_of(family)
    names = {*table.known, *base}
    refusals = []
    for field in sorted(names):
        for value in VALUES:
            try:
                config = config_from_hf(base | {"model_type": family, field: value})
            except InputError as error:
                refusals.append(str(error))
            else:
                assert isinstance(config, GPTConfig)
                assert config.dims["H"] > 0
    assert len(refusals) > 4 * len(table.fields)
    assert max(map(len, refusals)) < 2000
    assert "\x1b" not in "".join(refusals)


@pytest.mark.parametrize("name", MODELS)
def test_a_config_comes_back_from_its_export(name):
    config = config_from_hf(fields_of(name))
    written = json.loads(json.dumps(config_to_hf(config)))
    assert replace(config_from_hf(written), carried="") == replace(config, carried="")
    for field in ("rope_parameters", "attention_layers"):  # what older releases of transformers do not read
        assert field not in written


REFUSED = [
    ("opt", {"word_embed_proj_dim": 18}, "as OPT-350m has: unsupported"),
    ("opt", {"do_layer_norm_before": False}, "as OPT-350m has: unsupported"),
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True is not supported"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False"),
    ("gpt_neo", {"attention_layers": ["global"] * 3}, "contradicts itself: attention_layers"),
    ("gpt_neo", {"num_layers": 5}, "attention_types has 3 blocks, num_layers is 5"),
    ("gpt_neo", {"attention_types": [[["dilated"], 3]]}, "attention_types must be like"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "of the kind 'yarn' are not supported"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, "of the kind 'linear' are not supported"),
    ("llama", {"rope_scaling": {"type": "dynamic", "rope_type": "default"}}, "rotary positions of the kind"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "of the kind llama3 lack"),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3]}}, "'mrope_section' is not supported"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    ("llama", {"num_key_value_heads": 3}, "n_head 4 is not divisible by n_kv_head 3"),
    ("llama", {"sliding_window": 9}, "sliding_window = 9 stands for attention in windows"),
    ("llama", {"num_local_experts": 8}, "stands for experts"),
    ("llama", {"hidden_act": "quick_gelu"}, "activation_function must be one of"),
    ("llama", {"embedding_multiplier": 12.0}, "stands for other scales"),
    ("mistral", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, "a Ministral"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "a Ministral"),
    ("llama", {"is_causal": False}, "is_causal = False is not supported"),
    ("opt", {"is_causal": False}, "is_causal = False is not supported"),
    ("qwen3", {"per_layer_config": {"1": {"rms_norm_eps": 0.5}}}, "per_layer_config"),
    ("llama", {"rope_parameters": {"rope_type": ["llama3"]}}, "rotary positions of the kind"),
    ("gpt_neox", {"head_dim": 10}, "a head_dim other than"),
    ("qwen2", {"layer_types": ["sliding_attention"]}, "layer_types must say"),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
    ("gpt_neox", {"rotary_pct": 0.4, "rope_parameters": None}, "rotary_dim 3 must be even"),
    ("gpt_neox", {"attention_bias": "yes"}, "attention_bias must be true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(name, changes, message):
    with pytest.raises(InputError, match=message):
        config_from_hf(fields_of(name) | changes)


@pytest.mark.parametrize(
    "kind", ["gemma", "gemma3_text", "phi", "gptj", "bloom", "mixtral", "mamba", "bert", "", 3, None]
)
def test_other_architectures_are_refused_by_name(kind, tmp_path):
    write_model(tmp_path, "llama")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": kind}))
    with pytest.raises(InputError, match="unsupported architecture; known are gpt2, gpt_neox"):
        convert.read(tmp_path)


@pytest.mark.parametrize("name", FIRST)
def test_weights_without_their_config_are_refused(name, tmp_path):
    """No shape tells theta, the windows or the number of heads."""
    write_model(tmp_path, name)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"need their config\.json beside them"):
        convert.read(tmp_path)
    dialect = FAMILIES[name].dialect.name
    with pytest.raises(InputError, match=r"need their config\.json beside them"):
        convert.read(tmp_path, dialect=dialect)


@pytest.mark.parametrize("name", FIRST)
def test_tensors_that_are_missing_unknown_or_of_another_shape_are_all_listed(name, tmp_path):
    write_model(tmp_path, name)
    tensors = load_file(tmp_path / "model.safetensors")
    first, second = [key for key in tensors if tensors[key].ndim == 2][1:3]
    changed = {key: array for key, array in tensors.items() if key != first}
    changed[first.rpartition(".")[0] + ".strange.weight"] = tensors[first]
    changed[second] = np.ascontiguousarray(changed[second][:-1])
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as refused:
        convert.read(tmp_path)
    said = str(refused.value)
    assert "missing: " in said
    assert "unknown: " in said
    assert "shape: " in said


def test_buffers_of_old_files_are_left_out(tmp_path):
    """Masks and rotary frequencies that transformers stored with the parameters until version 4.3x."""
    old = {
        "gpt_neox": {
            "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 41, 41), bool),
            "gpt_neox.layers.0.attention.masked_bias": np.float32(-1e9),
            "gpt_neox.layers.2.attention.rotary_emb.inv_freq": np.ones(1, np.float32),
        },
        "gpt_neo": {
            "transformer.h.1.attn.attention.bias": np.ones((1, 1, 64, 64), np.uint8),
            "transformer.h.0.attn.attention.masked_bias": np.float32(-1e9),
        },
        "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)},
    }
    for name, buffers in old.items():
        write_model(tmp_path / name, name)
        file = tmp_path / name / "model.safetensors"
        before = jaxgpt.named_params(jaxgpt.from_pretrained(tmp_path / name))
        save_file(load_file(file) | {key: np.asarray(array) for key, array in buffers.items()}, file)
        found = convert.read(tmp_path / name)
        assert len(found.buffers) == len(buffers)
        assert all((np.asarray(found.params[key]) == np.asarray(array)).all() for key, array in before.items())


def test_one_tensor_under_two_names_is_refused(tmp_path):
    write_model(tmp_path, "gpt_neox")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["embed_out.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="two names of one tensor"):
        convert.read(tmp_path)


def test_the_context_beside_the_scaling_counts_first():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    base = fields_of("llama") | {"rope_parameters": None}
    inner = scaling | {"original_max_position_embeddings": 16}
    for fields, expected in (
        ({"rope_scaling": inner}, 16), ({"rope_scaling": scaling}, 41),
        ({"rope_scaling": inner, "original_max_position_embeddings": 30}, 30),
    ):  # fmt: skip
        assert config_from_hf(base | fields).rope_scaling.original_positions == expected


@pytest.mark.parametrize("size", [8, 64, 96, 142, 254])
def test_any_share_of_a_head_comes_back(size):
    fields = fields_of("gpt_neox")
    for n_rotated in range(2, size + 1, 2):
        config = replace(config_from_hf(fields), n_embd=5 * size, rotary_dim=n_rotated)
        assert config_from_hf(config_to_hf(config)).dims["J"] == n_rotated // 2


def test_what_a_family_does_not_compute_is_not_written_as_it(tmp_path):
    write_model(tmp_path / "llama", "llama")
    model = jaxgpt.from_pretrained(tmp_path / "llama")
    for to in ("nanogpt", "lesson"):
        with pytest.raises(InputError, match="can't represent this model"):
            jaxgpt.save_pretrained(model, tmp_path / "out.pt", dialect=to)
    for fields in ({"model_type": "mistral", "windows": (5, 0, 5)}, {"model_type": "gpt2"}, {"qk_norm": True}):
        other = replace(model.config, **fields)
        with pytest.raises(InputError, match=r"can't represent|one window for all"):
            config_to_hf(other)
    with pytest.raises(InputError, match="'gemma' is unknown"):
        config_to_hf(replace(model.config, model_type="gemma"))


def test_an_inspection_says_what_is_different(tmp_path):
    write_model(tmp_path / "qwen", "qwen3")
    said = " ".join(call("convert", tmp_path / "qwen").stdout.split())
    for words in ("dialect Qwen3: config.json says model_type 'qwen3'", "RMSNorm", "2 heads of keys and values",
                  "rotary positions on 12 of a head's 12 dimensions, theta 10000", "norms of queries and keys",
                  "gated MLP"):  # fmt: skip
        assert words in said, said


def test_fields_of_the_config_fit_together():
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 20}
    config = GPTConfig(positions="rotary", rope_scaling=rope, n_kv_head=12, head_dim=64, rotary_dim=64)
    assert config.rope_scaling == RopeScaling(**rope)
    assert (config.n_kv_head, config.head_dim, config.rotary_dim) == (None, None, None)  # as they are anyway
    assert GPTConfig(bias=["norm", "qkv", "mlp", "attn_out"]).bias is True
    assert GPTConfig(bias=()).bias is False
    assert GPTConfig(windows=(0,) * 12) == GPTConfig()
    for wrong, message in (
        ({"n_kv_head": 4}, "needs split_qkv"), ({"n_kv_head": 5, "split_qkv": True}, "not divisible by n_kv_head"),
        ({"windows": (3,)}, "windows has 1 entries"), ({"windows": "3"}, "windows must be a list"),
        ({"bias": ["all"]}, "bias must be"), ({"norm": "batch"}, "norm must be one of"),
        ({"positions": "rotary", "rotary_dim": 3}, "must be even"),
        ({"positions": "rotary", "rotary_dim": 66}, "at most the head's size"),
        ({"rope_scaling": rope | {"factor": 0}}, "numbers above 0"), ({"rope_scaling": {"factor": 1}}, "rope_scaling"),
        ({"rope_scaling": rope | {"low_freq_factor": 4.0}}, "must be below"), ({"model_type": "a b"}, "model_type"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            GPTConfig(**wrong)
