"""The table of what is read, in docs/reference/checkpoints.md: each row is a file, made and read as the row says.

And nothing of it gets lost on the way to Hugging Face's format: files, fields, tensors and tokens, compared as sets.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, call, random_hf, torch_logits
from families import FIRST, write_model
from flax.serialization import to_bytes
from test_containers import flax_tree
from test_dialects import TOKENS, GPTConfig, N, logits_of, nanogpt_checkpoint, write_llmc
from test_own_dialects import Raschka
from torch import nn
from torch.nn import functional as F
from torch_gpts import HuggingFaceNames, Lecture, Lesson, Mixture, OldMinGPT, tanh_gelu
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.export import TARGETS
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.source import SIDECARS, VOCABULARIES

FAMILY_OF = {FAMILIES[name].dialect.name: name for name in reversed(FIRST)}
"""A family of each dialect that is known by its config.json."""

COLUMNS = ("dialect", "from", "known", "read", "written")


PAGE = ROOT / "docs" / "reference" / "checkpoints.md"


def table_under(heading: str) -> list[list[str]]:
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


TABLE = {re.match("`([^`]+)`", row[0])[1]: dict(zip(COLUMNS, row, strict=True)) for row in table_under("Dialects")}


def saved(model: nn.Module, file: Path) -> tuple[Path, np.ndarray]:
    torch.save(model.state_dict(), file)
    return file, logits_of(model)


def make(dialect: str, folder: Path) -> tuple[Path, np.ndarray]:
    """Make a checkpoint of a dialect, and return it with the logits of the model that it is of."""
    file = folder / "model.pt"
    match dialect:
        case "hf":
            theirs = random_hf()
            theirs.save_pretrained(folder)
        case "dialogpt":
            theirs = random_hf()
            state = theirs.state_dict()
            state["lm_head.decoder.weight"] = state.pop("lm_head.weight")
            theirs.config.save_pretrained(folder)
            torch.save(state, folder / "pytorch_model.bin")
        case "flax":
            theirs = random_hf()
            theirs.config.save_pretrained(folder)
            (folder / "flax_model.msgpack").write_bytes(to_bytes(flax_tree(theirs)))
        case "llmc":
            theirs = random_hf(n_inner=None)
            write_llmc(folder / "model.bin", theirs, 3)
            return folder / "model.bin", torch_logits(theirs, TOKENS)
        case "jaxgpt":
            theirs = random_hf()
            theirs.save_pretrained(folder / "hf")
            call("convert", folder / "hf", folder / "orbax")
            return folder / "orbax", torch_logits(theirs, TOKENS)
        case "nanogpt":
            model = HuggingFaceNames(tied=True, activation=F.gelu)
            torch.save(nanogpt_checkpoint(model, True), file)
            return file, logits_of(model)
        case "build-nanogpt":
            model = HuggingFaceNames(tied=True, activation=tanh_gelu)
            torch.save(
                {"model": model.state_dict(), "config": GPTConfig(41, 97, 2, 3, 36), "step": 5, "val_loss": 1.5}, file
            )
            return file, logits_of(model)
        case "mingpt":
            return saved(HuggingFaceNames(tied=False, activation=tanh_gelu, masks=True), file)
        case "linear":
            return saved(HuggingFaceNames(tied=False, activation=F.gelu), file)
        case "lesson":
            return saved(Lesson(True, F.gelu), file)
        case "old-mingpt":
            return saved(OldMinGPT(), file)
        case "raschka":
            return saved(Raschka(qkv_bias=False), file)
        case "lecture":
            return saved(Lecture(), file)
        case "mixture":
            return saved(Mixture("query", "mlp", "head"), file)
        case "my.toml":
            model = Lesson(True, F.gelu)
            state = {name.replace("blocks.", "layers."): tensor for name, tensor in model.state_dict().items()}
            torch.save(state, file)
            call("convert", file, f"--propose={folder}/my.toml")
            text = (folder / "my.toml").read_text()
            text = re.sub(r'("[^"]*c_proj[^"]*", "[^"]*", )"\?"', r'\1"D (N H) -> N H D"', text)
            text = re.sub(r'activation_function = "\?"', 'activation_function = "gelu"', text)
            (folder / "my.toml").write_text(re.sub(r'n_head = "\?"', f"n_head = {N}", text))
            return file, logits_of(model)
        case _ if (name := FAMILY_OF.get(dialect)) is not None:
            theirs = write_model(folder, name)
        case _:
            raise AssertionError(f"the table has {dialect}, and this test does not make it")
    return folder, torch_logits(theirs, TOKENS)


def test_the_table_has_every_dialect_and_every_form():
    assert {*TABLE} == {*DIALECTS, "mixture", "my.toml"}
    forms = {form for row in TABLE.values() for form in re.findall(r"--to=([\w.]+)", row["written"])}
    assert forms | {"peft"} == {*TARGETS, "my.toml"}  # an adapter is no checkpoint; tests/test_peft_files.py


@pytest.mark.parametrize("dialect", TABLE)
def test_a_row_of_the_table_is_true(dialect, tmp_path):
    (tmp_path / "in").mkdir()
    path, expected = make(dialect, tmp_path / "in")
    flags = set(re.findall(r"--([a-z-]+)", TABLE[dialect]["read"]))
    optional = {flag for flag in flags if f"or `--{flag}" in TABLE[dialect]["read"]}
    told = {"n_head": N, "activation": "gelu", "dialect": f"{tmp_path}/in/my.toml"}
    needed = {name.replace("-", "_") for name in flags - optional}
    for missing in needed:
        with pytest.raises(convert.InputError, match=f"{missing}=|dialect="):
            convert.read(path, **{name: told[name] for name in needed - {missing}})
    model = jaxgpt.from_pretrained(path, **{name: told[name] for name in needed})
    logits = np.asarray(model(TOKENS))[..., : expected.shape[-1]]
    assert np.abs(logits - expected).max() <= 1e-5
    checkpoint = convert.read(path, **{name: told[name] for name in needed})
    assert checkpoint.dialect.name == dialect.removesuffix(".toml")
    says_assumed = any("is assumed" in note for note in checkpoint.notes)
    assert says_assumed == ("is assumed" in TABLE[dialect]["read"])
    for word in re.findall(r"`([\w.]+)`", TABLE[dialect]["known"]):  # the names that tell it
        names = " ".join([path.name, *(name.name for name in (tmp_path / "in").iterdir()), *checkpoint.tensors])
        assert word in names or word in ("model_args", "params", "config"), word
    for form in re.findall(r"--to=([\w.]+)", TABLE[dialect]["written"]):
        to = f"{tmp_path}/in/my.toml" if form == "my.toml" else form
        jaxgpt.save_pretrained(model, tmp_path / "out", dialect=to)
        again = jaxgpt.from_pretrained(
            tmp_path / "out", **({name: told[name] for name in needed} if form not in ("hf", "orbax") else {})
        )
        assert (np.asarray(again(TOKENS)) == np.asarray(model(TOKENS))).all()


REFUSED = {
    "GPT-NeoX": "gpt_neox.layers.0.attention.query_key_value.weight",
    "GPT-Neo": "transformer.h.0.attn.attention.q_proj.weight",
    "GPT-J": "transformer.h.0.attn.q_proj.weight",
    "Llama": "model.layers.0.self_attn.q_proj.weight",
    "BTLM": "transformer.h.0.mlp.c_fc2.weight",
    "CodeShell": "transformer.h.0.attn.rotary_emb.inv_freq",
    "litgpt": "transformer.h.0.norm_1.weight",
    "LoRA": "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
    "cross-attention": "transformer.h.0.crossattention.c_attn.weight",
}


@pytest.mark.bounded
@pytest.mark.parametrize("what", REFUSED)
def test_what_the_page_says_is_refused_is_refused_by_name(what, tmp_path):
    section = " ".join(PAGE.read_text().split())
    refused = section.split("Refused by name:")[1].split(". ")[0]
    assert what in refused
    torch.save({REFUSED[what]: torch.zeros(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(convert.InputError, match=what):
        convert.read(tmp_path / "model.pt")


# nothing is lost

LEFT_BEHIND = {
    "training_args.bin": "the settings of another trainer",
    "optimizer.pt": "the state of another optimizer",
    "modeling_mine.py": "code, which never runs",
    "rust_model.ot": "the same weights in another format",
    "flax_model.msgpack": "the same weights in another format",
}
"""Files that an export does not have, and why."""


def everything(folder: Path, weights: str) -> GPT2LMHeadModel:
    """Write a folder with every file that a repository of a GPT-2 has."""
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    theirs = random_hf(vocab_size=4096, bos_token_id=4095, eos_token_id=4095)
    theirs.save_pretrained(folder, **({"max_shard_size": "100KB"} if weights == "shards" else {}))
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 41, 41) for i in range(2)}
        torch.save(theirs.state_dict() | masks, folder / "pytorch_model.bin")
    fields = json.loads((folder / "config.json").read_text())
    more = {"mine": {"a": [1, None]}, "task_specific_params": {"x": 1}, "pad_token_id": 7, "auto_map": {"A": "b.C"}}
    (folder / "config.json").write_text(json.dumps(fields | more))
    generation = {"eos_token_id": [4095, 2], "bos_token_id": 4095, "top_k": 7, "mine": True, "pad_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for name in SIDECARS:
        (folder / name).write_text("{}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "README.md").write_text("the card of another model")
    for name in LEFT_BEHIND:
        (folder / name).write_text("none of these is opened")
    return theirs


def files(folder: Path) -> set[str]:
    """Return the names of the files in a folder; weights have one name, in whatever format and number."""
    return {re.sub(r"(pytorch_)?model\S*(safetensors|bin)\S*", "weights", path.name) for path in folder.iterdir()}


@pytest.mark.parametrize("weights", ["one file", "shards", "bin"])
@pytest.mark.parametrize("way", ["hf", "orbax"])
def test_no_file_no_field_and_no_tensor_is_lost(tmp_path, weights, way):
    source, out = tmp_path / "in", tmp_path / "out"
    theirs = everything(source, weights)
    if way == "orbax":
        call("convert", source, tmp_path / "between", "--to=orbax")
    call("convert", source if way == "hf" else tmp_path / "between", out, "--to=hf")

    assert files(source) - files(out) == {*LEFT_BEHIND}
    assert files(out) <= files(source)
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (source, out))
        assert {field: after.get(field) for field in before} == before
    for name in SIDECARS:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    again = GPT2LMHeadModel.from_pretrained(out, attn_implementation="eager").state_dict()
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in theirs.state_dict().items())


def test_a_run_s_export_has_the_tokenizer_and_the_fields_of_the_model_it_began_with(tmp_path):
    everything(tmp_path / "in", "one file")
    for name in {*SIDECARS} - {"tokenizer.json", "tokenizer_config.json"}:
        (tmp_path / "in" / name).unlink()
    (tmp_path / "text.txt").write_text("A sentence for a small model. " * 200)
    flags = ("--steps=1", "--batch-size=2", f"--data={tmp_path}/text.txt", f"--cache={tmp_path}/cache")
    call("train", f"--model={tmp_path}/in", f"--out={tmp_path}/run", *flags, samples=False)
    call("convert", tmp_path / "run", tmp_path / "out", "--to=hf")
    assert files(tmp_path / "in") - files(tmp_path / "out") == {*LEFT_BEHIND}
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((tmp_path / folder / name).read_text()) for folder in ("in", "out"))
        assert before.keys() <= after.keys()
        assert {field for field in before if before[field] != after[field]} <= {"eos_token_id", "bos_token_id"}


def test_the_documents_name_the_tokenizers_files():
    text = (ROOT / "docs" / "howto" / "own-text.md").read_text()
    for name in {*VOCABULARIES, "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"}:
        assert f"`{name}`" in text, name
