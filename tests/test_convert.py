"""The converter: bitwise both ways, strict about everything, and nothing left behind when it fails."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import DIMS, ROOT, TINY, call, random_hf, random_tokens, torch_logits
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert import disk
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.families.gpt2 import GPT2
from jaxgpt.convert.families.hf_config import config_from_hf
from jaxgpt.convert.layout import relayout, shape_of, swap
from jaxgpt.convert.mapping import same


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, change) -> None:
    """Applies `change` to the dict of tensors in a folder."""
    tensors = load_torch(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# the table


def test_the_table_covers_the_models_parameters_exactly():
    for tied in (True, False):
        config = jaxgpt.GPTConfig(**DIMS, tie_word_embeddings=tied)
        shapes = {name: p.shape for name, p in jaxgpt.named_params(jaxgpt.model.gpt.abstract(config)).items()}
        assert shapes == {r.ours: shape_of(r.layout.split(" -> ")[1], config.dims) for r in HF.expand(config)}
        assert shapes.keys() == {row.ours for row in JAXGPT.expand(config)}


def test_a_layout_read_backwards_is_its_inverse():
    dims = jaxgpt.GPTConfig(**DIMS).dims
    for row in HF.rows:
        left, right = row.layout.split(" -> ")
        theirs = np.arange(np.prod(shape_of(left, dims))).reshape(shape_of(left, dims))
        ours = relayout(theirs, row.layout, dims)
        assert ours.shape == shape_of(right, dims)
        assert np.shares_memory(ours, theirs)  # import copies nothing
        assert (relayout(ours, swap(row.layout), dims) == theirs).all()


# round trips


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_import_then_export_is_bitwise_identical(tmp_path, dtype, tied, shard_size):
    model = random_hf(tie_word_embeddings=tied).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "a", max_shard_size=shard_size)
    first = call("convert", tmp_path / "a", tmp_path / "b", "--to=orbax")
    assert "bitwise equal" in first.stdout
    call("convert", tmp_path / "b", tmp_path / "c", "--to=hf", f"--shard-size={shard_size}")
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == len(list((tmp_path / "a").glob("*.safetensors")))
    before, after = read_all(tmp_path / "a"), read_all(tmp_path / "c")
    assert before.keys() == after.keys()
    assert all(same(before[name], after[name]) for name in before)


def test_the_bundled_file_comes_out_identical_byte_for_byte(tmp_path):
    call("convert", TINY, tmp_path / "out", "--to=hf")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_export_loads_strictly_in_transformers_with_equal_logits(tmp_path, hf_folder, tied):
    folder, theirs = hf_folder(tie_word_embeddings=tied, activation_function="relu", layer_norm_epsilon=1e-3)
    jaxgpt.save_pretrained(jaxgpt.from_pretrained(folder), tmp_path / "out", shard_size="30KB")
    again, info = GPT2LMHeadModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    for field in GPT2.fields:
        assert getattr(again.config, field) == getattr(theirs.config, field), field
    tokens = random_tokens((2, DIMS["n_positions"]))
    assert (torch_logits(again.eval(), tokens) == torch_logits(theirs, tokens)).all()


def test_what_we_write_the_safetensors_library_reads(tmp_path, hf_folder):
    folder, theirs = hf_folder()
    jaxgpt.save_pretrained(jaxgpt.from_pretrained(folder), tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        if name != "lm_head.weight":
            assert (ours[name] == tensor.numpy()).all()


def test_dtype_casts_once_and_says_so(tmp_path, hf_folder):
    folder, _ = hf_folder()
    assert "equal as bfloat16" in call("convert", folder, tmp_path / "out", "--to=hf", "--dtype=bfloat16").stdout
    before, after = read_all(folder), read_all(tmp_path / "out")
    assert all(same(after[name], before[name].astype(ml_dtypes.bfloat16)) for name in before)


def test_save_and_load_of_our_own_form(tmp_path, hf_folder):
    model = jaxgpt.from_pretrained(hf_folder(tie_word_embeddings=False)[0])
    jaxgpt.save(model, tmp_path / "saved")
    again = jaxgpt.load(tmp_path / "saved")
    assert again.config == model.config
    ours, theirs = jaxgpt.named_params(model), jaxgpt.named_params(again)
    assert ours.keys() == theirs.keys()
    assert all(same(np.asarray(ours[name]), np.asarray(theirs[name])) for name in ours)


# what a file may look like


def test_names_without_the_prefix_and_buffers_of_old_files(hf_folder):
    folder, theirs = hf_folder()
    T = DIMS["n_positions"]

    def older(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(DIMS["n_layer"]):
            tensors[f"h.{i}.attn.bias"] = torch.tril(torch.ones(T, T, dtype=torch.uint8)).view(1, 1, T, T)
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    edit_tensors(folder, older)
    checkpoint = convert.read(folder)
    assert len(checkpoint.buffers) == 2 * DIMS["n_layer"]
    tokens = random_tokens((1, T))
    logits = np.asarray(jaxgpt.from_pretrained(folder)(tokens))
    assert np.abs(logits - torch_logits(theirs, tokens)).max() <= 1e-5


@pytest.mark.parametrize("config_says_tied", [True, False])
@pytest.mark.parametrize("there", ["embedding", "head", "both equal", "both different"])
def test_tied_heads_in_all_their_forms(hf_folder, there, config_says_tied):
    folder, theirs = hf_folder()
    embedding = theirs.transformer.wte.weight.detach()

    def arrange(tensors):
        if there == "head":
            tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
        elif there != "embedding":
            tensors["lm_head.weight"] = embedding + (there == "both different")

    edit_tensors(folder, arrange)
    edit_config(folder, tie_word_embeddings=config_says_tied)
    if there in ("embedding", "head") and not config_says_tied:
        with pytest.raises(convert.InputError, match=r"missing: (lm_head|wte)\.weight \(97, 36\)"):
            convert.read(folder)
        return
    checkpoint = convert.read(folder)
    assert checkpoint.config.tie_word_embeddings == (config_says_tied and there != "both different")
    assert same(np.asarray(checkpoint.params["tok_emb.embedding"]), embedding.numpy())
    if not checkpoint.config.tie_word_embeddings:
        head = embedding + (there == "both different")
        assert same(np.asarray(checkpoint.params["lm_head.kernel"]), head.numpy().T)


# what is refused


def test_missing_extra_and_misshapen_tensors_are_all_listed(hf_folder):
    folder, _ = hf_folder()

    def spoil(tensors):
        del tensors["transformer.h.0.mlp.c_fc.bias"], tensors["transformer.ln_f.weight"]
        tensors["transformer.h.7.ln_1.weight"] = torch.ones(36)
        tensors["transformer.h.1.attn.c_proj.weight"] = torch.ones(36, 35)
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 5, 6)  # named like a mask, but not of its shape
        tensors["transformer.h.1.ln_1.bias"] = torch.ones(36, dtype=torch.int32)

    edit_tensors(folder, spoil)
    done = call("convert", folder, folder / "out", check=False)
    assert done.returncode == 2
    assert "6 problems" in done.stderr
    for line in (
        "missing: h.0.mlp.c_fc.bias (52,)",
        "missing: ln_f.weight (36,)",
        "unknown: h.7.ln_1.weight (36,)",
        "unknown: h.0.attn.bias (1, 1, 5, 6)",
        "shape: h.1.attn.c_proj.weight is (36, 35), the config says (36, 36)",
        "dtype: h.1.ln_1.bias is int32, not a floating-point type",
    ):
        assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()


def test_every_field_that_transformers_writes_is_known():
    config = config_from_hf(random_hf().config.to_dict())
    assert config.n_inner == 52
    assert config_from_hf({"n_embd": 24, "n_head": 2}).n_inner == 96


def test_a_truncated_download_says_how_much_is_missing(hf_folder):
    folder, _ = hf_folder()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    done = call("convert", folder, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "truncated, 1,000 of" in done.stderr


def test_nothing_there_is_said_in_one_line(tmp_path):
    for source, message in [
        (tmp_path / "none", "no such file or folder"),
        (tmp_path, "no checkpoint found"),
        ("nobody/nothing", "the hub did not provide it"),
    ]:
        done = call("convert", source, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


# writing


def test_nothing_is_overwritten_without_force_and_no_strangers_files_with_it(tmp_path, hf_folder):
    folder, _ = hf_folder()
    out = tmp_path / "out"
    call("convert", folder, out, "--to=hf")
    before = (out / "model.safetensors").stat().st_mtime_ns
    refused = call("convert", folder, out, "--to=hf", check=False)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    call("convert", folder, out, "--to=hf", "--force")
    assert (out / "model.safetensors").stat().st_mtime_ns != before
    (out / "thesis.tex").write_text("years of work")
    refused = call("convert", folder, out, "--to=hf", "--force", check=False)
    assert refused.returncode == 2
    assert "thesis.tex" in refused.stderr
    assert (out / "thesis.tex").read_text() == "years of work"
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path, to):
    """A limit on a file's size stands for a disk that fills up: the operating system refuses to write on."""
    out = tmp_path / "deep" / "out"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_024_000, 1_024_000)); "
    done = forked.run(limit + forked.CONVERT, TINY, out, f"--to={to}")
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"convert: {out}\S*: File too large[^\n]*\n", forked.without_clock(done.stderr)), done.stderr
    assert done.stdout == ""
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch, to):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5_000_000))
    checkpoint = convert.read(TINY)
    needed = {"hf": r"5\.9", "orbax": r"11\.7"}[to]  # Orbax may need scratch files as large as the checkpoint
    with pytest.raises(convert.InputError, match=rf"too full: {needed} MB are needed, 5\.0 MB are free"):
        convert.write(tmp_path / "out", checkpoint.params, checkpoint.config, to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_kill_leaves_all_or_nothing(tmp_path, to):
    outcomes = set()
    for i in range(6):
        out = tmp_path / str(i)
        process = forked.Forked(forked.CONVERT, TINY, out, f"--to={to}")
        while not list(tmp_path.glob(f".{i}.*")) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.02 * i)
        process.kill()
        process.wait()
        outcomes.add(out.exists())
        if out.exists():
            assert len(convert.read(out).params) == 148
    assert False in outcomes


