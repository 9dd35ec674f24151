"""What a model may be wrapped in: names, dicts, objects, old and foreign files; and other heads beside it."""

import argparse
import collections
import dataclasses
import json
import logging
import pathlib
import re
import shutil
import sys
import types
import typing
from dataclasses import replace
from pathlib import Path

import lm_eval
import lm_eval.api.registry
import numpy as np
import pytest
import torch
from conftest import DIMS, TINY, call, random_hf, random_tokens, torch_logits
from flax.serialization import to_bytes
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch_gpts import HuggingFaceNames, Lesson, OldMinGPT, tanh_gelu
from transformers import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)

import jaxgpt
import jaxgpt.lm_eval
from jaxgpt import convert
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.dialects.nanogpt import NANOGPT
from jaxgpt.convert.unwrap import unwrap
from jaxgpt.training.command import as_flags, read_command
from jaxgpt.training.settings import to_json

TOKENS = random_tokens((2, DIMS["n_positions"]))
N = DIMS["n_head"]
MODEL_ARGS = {name: DIMS[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")} | {
    "block_size": DIMS["n_positions"],
    "dropout": 0.0,
    "bias": True,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a config, and no weights yet."""
    random_hf().config.save_pretrained(tmp_path)
    return tmp_path


def assert_same_logits(source: Path, theirs, **told) -> None:
    logits = np.asarray(jaxgpt.from_pretrained(source, **told)(TOKENS))
    if isinstance(theirs, GPT2LMHeadModel):
        expected = torch_logits(theirs, TOKENS)
    else:
        with torch.no_grad():
            expected = theirs.eval()(torch.tensor(TOKENS, dtype=torch.long)).numpy()
    assert np.abs(logits - expected).max() <= 1e-4


# names

WRAPPED = {
    "Opacus": lambda name: f"_module.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "compiled, then DataParallel": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "FSDP per block": lambda name: re.sub(r"(h\.\d+)\.", r"\1._fsdp_wrapped_module.", f"_fsdp_wrapped_module.{name}"),
    "checkpointed blocks": lambda name: re.sub(r"(h\.\d+)\.", r"\1._checkpoint_wrapped_module.", name),
    "both per block": lambda name: re.sub(
        r"(h\.\d+)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.", name
    ),
    "compiled blocks": lambda name: re.sub(r"(h\.\d+)\.", r"\1._orig_mod.", name),
    "compiled MLPs in DeepSpeed": lambda name: "module." + name.replace(".mlp.", ".mlp._orig_mod."),
    "Lightning": lambda name: f"model.{name}",
    "Lightning by another name": lambda name: f"gpt.{name}",
    "Lightning, deeper": lambda name: f"policy.net.gpt._orig_mod.{name}",
    "Fabric": lambda name: f"_forward_module.model.{name}",
    "PEFT, merged": lambda name: f"base_model.model.{name}",
    "trl": lambda name: f"pretrained_model.{name}",
    "an attribute called transformer": lambda name: f"transformer.{name}",
}


@pytest.mark.parametrize(
    ("way", "body"),
    [(way, "transformer.") for way in WRAPPED]
    + [(way, "") for way in WRAPPED if way != "an attribute called transformer"],  # which are a model's own names
)
def test_wrappers_around_names_are_seen_through(folder, way, body):
    theirs = random_hf()
    state = {
        WRAPPED[way](body + name.removeprefix("transformer.") if name.startswith("transformer.") else name): tensor
        for name, tensor in theirs.state_dict().items()
        if body or name != "lm_head.weight"
    }
    torch.save(state, folder / "pytorch_model.bin")
    assert_same_logits(folder, theirs)


@pytest.mark.parametrize("model", [Lesson(False, tanh_gelu), OldMinGPT(), HuggingFaceNames(False, tanh_gelu)])
@pytest.mark.parametrize("way", ["Lightning by another name", "FSDP", "Opacus"])
def test_every_dialect_may_be_wrapped(tmp_path, model, way):
    torch.save({WRAPPED[way](name): tensor for name, tensor in model.state_dict().items()}, tmp_path / "model.pt")
    told = {} if isinstance(model, OldMinGPT) else {"activation": "gelu_new"}
    assert_same_logits(tmp_path / "model.pt", model, n_head=N, **told)


METRICS = [
    {"train_acc.total": torch.tensor(3)}, {"loss.mean_value": torch.tensor(0.5), "loss.count": torch.tensor([2.0])},
    {"confusion.confmat": torch.ones(97, 97, dtype=torch.long)}, {"step": torch.tensor(7)},
    {"seen": torch.ones(36, dtype=torch.bool)},
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: next(iter(metric)))
@pytest.mark.parametrize("prefix", ["gpt.", "net.model.", ""])
def test_metrics_beside_a_model_are_left_out_and_named(folder, caplog, metric, prefix):
    theirs = random_hf()
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()} | metric
    torch.save({"state_dict": state, "epoch": 3}, folder / "pytorch_model.bin")
    assert_same_logits(folder, theirs)
    (said,) = [record.message for record in caplog.records]
    assert "left out, as no part of the language model: " in said
    assert all(f"{name} {tuple(tensor.shape)}" in said for name, tensor in metric.items())


def test_a_head_beside_a_body_with_a_name_of_its_own(folder):
    theirs = random_hf(tie_word_embeddings=False)
    theirs.config.save_pretrained(folder)
    state = {name.replace("transformer.", "gpt."): tensor for name, tensor in theirs.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    assert_same_logits(folder, theirs)


def test_adapters_are_what_has_adapters(folder):
    for name in ("h.0.attn.c_attn.lora_B.default.weight", "h.0.attn.c_attn.base_layer.weight", "h.0.mlp.ia3_l"):
        state = {f"base_model.model.transformer.{name}": torch.ones(1)} | random_hf().state_dict()
        torch.save(state, folder / "pytorch_model.bin")
        with pytest.raises(
            convert.InputError, match="is a tensor of an adapter such as LoRA, which has to be merged first"
        ):
            convert.read(folder)


def test_a_table_of_ones_own_may_have_its_positions_anywhere():
    names = ("embed.wpe.weight", "embed.wte.weight", "layers.0.x", "final_head.weight", "step")
    tensors = {name: np.zeros(2, np.int32 if name == "step" else np.float32) for name in names}
    assert [*unwrap(tensors, keeps_all=True).tensors] == [*names]
    own = replace(HF, name="mine", rows=(*HF.rows[:-1], replace(HF.rows[-1], theirs="final_head.weight")))
    assert [*unwrap(tensors, own).tensors] == [*names[:-1]]
    wrapped = {f"net._orig_mod.{name}": array for name, array in tensors.items()}
    assert [*unwrap({f"model.{name}": array for name, array in tensors.items()}, own).tensors] == [*names[:-1]]
    assert [*unwrap(wrapped, keeps_all=True).tensors] == [f"net.{name}" for name in names]


# dicts in dicts


@pytest.mark.parametrize(
    "keys", [("module",), ("model", "module"), ("state_dict", "model"), ("net",), ("model_state", "network", "weights")]
)
def test_a_state_dict_is_found_under_keys_at_any_depth(folder, keys):
    theirs = random_hf()
    tree = theirs.state_dict()
    for key in reversed(keys):
        tree = {"epoch": 1, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, key: tree}
    torch.save(tree, folder / "pytorch_model.bin")
    assert_same_logits(folder, theirs)


# objects


@dataclasses.dataclass
class Config:
    n_embd: int = 36
    betas: tuple = (0.9, 0.95)
    inner: object = None


@dataclasses.dataclass(slots=True)
class Slotted:
    n_embd: int = 36


class AttrDict(dict):
    pass


OBJECTS = {
    "size": torch.Size([2, 3]), "device": torch.device("cuda", 1), "device of one kind": torch.device("cpu"),
    "dtype": torch.bfloat16, "set": {1, 2}, "frozenset": frozenset("ab"), "counter": collections.Counter("abca"),
    "ordered": collections.OrderedDict(a=1), "bytes": b"\0\xff" * 400, "bytearray": bytearray(b"abc"),
    "complex": 1 - 2j, "float64": np.float64(0.5), "float32": np.float32(0.5), "int64": np.int64(7),
    "bool_": np.bool_(True), "str_": np.str_("text"), "array": np.arange(5), "namespace": argparse.Namespace(lr=0.1),
    "simple": types.SimpleNamespace(a=1), "dataclass": Config(inner=Config()), "slots": Slotted(),
    "dict of its own": AttrDict(a=1), "path": pathlib.PurePosixPath("/a/b"), "layout": torch.strided,
    "default dict": collections.defaultdict(list, a=[1]), "generator": torch.get_rng_state(), "none": None,
    "types": [typing.Any, dict, str, int],
    "parameter": torch.nn.Parameter(torch.ones(2)), "empty": [(), [], {}, set(), frozenset(), b""], "big": 2**70,
}  # fmt: skip
EXPECTED = {
    "size": (2, 3), "device": "cuda:1", "device of one kind": "cpu", "dtype": "torch.bfloat16", "set": {1, 2},
    "frozenset": frozenset("ab"), "counter": {"a": 2, "b": 1, "c": 1}, "ordered": {"a": 1}, "bytes": b"\0\xff" * 400,
    "bytearray": bytearray(b"abc"), "complex": 1 - 2j, "float64": 0.5, "float32": 0.5, "int64": 7, "bool_": True,
    "str_": "text", "namespace": {"lr": 0.1}, "simple": {"a": 1}, "layout": "torch.strided",
    "dataclass": {"n_embd": 36, "betas": (0.9, 0.95), "inner": {"n_embd": 36, "betas": (0.9, 0.95), "inner": None}},
    "dict of its own": {"a": 1}, "path": "//a/b", "default dict": {"a": [1]}, "none": None, "big": 2**70,
    "types": ["typing.Any", "builtins.dict", "builtins.str", "builtins.int"],
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("name", OBJECTS)
def test_plain_data_beside_a_model_is_read_as_data(folder, name, protocol, is_old):
    theirs = random_hf()
    torch.save(
        {"model": theirs.state_dict(), "beside": OBJECTS[name], "again": [OBJECTS[name]] * 2},
        folder / "pytorch_model.bin", pickle_protocol=protocol, _use_new_zipfile_serialization=not is_old,
    )  # fmt: skip
    checkpoint = convert.read(folder)
    assert len(checkpoint.params) == 28
    from jaxgpt.convert.formats import torch_legacy, torch_zip

    tree = (torch_legacy if is_old else torch_zip).read(folder / "pytorch_model.bin")
    if name in EXPECTED:
        assert tree["beside"] == EXPECTED[name]
        assert tree["again"] == [EXPECTED[name]] * 2


def test_no_class_of_a_file_is_imported(folder, monkeypatch):
    module = types.ModuleType("a_module_that_is_gone")
    exec("class Config:\n    def __setstate__(self, state): raise SystemExit('called')", module.__dict__)
    monkeypatch.setitem(sys.modules, "a_module_that_is_gone", module)
    config = module.Config()
    config.__dict__["n_head"] = 3
    torch.save({"model": random_hf().state_dict(), "config": config}, folder / "pytorch_model.bin")
    monkeypatch.delitem(sys.modules, "a_module_that_is_gone")
    assert len(convert.read(folder).params) == 28
    assert "a_module_that_is_gone" not in sys.modules


@pytest.mark.parametrize("make", [argparse.Namespace, types.SimpleNamespace, dict])
def test_model_args_may_be_an_object(tmp_path, make):
    model = HuggingFaceNames(True, F.gelu)
    torch.save({"model": model.state_dict(), "model_args": make(**MODEL_ARGS)}, tmp_path / "ckpt.pt")
    assert convert.read(tmp_path / "ckpt.pt").dialect is NANOGPT
    assert_same_logits(tmp_path / "ckpt.pt", model)


# PyTorch before 1.6


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_pytorch_before_1_6(folder, kind):
    theirs = random_hf().to(kind).float()
    state = {name: tensor.to(kind) for name, tensor in theirs.state_dict().items()}
    state["transformer.ln_f.weight"] = torch.nn.Parameter(state["transformer.ln_f.weight"])
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same_logits(folder, theirs)
    assert "format      PyTorch before 1.6" in call("convert", folder).stdout


def test_dialogpts_pkl_and_views_of_storages(folder):
    theirs = random_hf()
    state, big = theirs.state_dict(), torch.randn(200, 36)
    big[50 : 50 + DIMS["vocab_size"]] = state["transformer.wte.weight"]
    state["transformer.wte.weight"] = state["lm_head.decoder.weight"] = big[50 : 50 + DIMS["vocab_size"]]
    del state["lm_head.weight"]
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"].t().contiguous().t()
    torch.save(state, folder / "small_ft.pkl", _use_new_zipfile_serialization=False)
    assert_same_logits(folder / "small_ft.pkl", theirs)
    assert convert.read(folder / "small_ft.pkl").dialect.name == "dialogpt"


def test_old_files_in_shards(folder):
    theirs = random_hf()
    names = list(theirs.state_dict())
    files = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: theirs.state_dict()[name] for name in names if files[name] == file}
        torch.save(part, folder / file, _use_new_zipfile_serialization=False)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_same_logits(folder, theirs)


# Flax


def flax_tree(theirs: GPT2LMHeadModel, kind=np.float32) -> dict:
    """As FlaxGPT2LMHeadModel has them: Conv1D's kernels as (out, in), those of Dense as (in, out)."""
    tree: dict = {}
    for name, tensor in theirs.state_dict().items():
        *path, last = name.split(".")
        if name == "lm_head.weight" and theirs.config.tie_word_embeddings:
            continue
        array = tensor.numpy().astype(kind)
        if path[-1] in ("wte", "wpe"):
            last = "embedding"
        elif last == "weight":
            last = "scale" if path[-1].startswith("ln_") else "kernel"
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = array.T if last == "kernel" else array
    return tree


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("body", [True, False])
def test_a_folder_of_flax(tmp_path, tied, kind, body):
    theirs = random_hf(tie_word_embeddings=tied)
    theirs = theirs.half().float() if kind == "float16" else theirs
    theirs.config.save_pretrained(tmp_path)
    tree = flax_tree(theirs, kind)
    if not body and tied:  # of FlaxGPT2Model
        tree = tree["transformer"]
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(tree))
    assert_same_logits(tmp_path, theirs)
    checkpoint = convert.read(tmp_path)
    assert (checkpoint.dialect.name, checkpoint.config.tie_word_embeddings) == ("flax", tied)
    call("convert", tmp_path, tmp_path / "out", "--to=hf")
    assert_same_logits(tmp_path / "out", theirs)


def test_a_flax_head_that_a_config_calls_tied_is_its_own(tmp_path):
    theirs = random_hf(tie_word_embeddings=False)
    theirs.config.save_pretrained(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(flax_tree(theirs)))
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    assert_same_logits(tmp_path, theirs)


# activations


def nanogpt(file: Path, function, model_args: dict) -> HuggingFaceNames:
    model = HuggingFaceNames(True, function)
    torch.save({"model": model.state_dict(), "model_args": MODEL_ARGS | model_args}, file)
    return model


def test_an_activation_that_is_assumed_is_said_and_can_be_told(tmp_path, caplog):
    model = nanogpt(tmp_path / "ckpt.pt", tanh_gelu, {})
    convert.read(tmp_path / "ckpt.pt")
    (said,) = [record.message for record in caplog.records]
    assert (
        "the activation is not stated in the file: gelu (the exact form) is assumed, as in the code of nanoGPT" in said
    )
    assert said.endswith("give activation=")
    text = call("convert", tmp_path / "ckpt.pt").stdout
    assert "gelu (the exact form) is assumed" in text
    assert text.endswith("give --activation=\n")
    for door in (["convert"], ["jaxgpt", "convert"]):
        done = call(*door, tmp_path / "ckpt.pt", tmp_path / door[0])
        assert done.stderr.count("assumed") == 1
        assert done.stderr.startswith(f"convert: {tmp_path}")
        assert done.stderr.endswith("give --activation=\n")
    caplog.clear()
    assert_same_logits(tmp_path / "ckpt.pt", model, activation="gelu_new")
    assert not caplog.records
    assert "assumed" not in call("convert", tmp_path / "ckpt.pt", "--activation=gelu_new").stdout


@pytest.mark.parametrize(
    ("field", "says", "activation"),
    [("activation", "gelu_new", tanh_gelu), ("act", "ReLU", F.relu), ("hidden_act", "gelu_pytorch_tanh", tanh_gelu)],
)
def test_an_activation_that_the_file_states_counts(tmp_path, caplog, field, says, activation):
    model = nanogpt(tmp_path / "ckpt.pt", activation, {field: says})
    assert_same_logits(tmp_path / "ckpt.pt", model)
    assert not caplog.records
    with pytest.raises(convert.InputError, match="activation=gelu contradicts the checkpoint's"):
        convert.read(tmp_path / "ckpt.pt", activation="gelu")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"activation": "swiglu"}, "model_args states the activation 'swiglu'"),
        ({"use_rope": True}, "model_args: use_rope = True stands for rotary positions"),
        ({"n_kv_head": 1}, "model_args: n_kv_head = 1 stands for grouped"),
    ],
)
def test_model_args_that_say_another_model_are_refused(tmp_path, args, message):
    nanogpt(tmp_path / "ckpt.pt", F.gelu, args)
    with pytest.raises(convert.InputError, match=message):
        convert.read(tmp_path / "ckpt.pt")


