"""Checkpoints that leave what never trained in the model that the run began as, and how every reader finds it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from conftest import call, random_tokens
from runs import WORDS, arrays, assert_same_run, held, without_digests

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.base import Base, digest
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.mapping import same
from jaxgpt.convert.source import BUNDLED

FLAGS = (f"--data={WORDS}", "--batch-size=8", "--steps=4", "--checkpoint-every=2", "--eval-every=4", "--lr=1e-3")
LAST1 = ("blocks.1.", "ln_f.")


@pytest.fixture(scope="module")
def made(small, tmp_path_factory) -> Path:
    """A folder with a model, and beside it a run that trained its last block, and the same run with all parameters."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(small, folder / "model")
    for name in ("run", "standalone"):
        more = ["--standalone"] if name == "standalone" else []
        flags = (f"--model={folder}/model", "--freeze=last1", *FLAGS, *more)
        call("train", *flags, f"--out={folder}/{name}", samples=False)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy whose run names its model there, and not the one that it was copied from."""
    shutil.copytree(made, tmp_path / "here")
    for step in (2, 4):
        tell(tmp_path / "here" / "run" / "checkpoints" / str(step), model=str(tmp_path / "here" / "model"))
    for name in ("run", "standalone"):
        run_json = tmp_path / "here" / name / "run.json"
        run_json.write_text(run_json.read_text().replace(str(made), str(tmp_path / "here")))
    return tmp_path / "here"


def tell(checkpoint: Path, **other) -> None:
    """Let a checkpoint say something else about its base."""
    if (checkpoint / "digests.json").exists():
        without_digests(checkpoint)
    file = checkpoint / "base" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | other))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_holds_what_trains_and_its_moments(made):
    for step in (2, 4):
        names = held(made / "run", step, "params").keys()
        assert {name for name in names if not name.startswith(LAST1)} == set()
        base = convert.read(made / "run" / "checkpoints" / str(step)).base
        assert base.digests.keys() | names == held(made / "standalone", step, "params").keys()
        assert not base.digests.keys() & names
        assert not (made / "standalone" / "checkpoints" / str(step) / "base").exists()


def test_all_arrays_are_those_of_a_whole_checkpoint(made):
    assert_same_run(made / "run", made / "standalone", 4)


def test_every_reader_finds_the_base(made, tmp_path):
    models = [jaxgpt.from_pretrained(made / name) for name in ("run", "standalone")]
    tokens = random_tokens((2, 20))
    assert same(*(np.asarray(model(tokens)) for model in models))
    for command in (["jaxgpt", "generate"], ["jaxgpt", "eval"]):
        flags = ["--max-new-tokens=5", "--temperature=0"] if "generate" in command else [f"--data={WORDS}"]
        said = [call(*command, made / name, *flags).stdout for name in ("run", "standalone")]
        assert said[0].replace("/run", "/standalone") == said[1]
    for form in ("hf", "orbax"):
        for name in ("run", "standalone"):
            call("convert", made / name, tmp_path / f"{name}-{form}", f"--to={form}")
        a, b = (convert.read(tmp_path / f"{name}-{form}") for name in ("run", "standalone"))
        assert a.base is None
        assert all(same(np.asarray(a.params[name]), np.asarray(b.params[name])) for name in b.params)
    assert (tmp_path / "run-hf" / "model.safetensors").read_bytes() == (
        tmp_path / "standalone-hf" / "model.safetensors"
    ).read_bytes()


def test_an_inspection_says_where_the_base_is(made):
    assert f"base        {made}/model: holds what never trained" in call("convert", made / "run").stdout
    assert "base  " not in call("convert", made / "standalone").stdout


def test_a_mesh_reads_its_parts_from_both(made):
    mesh = jaxgpt.make_mesh("fsdp=2,tensor=2", devices=jax.devices()[:4]) if jax.device_count() >= 4 else None
    if mesh is None:
        mesh = jaxgpt.make_mesh()
    a, b = (jaxgpt.named_params(jaxgpt.from_pretrained(made / name, mesh=mesh)) for name in ("run", "standalone"))
    assert all(same(np.asarray(a[name]), np.asarray(b[name])) for name in b)


# the base changes, goes, or moves


def test_a_base_that_changed_is_refused_by_every_reader(folder, tmp_path):
    flip(folder / "model" / "model.safetensors")
    says = "has changed since the run began"
    for command in (
        ["jaxgpt", "generate", folder / "run", "--max-new-tokens=1"],
        ["convert", folder / "run", tmp_path / "out", "--to=hf"],
        ["train", "--resume", folder / "run"],
    ):
        done = call(*command, check=False)
        assert done.returncode == 2, command
        assert says in done.stderr
        assert str(folder / "model") in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_trains_may_change_in_the_base(folder):
    """Only what the run leaves there matters: not the block that trained, nor the container."""
    model = jaxgpt.from_pretrained(folder / "model")
    params = jaxgpt.named_params(model)
    params |= {name: p + 1 for name, p in params.items() if name.startswith(LAST1)}
    shutil.rmtree(folder / "model")
    jaxgpt.save(jaxgpt.with_params(model, params), folder / "model")
    assert_same_run(folder / "run", folder / "standalone", 4)


def test_a_base_that_is_gone_is_refused_and_found_again_at_three_places(folder):
    whole = arrays(folder / "standalone", 4)
    (folder / "model").rename(folder / "elsewhere")
    generate = ["jaxgpt", "generate", folder / "run", "--max-new-tokens=1"]
    for command in (generate, ["train", "--resume", folder / "run"]):
        done = call(*command, check=False)
        assert done.returncode == 2, command
        assert f"{folder}/model: no such file or folder" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (folder / "run" / "base").symlink_to(folder / "elsewhere")
    shutil.rmtree(folder / "run" / "checkpoints" / "4")
    call("train", "--resume", folder / "run", samples=False)
    assert all(same(array, whole[name]) for name, array in arrays(folder / "run", 4).items())
    (folder / "run" / "base").unlink()
    (folder / "elsewhere").rename(folder / "model")
    folder.rename(folder.with_name("moved"))  # both of them
    shutil.rmtree(folder.with_name("moved") / "run" / "checkpoints" / "4")
    call("train", "--resume", folder.with_name("moved") / "run", samples=False)
    moved = arrays(folder.with_name("moved") / "run", 4)
    assert all(same(array, whole[name]) for name, array in moved.items())


def test_a_run_is_resumed_with_and_without_its_base(folder):
    for name in ("run", "standalone"):
        shutil.rmtree(folder / name / "checkpoints" / "4")
    call("train", "--resume", folder / "run", "--standalone", samples=False)
    assert len(held(folder / "run", 4, "params")) == len(held(folder / "standalone", 2, "params"))
    call("train", "--resume", folder / "standalone", samples=False)  # what it holds it goes on to hold
    assert_same_run(folder / "run", folder / "standalone", 4)


# what may be a base


def kinds(folder: Path) -> dict[str, list[str]]:
    model = jaxgpt.from_pretrained(folder / "model")
    jaxgpt.save(model, folder / "orbax", tokenizer=jaxgpt.load_tokenizer(folder / "model"))
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in convert.read(folder / "model").tensors.items()}
    torch.save({name.removeprefix("transformer."): p for name, p in tensors.items()}, folder / "plain.pt")
    return {
        "orbax": [f"--model={folder}/orbax"],
        "plain.pt": [
            f"--model={folder}/plain.pt", "--n-head=4", "--activation=gelu_new", f"--tokenizer={folder}/model",
        ],
    }  # fmt: skip


def test_a_base_of_any_kind_is_read_as_it_was(folder):
    for name, flags in kinds(folder).items():
        out = folder / f"run of {name}"
        call("train", *flags, "--freeze=last1", f"--out={out}", *FLAGS, samples=False)
        base = convert.read(out).base
        assert base.model == str(folder / name)
        assert base.told.get("n_head") == (4 if name == "plain.pt" else None)
        ours, whole = arrays(out, 4), arrays(folder / "standalone", 4)
        assert ours.keys() == whole.keys()
        for part in whole:  # dropout differs, which a plain file does not state
            if not part.removeprefix("params/").startswith(LAST1) and part.startswith("params/"):
                assert same(ours[part], whole[part]), part


def test_a_run_that_began_as_a_run_leans_on_the_first_base_alone(folder):
    """Checkpoints of a run are deleted as it goes on, or with it, and others must not need them."""
    out = folder / "second"
    call("train", f"--model={folder}/run", r"--freeze=regex:blocks\.0\.mlp.*", f"--out={out}", *FLAGS, samples=False)
    base = convert.read(out).base
    assert base.model == str(folder / "model")
    assert "blocks.0.attn.c_attn.kernel" in base.digests
    assert not [name for name in base.digests if name.startswith((*LAST1, "blocks.0.mlp"))]
    third = folder / "third"
    # the last block is the run's own
    call("train", f"--model={folder}/run", "--freeze=head", f"--out={third}", *FLAGS, samples=False)
    assert not [name for name in convert.read(third).base.digests if name.startswith(LAST1)]
    before = [arrays(run, 4) for run in (out, third)]
    shutil.rmtree(folder / "run")
    for run, then in zip((out, third), before, strict=True):
        assert all(same(array, then[name]) for name, array in arrays(run, 4).items())
    shutil.copytree(folder / "standalone", folder / "run")  # the whole run has no base at all
    fourth = folder / "fourth"
    call("train", f"--model={folder}/run", "--freeze=last1", f"--out={fourth}", *FLAGS, samples=False)
    assert convert.read(fourth).base is None


def test_parameters_that_are_changed_before_training_are_held(folder):
    call(
        "train", f"--model={folder}/model", "--freeze=last1", "--untie-head", "--add-tokens=<a>,<b>",
        f"--out={folder}/new", *FLAGS, samples=False,
    )  # fmt: skip
    own = held(folder / "new", 4, "params")
    assert {name for name in own if not name.startswith(LAST1)} == {"tok_emb.embedding", "lm_head.kernel"}
    assert arrays(folder / "new", 4)["params/tok_emb.embedding"].shape[0] == 4224


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (BUNDLED["tiny"], "tiny"),
        (Path("/c/hub/models--openai-community--gpt2/snapshots/607a30d7"), "openai-community/gpt2@607a30d7"),
        (Path("/c/hub/models--gpt2/snapshots/607a30d7"), "gpt2@607a30d7"),
        (Path("/c/hub/datasets--gpt2/snapshots/607a30d7"), "/c/hub/datasets--gpt2/snapshots/607a30d7"),
        (Path("/c/my gpt2.pt"), "/c/my gpt2.pt"),
    ],
)
def test_a_base_has_a_name_that_stays(path, model):
    told = {"n_head": 4, "adapter": "a", "dialect": None, "drop_heads": True}
    base = Base.of(path, told, Path("/c/runs/x"))
    assert base.model == model
    assert base.told == {"n_head": 4, "drop_heads": True}
    assert Base.from_json(json.loads(json.dumps(base.as_json()))) == base


def test_a_digest_tells_numbers_shapes_and_types_apart():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = [array.T, array.reshape(3, 2), array.astype(np.float64), array.view(np.int32), -array, array + 0.5]
    assert len({digest(other) for other in (array, *others)}) == 7
    assert digest(np.asfortranarray(array)) == digest(array) == digest(array.copy())
    assert digest(np.float32([0.0])) != digest(np.float32([-0.0]))
    assert digest(np.asarray(jax.numpy.ones(3, "bfloat16"))) != digest(np.ones(3, np.float16))


# bases that lie


@pytest.mark.parametrize(
    "other",
    [
        {"model": "../model"}, {"model": "~/model"}, {"model": ""}, {"model": 3}, {"model": "a\0b"},
        {"told": []}, {"told": {"n_head": "4"}}, {"told": {"drop_heads": 1}},
        {"digests": {"ln_f.scale": 3}}, {"digests": []}, {"digests": {"../x": "0" * 64}}, {"model": "gpt2@main"},
        {"model": "/dev/zero"}, {"model": "/proc/self/environ"}, {"beside": None},
        {"model": "FIFO"}, {"model": "RUN"}, {"model": "LOOP"},
    ],
    ids=str,
)  # fmt: skip
def test_a_base_that_lies_is_refused_in_one_line(folder, other):
    if other == {"model": "FIFO"}:
        os.mkfifo(folder / "fifo.pt")
        other = {"model": str(folder / "fifo.pt")}
    if other == {"model": "RUN"}:
        other = {"model": str(folder / "run")}  # itself
    if other == {"model": "LOOP"}:
        (folder / "loop").symlink_to(folder / "loop")
        other = {"model": str(folder / "loop"), "beside": ""}
    tell(folder / "run" / "checkpoints" / "4", **other)
    with pytest.raises(InputError) as refused:
        convert.read(folder / "run").params["tok_emb.embedding"].__array__()
    assert len(str(refused.value).splitlines()) == 1
    assert str(folder / "run") in str(refused.value) or str(folder / "model") in str(refused.value)


@pytest.mark.parametrize("digests", [{}, {"tok_emb.embedding": "0" * 64}])
def test_a_base_with_too_little_is_refused_with_all_that_is_missing(folder, digests):
    tell(folder / "run" / "checkpoints" / "4", digests=digests)
    with pytest.raises(InputError, match=r"missing: blocks\.0\.attn\.c_attn\.kernel"):
        convert.read(folder / "run")


def test_numbers_of_a_base_are_used_only_by_digest(folder):
    """Whoever sends a run can't learn what is in a file of the reader's by naming it."""
    secret = jaxgpt.from_pretrained(folder / "model")
    params = {name: p + 1 for name, p in jaxgpt.named_params(secret).items()}
    jaxgpt.save(jaxgpt.with_params(secret, params), folder / "secret")
    tell(folder / "run" / "checkpoints" / "4", model=str(folder / "secret"))
    with pytest.raises(InputError, match="has changed since the run began"):
        jaxgpt.from_pretrained(folder / "run")
    with pytest.raises(InputError, match="has changed since the run began"):
        convert.write(folder / "out", convert.read(folder / "run").params, replace(secret.config), to="hf")