def test_opening_reads_no_tensor_data(tmp_path):
    """A tied head that appears twice is recognised by its place in the file."""
    state = random_hf().state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    random_hf().config.save_pretrained(tmp_path)
    sizes = []
    original = np.asarray

    def watched(array, *args, **kwargs):
        sizes.append(getattr(array, "size", 0))
        return original(array, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgpt.convert.mapping.np.asarray", watched)
        assert convert.read(tmp_path).config.tie_word_embeddings
    assert max(sizes, default=0) == 0


def test_inspecting_an_orbax_checkpoint_counts_the_same(tmp_path):
    call("convert", TINY, tmp_path / "out")
    assert "2,936,576 in 148 tensors" in call("convert", tmp_path / "out").stdout


def test_inspecting_prints_the_whole_mapping():
    text = call("convert", TINY).stdout
    assert "transformer.h.11.attn.c_attn.weight  128x384   float16  D (C N H) -> D C N H" in text
    assert "2,936,576 in 148 tensors" in text
    assert text.count("\n") == 148 + 8


@pytest.mark.parametrize("name", ["out[1]", "a*b", "[!x]", "plain"])
def test_a_failed_write_leaves_nothing_whatever_its_name(tmp_path, name):
    for other in ("out1", "ab", "x"):  # what an unescaped pattern would match
        (tmp_path / f".{other}.tmp").write_text("kept")
    before = sorted(tmp_path.iterdir())

    def fail_half_way():
        with disk.temporary_sibling(tmp_path / name) as temporary:
            temporary.mkdir()
            (temporary / "part").write_text("half")
            temporary.with_name(f"{temporary.name}.scratch").write_text("scratch")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail_half_way()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["out[1]", "a\nb", "x" * 250, "é" * 120])
