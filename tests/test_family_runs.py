"""Every family through the programs: adapters of PEFT's, a run from its first step to its export, meshes, kernels."""

import json
import os
import shutil
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from conftest import TINY, call, torch_logits
from families import FIRST, TWO_BLOCKS, random_rows, write_model
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from runs import QUICK, WORDS, assert_same_run, metrics, unfinished
from transformers import AutoModelForCausalLM

import jaxgpt
from jaxgpt.convert.families.shapes import SHAPES
from jaxgpt.convert.published import config_of_published
from jaxgpt.lm_eval import JaxGPT
from jaxgpt.sanity.check import expected_counts
from jaxgpt.training.report.console import _replicated

every_family = pytest.mark.parametrize("name", FIRST)

TARGETS = {"gpt_neox": ["query_key_value"]}
"""PEFT's usual layers of a family, where they are not q_proj and v_proj."""

ADAPTERS = {
    "usual": {"r": 2, "lora_alpha": 6},
    "dora on all layers": {"r": 3, "use_dora": True, "target_modules": "all-linear"},
    "rows of some tokens": {"r": 2, "trainable_token_indices": [3, 90, 95]},
}


def base_and_adapter(folder, name, **settings):
    """Write a base, and an adapter of PEFT's whose every parameter is random; return PEFT's model."""
    base = write_model(folder / "base", name)
    settings = {"target_modules": TARGETS.get(name, ["q_proj", "v_proj"])} | settings
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape) * 0.1)
    model.save_pretrained(folder / "adapter")
    return model


def from_folder(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.capability("adapters of PEFT")
@every_family
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_of_pefts_is_read_and_comes_back(name, kind, tmp_path):
    theirs, tokens = base_and_adapter(tmp_path, name, **ADAPTERS[kind]), random_rows(2)
    expected = torch_logits(theirs, tokens)
    limit = 1e-5 * max(1, np.abs(expected).max())
    base = jaxgpt.from_pretrained(tmp_path / "base")
    assert np.abs(np.asarray(base(tokens)) - expected).max() > 0.05
    model = jaxgpt.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert np.abs(np.asarray(model(tokens)) - expected).max() <= limit
    flags = [f"--base={tmp_path}/base", f"--adapter={tmp_path}/adapter"]
    call("convert", tmp_path / "base", tmp_path / "again", "--to=peft", *flags)
    loaded = PeftModel.from_pretrained(from_folder(tmp_path / "base"), tmp_path / "again").eval()
    assert np.abs(torch_logits(loaded, tokens) - expected).max() <= limit
    call("convert", tmp_path / "base", tmp_path / "hf", f"--adapter={tmp_path}/adapter", "--to=hf")
    assert np.abs(torch_logits(from_folder(tmp_path / "hf"), tokens) - expected).max() <= limit


BLOCKS = {name: TWO_BLOCKS[name] for name in ("gpt_neo", "opt")}
"""What makes models of two blocks: one looks at all tokens and one at those nearby, or one is frozen."""


@pytest.fixture
def readable(tmp_path):
    """Write a model of a family with the bundled tokenizer, and as few blocks as are of different kinds."""

    def write(name, **changes):
        ids = {"vocab_size": 4096, "bos_token_id": 4095, "eos_token_id": 4095} | changes
        write_model(tmp_path / "base", name, **ids, **BLOCKS.get(name, {"num_hidden_layers": 1}))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, tmp_path / "base" / file)
        return tmp_path / "base"

    return write


STRATEGIES = {
    "gpt_neox": "gradual:lora:r=2,on=all@0,full@6", "gpt_neo": "full", "opt": "first1", "llama": "lora:r=2",
    "mistral": "head", "qwen2": "biases", "qwen3": "norms",
}  # fmt: skip


