"""Runs that train adapters: through phases, resumed, taken out as an adapter or merged, and gone on from."""

import re
import shutil

import forked
import numpy as np
import pytest
from conftest import call, random_tokens, torch_logits
from peft import PeftModel
from runs import QUICK, arrays, assert_same_run, held
from safetensors.numpy import load_file
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt.convert.mapping import same
from jaxgpt.params import named_params

PHASES = "gradual:lora:r=3,dropout=0.2@0,last1@40%,full@80%"
"""Steps 4 and 7 of nine are the first of the second and third phase."""


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Nine steps in three phases that nothing interrupted, with a checkpoint after each step."""
    out = tmp_path_factory.mktemp("lora") / "whole"
    flags = [f"--model={small}", f"--freeze={PHASES}", *QUICK, "--checkpoint-every=1", "--keep=9", "--weight-decay=0.1"]
    return out, flags, call("train", *flags, f"--out={out}", samples=False).stdout


def test_the_base_keeps_its_bits_until_it_thaws(small, whole):
    out, _, _ = whole
    start, ends = named_params(jaxgpt.from_pretrained(small)), [arrays(out, step) for step in (4, 7, 9)]
    for name, p in start.items():
        moved = [not same(end[f"params/{name}"], np.asarray(p)) for end in ends]
        first = 1 if name.startswith(("blocks.1", "ln_f")) else 2
        assert moved == [i >= first for i in range(3)], name
    adapters = {name for name in ends[0] if name.startswith("params/") and "lora" in name}
    assert adapters == {f"params/blocks.{i}.attn.c_attn.lora_{part}" for i in range(2) for part in "ab"}
    assert all(ends[0][name].any() for name in adapters)
    moments = {name.rpartition("['")[2].removesuffix("']") for name in ends[0] if ".mu" in name}
    assert moments == {name.removeprefix("params/") for name in adapters}


def test_it_resumes_bitwise_at_a_boundary(whole, tmp_path):
    out = tmp_path / "resumed"
    shutil.copytree(whole[0], out)
    for later in range(5, 10):
        shutil.rmtree(out / "checkpoints" / str(later))
    call("train", "--resume", out, "--checkpoint-every=9", samples=False)
    assert_same_run(out, whole[0], 9)


ON_FOUR = """
import shutil, sys
from pathlib import Path
from conftest import call
import jax
assert jax.device_count() == 4
folder, *flags = sys.argv[1:]
call("train", *flags, f"--out={folder}/whole", samples=False)
for step in (4, 5, 7):
    copy = Path(folder, str(step))
    shutil.copytree(Path(folder, "whole"), copy)
    for later in range(step + 1, 10):
        shutil.rmtree(copy / "checkpoints" / str(later))
    call("train", "--resume", copy, "--checkpoint-every=9", samples=False)