def test_what_a_kill_left_goes_with_the_next_write_and_what_is_in_use_stays(tmp_path, name):
    path = tmp_path / name
    dead, lock = disk._locked_folder(path)
    (dead / "part").write_text("half")
    os.close(lock)  # as the end of its process does
    alive, lock = disk._locked_folder(path)
    (tmp_path / "mine").mkdir()
    link, file = (dead.with_name(f"{disk._stem(path)}{digits}.tmp") for digits in ("0" * 8, "1" * 8))
    link.symlink_to("mine")
    file.write_text("mine")
    with disk.temporary_sibling(path) as temporary:
        assert not dead.exists()
        temporary.write_text("whole")
        disk.publish(temporary, path, replaces=False)
    os.close(lock)
    assert path.read_text() == "whole"
    assert {*tmp_path.iterdir()} == {path, alive, link, file, tmp_path / "mine"}


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("old", ["file", "folder", "empty folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_what_is_replaced_is_there_until_the_new_one_is(tmp_path, monkeypatch, can_exchange, old, new):
    if not can_exchange:
        monkeypatch.setattr(disk, "_exchange", lambda one, other: False)
    path, there = tmp_path / "new", tmp_path / "there"
    for one, kind in ((path, new), (there, old)):
        if kind == "file":
            one.write_text(one.name)
        else:
            one.mkdir()
            if kind == "folder":
                (one / "x").write_text(one.name)
    disk.publish(path, there, replaces=True)
    assert (there if new == "file" else there / "x").read_text() == "new"
    assert [*tmp_path.iterdir()] == [there]


@pytest.mark.parametrize("form", ["hf", "orbax", "lesson"])
def test_a_killed_conversion_leaves_the_old_target_and_a_later_one_tidies_up(tmp_path, form):
    """Killed when all is written and compared, or half-way: nothing is under the final name but the old one."""
    out = tmp_path / ("out.pt" if form == "lesson" else "out")
    told = ["--n-head=4", "--activation=gelu_new"] if form == "lesson" else []
    call("convert", TINY, out, f"--to={form}")
    before = call("convert", out, *told).stdout
    for killed in ("export._compare", "disk._exchange"):
        code = f"import os, jaxgpt.convert.export as export, jaxgpt.convert.disk as disk\n{killed} = lambda *_, **__: "
        code += f"os.kill(os.getpid(), 9)\n{forked.CONVERT}"
        done = forked.run(code, TINY, out, f"--to={form}", "--dtype=float32", "--force", imports=forked.CONVERSION)
        assert done.returncode == -9, (killed, done.stderr)
        assert call("convert", out, *told).stdout == before
        assert len([*tmp_path.iterdir()]) == 2
    call("convert", TINY, out, f"--to={form}", "--force")
    assert call("convert", out, *told).stdout == before
    assert [*tmp_path.iterdir()] == [out]


def test_convert_needs_neither_torch_nor_flax_nor_transformers(tmp_path):
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        is_upstairs = name.startswith("jaxgpt.") and not name.startswith("jaxgpt.convert")
        if is_upstairs or name.split(".")[0] in ("torch", "flax", "transformers", "train"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from jaxgpt import convert
for to in ("hf", "orbax"):
    source = convert.read(sys.argv[1])
    convert.write(f"{sys.argv[2]}/{to}", source.params, source.config, to=to)
    assert len(convert.read(f"{sys.argv[2]}/{to}").params) == 148
"""
    subprocess.run([sys.executable, "-c", script, str(TINY), str(tmp_path)], cwd=ROOT, check=True)


def read_all(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = convert.read(folder)
    return {name: np.asarray(array) for name, array in checkpoint.tensors.items()}
