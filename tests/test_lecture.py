"""Karpathy's lecture: a module for each head, and an output head with a bias, from its file to its file again."""

import re

import jax
import numpy as np
import pytest
import torch
from conftest import DIMS, call
from test_dialects import TOKENS, assert_same_logits, logits_of
from torch_gpts import Lecture

import jaxgpt
from jaxgpt import convert, freeze
from jaxgpt.convert.mapping import same
from jaxgpt.convert.propose import propose
from jaxgpt.params import named_params

V, D, N, L = (DIMS[name] for name in ("vocab_size", "n_embd", "n_head", "n_layer"))

TABLE = """
title = "the lecture"
rows = [
    ["tok_emb.embedding", "token_embedding_table.weight", "V D -> V D"],
    ["pos_emb.embedding", "position_embedding_table.weight", "T D -> T D"],
    ["blocks.{i}.ln_1.scale", "blocks.{i}.ln1.weight", "D -> D"],
    ["blocks.{i}.ln_1.bias", "blocks.{i}.ln1.bias", "D -> D"],
    ["blocks.{i}.attn.c_attn.kernel", ["blocks.{i}.sa.heads.{j}.query.weight", "blocks.{i}.sa.heads.{j}.key.weight",
        "blocks.{i}.sa.heads.{j}.value.weight"], "(C N) H D -> D C N H"],
    ["blocks.{i}.attn.c_attn.bias", ["blocks.{i}.sa.heads.{j}.query.bias", "blocks.{i}.sa.heads.{j}.key.bias",
        "blocks.{i}.sa.heads.{j}.value.bias"], "(C N) H -> C N H"],
    ["blocks.{i}.attn.c_proj.kernel", "blocks.{i}.sa.proj.weight", "D (N H) -> N H D"],
    ["blocks.{i}.attn.c_proj.bias", "blocks.{i}.sa.proj.bias", "D -> D"],
    ["blocks.{i}.ln_2.scale", "blocks.{i}.ln2.weight", "D -> D"],
    ["blocks.{i}.ln_2.bias", "blocks.{i}.ln2.bias", "D -> D"],
    ["blocks.{i}.mlp.fc1.kernel", "blocks.{i}.ffwd.net.0.weight", "F D -> D F"],
    ["blocks.{i}.mlp.fc1.bias", "blocks.{i}.ffwd.net.0.bias", "F -> F"],
    ["blocks.{i}.mlp.fc2.kernel", "blocks.{i}.ffwd.net.2.weight", "D F -> F D"],
    ["blocks.{i}.mlp.fc2.bias", "blocks.{i}.ffwd.net.2.bias", "D -> D"],
    ["ln_f.scale", "ln_f.weight", "D -> D"],
    ["ln_f.bias", "ln_f.bias", "D -> D"],
    ["lm_head.kernel", "lm_head.weight", "V D -> D V"],
    ["lm_head.bias", "lm_head.bias", "V -> V"],
]
buffers = [["blocks.{i}.sa.heads.{j}.tril", "T T"]]
fixed = {activation_function = "relu"}
"""


@pytest.fixture(scope="module")
def lecture(tmp_path_factory):
    file, model = tmp_path_factory.mktemp("lecture") / "model.pt", Lecture()
    torch.save(model.state_dict(), file)
    return file, model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_its_logits_without_a_word_about_it(tmp_path, bias, wrapper):
    model = Lecture(bias)
    torch.save({wrapper + name: tensor for name, tensor in model.state_dict().items()}, tmp_path / "model.pt")
    ours = assert_same_logits(tmp_path / "model.pt", logits_of(model))
    assert (ours.config.n_head, ours.config.activation_function, ours.config.head_bias) == (N, "relu", True)
    checkpoint = convert.read(tmp_path / "model.pt")
    assert (checkpoint.dialect.name, len(checkpoint.buffers)) == ("lecture", L * N)


def test_the_inspection_says_how_the_scores_are_divided(lecture):
    shown = call("convert", lecture[0]).stdout
    assert "blocks.1.sa.heads.2.value.weight" in shown
    assert "relu is assumed" in shown
    assert "divided by sqrt(head size)" in shown
    absent = [line for line in shown.splitlines() if "blocks.0.attn.c_attn.bias" in line]
    assert [line.split() for line in absent] == [["not", "there", "zeros", "blocks.0.attn.c_attn.bias"]]