"""
"""The same run on four devices, resumed at both boundaries and between them, all in one process."""


def test_it_resumes_bitwise_around_each_boundary_on_four_devices(whole, tmp_path):
    _, flags, _ = whole
    done = forked.run(ON_FOUR, tmp_path, *flags, "--mesh=fsdp=4", "--ema=0.9", XLA_FLAGS=forked.simulated(4))
    assert done.returncode == 0, done.stderr
    average = held(tmp_path / "whole", 9, "ema")
    assert len(average) > 20
    for step in (4, 5, 7):
        assert_same_run(tmp_path / str(step), tmp_path / "whole", 9)
        found = held(tmp_path / str(step), 9, "ema")
        assert all(same(found[name], p) for name, p in average.items()), step


def logits_of(model) -> np.ndarray:
    return np.asarray(model(random_tokens((2, 32))))


def test_a_run_is_taken_out_as_an_adapter_and_merged(small, tmp_path):
    said = call(
        "train", f"--model={small}", "--freeze=lora:r=2,on=attn", *QUICK, f"--out={tmp_path}/run", samples=False
    ).stdout
    assert re.search(r"parameters +[\d,]+, as its config implies", said)
    assert "--to=peft    # for PEFT" in said
    assert "times that" not in said  # as a rate was given
    ours = jaxgpt.from_pretrained(tmp_path / "run")
    tokens, expected = random_tokens((2, 32)), logits_of(ours)
    call("convert", tmp_path / "run", tmp_path / "peft", "--to=peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2
    base = GPT2LMHeadModel.from_pretrained(small, attn_implementation="eager")
    assert (
        np.abs(torch_logits(PeftModel.from_pretrained(base, tmp_path / "peft").eval(), tokens) - expected).max() <= 1e-5
    )
    call("convert", tmp_path / "run", tmp_path / "hf", "--to=hf")
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    assert np.abs(torch_logits(merged, tokens) - expected).max() <= 1e-5
    words = call("jaxgpt", "generate", tmp_path / "run", "--prompt=The", "--max-new-tokens=5", "--temperature=0").stdout
    flags = (f"--adapter={tmp_path}/peft", "--prompt=The", "--max-new-tokens=5", "--temperature=0")
    assert call("jaxgpt", "generate", small, *flags).stdout == words
    said = call("jaxgpt", "check", tmp_path / "run", f"--against={tmp_path}/hf", check=False).stdout  # it writes noise
    assert re.findall(r"^(\w+) +ok", said, re.M) == ["counts", "weights", "tokenizer", "parity", "parameters"], said

    # another run goes on from it: with its adapter, or, where that is not named, with merged weights
    flags = (f"--model={small}", f"--adapter={tmp_path}/peft", *QUICK, "--steps=1")
    said = call(
        "train", *(flag for flag in flags if "--lr" not in flag), "--freeze=lora", f"--out={tmp_path}/on", samples=False
    ).stdout
    assert re.search(r"lr +0\.004 at its peak, after 1 step of warm-up, adapters at 10 times that", said)
    flags = (f"--model={tmp_path}/run", *QUICK, "--steps=1", "--freeze=last1")
    call("train", *flags, f"--out={tmp_path}/other", samples=False)
    assert jaxgpt.from_pretrained(tmp_path / "on").config.lora.r == 2
    other = jaxgpt.from_pretrained(tmp_path / "other")
    assert other.config.lora is None
    first = np.asarray(named_params(other)["blocks.0.attn.c_attn.kernel"])
    assert same(first, np.asarray(named_params(jaxgpt.merge_lora(ours))["blocks.0.attn.c_attn.kernel"]))


def test_new_rows_train_and_nothing_else(small, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("<|a|> The quick brown fox <|b|> jumps over the lazy dog. " * 200)
    flags = (*QUICK, f"--data={text}", "--add-tokens=<|a|>,<|b|>", "--weight-decay=0.1")
    said = call(
        "train", f"--model={small}", "--freeze=new-tokens", *flags, f"--out={tmp_path}/run", samples=False
    ).stdout
    assert re.search(r"parameters +[\d,]+, as its config implies", said)
    assert re.search(r"new; their embeddings start at the mean of the others$", said, re.M)
    merged = jaxgpt.merge_lora(jaxgpt.from_pretrained(tmp_path / "run"))
    begin = jaxgpt.resize_vocab(jaxgpt.from_pretrained(small), 4098, pad_multiple=128)
    params = named_params(merged)
    for name, p in named_params(begin).items():
        changed = np.argwhere(np.asarray(p) != np.asarray(params[name]))
        assert {int(index[0]) for index in changed} == ({4096, 4097} if name == "tok_emb.embedding" else set()), name
    done = call("train", f"--model={small}", "--freeze=new-tokens", *QUICK, f"--out={tmp_path}/none", check=False)
    assert (done.returncode, "give --add-tokens" in done.stderr) == (2, True)
    call("convert", tmp_path / "run", tmp_path / "peft", "--to=peft")
    assert (tmp_path / "peft" / "adapter_model.safetensors").stat().st_size < 2000