@pytest.mark.capability("training, resuming, export, eval")
@every_family
def test_a_run_learns_is_resumed_and_is_taken_out(name, readable, tmp_path):
    base, out, tokens = readable(name), tmp_path / "run", random_rows(2)
    flags = (f"--model={base}", f"--freeze={STRATEGIES[name]}", *QUICK, "--lr=3e-3", "--context=24")
    call("train", *flags, f"--out={out}", report=name == "qwen3")
    losses = [line["eval_loss"] for line in metrics(out) if line.get("eval_loss") is not None]
    assert losses[-1] < losses[0]
    assert (out / "report.html").exists() == (name == "qwen3")
    call("train", "--resume", unfinished(out, tmp_path / "again"))
    assert_same_run(out, tmp_path / "again", 9, at_least=10)
    model = jaxgpt.from_pretrained(out)
    assert model.config.model_type == name
    call("convert", out, tmp_path / "hf", "--to=hf")
    expected = torch_logits(from_folder(tmp_path / "hf"), tokens)
    assert np.abs(np.asarray(model(tokens)) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert "loss" in call("jaxgpt", "eval", out, f"--data={WORDS}", "--context=24").stdout
    assert call("jaxgpt", "generate", out, "--prompt=The", "--max-new-tokens=5", "--seed=1").stdout.startswith("The")


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_rows_of_new_tokens_are_taken_out_as_an_adapter(name, readable, tmp_path):
    """Of a tied and of an untied head, over a table with more rows than the tokenizer has tokens."""
    base, out = readable(name, vocab_size=4128), tmp_path / "run"
    flags = ("--freeze=lora:r=2+new-tokens", "--add-tokens=<|note|>", "--steps=2", "--batch-size=2", "--context=24")
    call("train", f"--model={base}", f"--out={out}", f"--data={WORDS}", *flags)
    call("convert", out, tmp_path / "peft", "--to=peft")
    model = jaxgpt.from_pretrained(out)
    tokens = np.concatenate([random_rows(1, 12), [[4096, 7, 4096]]], 1).astype(np.int32)
    theirs = PeftModel.from_pretrained(from_folder(base), tmp_path / "peft").eval()
    expected = torch_logits(theirs, tokens)[..., : model.config.n_tokens]
    found = np.asarray(model(tokens))[..., : model.config.n_tokens]
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.capability("lm_eval")
@every_family
def test_the_harness_has_transformers_scores(name, readable):
    folder = readable(name)
    pairs = [("In the beginning", " God created"), ("", "The"), ("ROMEO: But, soft!", " what light")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = HFLM(str(folder), dtype="float32", device="cpu", logits_cache=False).loglikelihood(
        requests, disable_tqdm=True
    )
    ours = JaxGPT(str(folder)).loglikelihood(requests, disable_tqdm=True)
    for (a, is_greedy), (b, was_greedy) in zip(ours, theirs, strict=True):
        assert abs(a - b) <= 1e-4 * max(1, abs(b))
        assert is_greedy == was_greedy


@pytest.mark.capability("eight devices")
def test_eight_devices_compute_what_one_does(tmp_path):
    """In one process for all families; `family_meshes.py` says on which meshes."""
    eight = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = forked.run("from family_meshes import main; main()", tmp_path / "found.json", XLA_FLAGS=eight)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name for name, _ in (key.split(" on ") for key in found)} == {*FIRST}
    for key, differences in found.items():
        assert differences["loss"] < 1e-6, key
        assert differences["gradient"] < 1e-5, key
        if key.startswith(("llama", "mistral", "qwen")):  # two heads of keys, and four devices
            assert differences["keys are split"] == ("tensor=4" not in key), key


def test_heads_that_tensor_does_not_divide_are_said():
    model = SimpleNamespace(config=jaxgpt.GPTConfig(n_kv_head=2, split_qkv=True))
    for tensor, said in ((2, []), (4, ["mesh        tensor=4 does not divide the 2 heads of keys and values"])):
        spec = SimpleNamespace(model=model, mesh=SimpleNamespace(shape={"tensor": tensor}))
        assert [line.partition(":")[0] for line in _replicated(SimpleNamespace(spec=spec))] == said


PUBLISHED = {
    "EleutherAI/pythia-14m": 14_067_712, "EleutherAI/pythia-160m": 162_322_944, "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-12b": 11_846_072_320, "roneneldan/TinyStories-1M": 3_745_984,
    "roneneldan/TinyStories-33M": 68_514_048, "facebook/opt-125m": 125_239_296,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008, "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384, "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616, "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824, "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096, "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512, "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096, "Qwen/Qwen3-8B": 8_190_735_360,
}  # fmt: skip
"""Parameters that the hub counts."""


def test_published_shapes_have_the_parameters_that_are_published():
    counted = {name: sum(expected_counts(config_of_published(name)).values()) for name in PUBLISHED}
    assert counted == PUBLISHED
    assert config_of_published("pythia-14m") == config_of_published("EleutherAI/pythia-14m@step1000")
    assert config_of_published("someone/pythia-14m") is None


SMALLEST = {
    "gpt_neox": "pythia-14m", "gpt_neo": "TinyStories-1M", "opt": "opt-125m", "llama": "SmolLM2-135M",
    "mistral": "Mistral-7B-v0.1", "qwen2": "Qwen2.5-0.5B", "qwen3": "Qwen3-0.6B",
}  # fmt: skip


@pytest.mark.capability("--compile-only by name")
@every_family
def test_a_published_shape_is_compiled_without_weights(name, tmp_path, monkeypatch):
    """Of the larger ones only the formula's part: their compilation takes minutes."""
    assert {kind for kind, _ in SHAPES.values()} >= {name}
    config = config_of_published(SMALLEST[name])
    assert config.model_type == name
    if name in ("gpt_neox", "gpt_neo"):
        flags = ("--compile-only", f"--model={SMALLEST[name]}", "--freeze=last1", "--batch-size=2", "--context=64")
        said = call("train", *flags).stdout
        assert f"{sum(expected_counts(config).values()):,}" in said or "parameters" in said