def test_the_advice_for_the_code_of_the_video(tmp_path):
    model = Lecture(size_in_scale=D)  # C**-0.5
    state = dict(model.state_dict())
    for name in state:
        if ".query." in name:
            state[name] = state[name] * (D // N / D) ** 0.5
    torch.save(state, tmp_path / "model.pt")
    assert_same_logits(tmp_path / "model.pt", logits_of(model))


def test_to_orbax_and_to_its_own_form_again(lecture, tmp_path):
    file, model = lecture
    (tmp_path / "my.toml").write_text(TABLE)
    call("convert", file, tmp_path / "orbax")
    assert_same_logits(tmp_path / "orbax", logits_of(model))
    call("convert", tmp_path / "orbax", tmp_path / "again.pt", f"--to={tmp_path / 'my.toml'}")
    again = Lecture(bias=True)
    left = again.load_state_dict(torch.load(tmp_path / "again.pt"), strict=False)
    assert {name.rpartition(".")[2] for name in left.missing_keys} == {"tril"}
    assert not left.unexpected_keys
    assert (logits_of(again) == logits_of(model)).all()
    with pytest.raises(convert.InputError, match="its output head has a bias"):
        jaxgpt.save_pretrained(jaxgpt.from_pretrained(file), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_draft_of_the_table_finds_the_heads(lecture, tmp_path):
    draft = propose(lecture[1].state_dict())
    assert "n_head" not in draft  # the names tell
    assert re.findall(r"lm_head\.\w+", draft) == ["lm_head.kernel", "lm_head.weight", "lm_head.bias", "lm_head.bias"]
    for is_left, layout in ((r"sa\.proj", "D (N H) -> N H D"), ("activation_function = ", "relu")):
        draft = re.sub(f"({is_left}.*?)[?]", lambda found, layout=layout: found[1] + layout, draft)
    (tmp_path / "draft.toml").write_text(draft)
    ours = assert_same_logits(lecture[0], logits_of(lecture[1]), dialect=str(tmp_path / "draft.toml"))
    assert ours.config.n_head == N


def test_heads_that_contradict_are_refused(lecture, tmp_path):
    file, model = lecture
    with pytest.raises(convert.InputError, match=f"n_head=2 contradicts the checkpoint, which says {N}"):
        convert.read(file, n_head=2)
    state = dict(model.state_dict())
    del state["blocks.1.sa.heads.2.value.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(convert.InputError, match=r"missing: blocks\.1\.sa\.heads\.2\.value\.weight"):
        convert.read(tmp_path / "less.pt")
    many = {f"blocks.0.sa.heads.{j}.query.weight": torch.zeros(1, D) for j in range(200)}
    torch.save(state | many | {"blocks.9000.ffwd.net.0.weight": torch.zeros(4 * D, D)}, tmp_path / "many.pt")
    with pytest.raises(
        convert.InputError,
        match="the first block has tensors for 200 heads; 9001 such blocks would need more tensors than the",
    ):
        convert.read(tmp_path / "many.pt")


def test_the_bias_is_a_part_of_the_head(lecture):
    model = jaxgpt.from_pretrained(lecture[0])
    trains, _ = freeze.parse("head", model.config).partition(named_params(model))
    assert trains.keys() == {"lm_head.kernel", "lm_head.bias"}
    larger = jaxgpt.resize_vocab(model, V + 3, pad_multiple=8)
    assert named_params(larger)["lm_head.bias"].shape == (104,)
    assert same(np.asarray(larger(TOKENS))[..., :V], np.asarray(model(TOKENS)))
    (counts,) = [one for one in jaxgpt.check(model, None).checks if one.name == "counts"]
    assert counts.ok, counts


def test_on_a_mesh_it_computes_the_same(lecture):
    mesh = jaxgpt.make_mesh("data=1", devices=jax.devices()[:1])
    sharded = jaxgpt.from_pretrained(lecture[0], mesh=mesh)
    assert np.abs(np.asarray(sharded(TOKENS)) - logits_of(lecture[1])).max() <= 1e-5