# other heads


def trl(theirs: GPT2LMHeadModel) -> dict:
    return theirs.state_dict() | {"v_head.summary.weight": torch.ones(1, 36), "v_head.summary.bias": torch.ones(1)}


def trlx(theirs: GPT2LMHeadModel) -> dict:
    wrapped = {f"base_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    return wrapped | {"v_head.0.weight": torch.ones(72, 36), "v_head.2.bias": torch.ones(1)}


def reward(theirs: GPT2LMHeadModel) -> dict:
    return theirs.state_dict() | {"reward_head.weight": torch.ones(1, 36)}


def of(kind: type):
    def state(theirs: GPT2LMHeadModel) -> dict:
        model = kind(theirs.config)
        model.transformer.load_state_dict(theirs.transformer.state_dict())
        return model.state_dict()

    return state


HEADS = {
    "GPT2ForSequenceClassification": (of(GPT2ForSequenceClassification), "score.weight (2, 36)"),
    "GPT2DoubleHeadsModel": (of(GPT2DoubleHeadsModel), "multiple_choice_head.summary.weight (1, 36)"),
    "GPT2ForTokenClassification": (of(GPT2ForTokenClassification), "classifier.bias (2,)"),
    "GPT2ForQuestionAnswering": (of(GPT2ForQuestionAnswering), "qa_outputs.weight (2, 36)"),
    "AutoModelForCausalLMWithValueHead": (trl, "v_head.summary.bias (1,)"),
    "a value head": (trlx, "v_head.0.weight (72, 36)"),
    "a reward model": (reward, "reward_head.weight (1, 36)"),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_other_heads_are_named_and_left_behind_when_told(folder, caplog, name, wrapper):
    make, shown = HEADS[name]
    theirs = random_hf()
    state = {wrapper + key: tensor.clone() for key, tensor in make(theirs).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    done = call("convert", folder, check=False)
    assert done.returncode == 2
    assert name in done.stderr
    assert "--drop-heads reads the language model alone" in done.stderr
    text = call("convert", folder, "--drop-heads").stdout
    assert f"note        left out, as no part of the language model: {wrapper}{shown}" in text or shown in text
    with caplog.at_level(logging.WARNING):
        assert_same_logits(folder, theirs, drop_heads=True)
    assert shown in caplog.text
    call("convert", folder, folder / "out", "--to=hf", "--drop-heads")
    assert_same_logits(folder / "out", theirs)
    assert not [key for key in load_file(folder / "out" / "model.safetensors") if "head" in key or "score" in key]


def test_without_another_head_there_is_nothing_to_drop(folder, caplog):
    theirs = random_hf()
    theirs.save_pretrained(folder)
    assert_same_logits(folder, theirs, drop_heads=True)
    assert not caplog.records


# the flags, on every command


def test_what_is_told_is_used(tmp_path):
    torch.save(Lesson(True, F.gelu).state_dict() | {"v_head.weight": torch.ones(1, 36)}, tmp_path / "lesson.pt")
    told = [f"--n-head={N}", "--activation=gelu", "--dialect=lesson", "--drop-heads"]
    assert call("jaxgpt", "check", tmp_path / "lesson.pt", *told).returncode == 0
    settings = read_command(told)
    expected = {"n_head": N, "activation": "gelu", "dialect": "lesson", "drop_heads": True}
    assert settings.how_to_read == expected | {"adapter": None, "averaged": False}
    assert read_command(as_flags(to_json(settings))) == settings


def test_python_has_them_too(tmp_path):
    dims = {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_inner": 64, "n_positions": 32, "vocab_size": 4096}
    theirs = random_hf(**dims, eos_token_id=4095, bos_token_id=4095)
    torch.save(theirs.state_dict() | {"v_head.weight": torch.ones(1, 32)}, tmp_path / "model.pt")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    told = {"n_head": 4, "activation": "gelu_new", "drop_heads": True, "dialect": "hf"}
    expected = jaxgpt.from_pretrained(tmp_path / "model.pt", **told).config
    assert (expected.n_head, expected.activation_function) == (4, "gelu_new")
    assert jaxgpt.load(tmp_path / "model.pt", **told).config == expected
    arguments = ",".join(f"{name}={value}" for name, value in told.items())
    harness = lm_eval.api.registry.get_model("jaxgpt").create_from_arg_string(
        f"pretrained={tmp_path}/model.pt,{arguments}", {"batch_size": 1}
    )
    assert replace(harness.model.config, eos_token_id=None, bos_token_id=None) == expected
    with pytest.raises(convert.InputError, match="give n_head="):
        jaxgpt.lm_eval.JaxGPT(f"{tmp_path}/model.pt", drop_heads=True)


@pytest.mark.parametrize("command", ["train", "generate", "eval", "check", "convert"])
def test_every_command_that_reads_a_model_has_the_flags_that_messages_name(command, tmp_path):
    torch.save(Lesson(True, F.gelu).state_dict(), tmp_path / "lesson.pt")
    (tmp_path / "text.txt").write_text("one two " * 50)
    flags = {
        "train": [f"--model={tmp_path}/lesson.pt", f"--out={tmp_path}/run", f"--data={tmp_path}/text.txt"],
        "eval": [tmp_path / "lesson.pt", f"--data={tmp_path}/text.txt"],
    }.get(command, [tmp_path / "lesson.pt"])
    for told, message in (
        ([], "give --n-head="),
        ([f"--n-head={N}"], "give --activation="),
        (["--dialect=what"], "--dialect='what': unknown dialect"),
        (["--n-head=7", "--activation=gelu", "--no-drop-heads"], "36 is not divisible by n_head 7"),
    ):
        done = call("jaxgpt", command, *flags, *told, check=False)
        assert done.returncode == 2
        if command == "eval" and "tokenizer" in done.stderr:
            continue  # it looks for the tokenizer first
        assert message in done.stderr
