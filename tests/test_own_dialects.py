"""Tables for checkpoints that no built-in dialect describes: brought by the user, drafted from names and shapes."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import DIMS, call
from test_dialects import assert_same_logits, logits_of
from torch import nn
from torch.nn import functional as F
from torch_gpts import Mixture, attend, tanh_gelu

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.dialects.user_table import read_dialect
from jaxgpt.convert.propose import propose

V, T, D, N, L = (DIMS[name] for name in ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer"))


class ScaleShift(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(D))

    def forward(self, x):
        return F.layer_norm(x, (D,), self.scale, self.shift, 1e-5)


class RaschkaAttention(nn.Module):
    def __init__(self, qkv_bias: bool):
        super().__init__()
        self.W_query, self.W_key, self.W_value = (nn.Linear(D, D, qkv_bias) for _ in range(3))
        self.out_proj = nn.Linear(D, D)
        self.register_buffer("mask", torch.triu(torch.ones(T, T), diagonal=1))

    def forward(self, x):
        return self.out_proj(attend(self.W_query(x), self.W_key(x), self.W_value(x)))


class RaschkaBlock(nn.Module):
    def __init__(self, qkv_bias: bool):
        super().__init__()
        self.att, self.norm1, self.norm2 = RaschkaAttention(qkv_bias), ScaleShift(), ScaleShift()
        self.ff = nn.Module()
        self.ff.layers = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU("tanh"), nn.Linear(4 * D, D))

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff.layers(self.norm2(x))


class Raschka(nn.Module):
    """As in *Build a Large Language Model (From Scratch)*."""

    def __init__(self, qkv_bias: bool):
        super().__init__()
        torch.manual_seed(3)
        self.tok_emb, self.pos_emb = nn.Embedding(V, D), nn.Embedding(T, D)
        self.trf_blocks = nn.Sequential(*(RaschkaBlock(qkv_bias) for _ in range(L)))
        self.final_norm, self.out_head = ScaleShift(), nn.Linear(D, V, bias=False)

    def forward(self, tokens):
        x = self.tok_emb(tokens) + self.pos_emb(torch.arange(tokens.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_book_s_gpt(tmp_path, qkv_bias, whole):
    model, file = Raschka(qkv_bias), tmp_path / "model.pth"
    state = model.state_dict()
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}} if whole else state, file)
    assert_same_logits(file, logits_of(model), n_head=N)
    checkpoint = convert.read(file, n_head=N)
    assert (checkpoint.dialect.name, len(checkpoint.buffers)) == ("raschka", L)
    assert np.asarray(checkpoint.params["blocks.1.attn.c_attn.bias"]).any() == qkv_bias
    assert "trf_blocks.1.att.W_value.weight" in call("convert", file, f"--n-head={N}").stdout
    call("convert", file, tmp_path / "hf", "--to=hf", f"--n-head={N}")
    assert_same_logits(tmp_path / "hf", logits_of(model))


# a table of the user's own


class Odd(nn.Module):
    """Names that nobody else has: q, k and v apart or together, kernels (out, in), a tied head or none."""

    def __init__(self, joint: bool, tied: bool):
        super().__init__()
        torch.manual_seed(5)
        self.joint, self.tied = joint, tied
        self.embed, self.where = nn.Embedding(V, D), nn.Embedding(T, D)
        self.stack = nn.ModuleList()
        for _ in range(L):
            layer = nn.Module()
            layer.ln1, layer.ln2 = nn.LayerNorm(D), nn.LayerNorm(D)
            if joint:
                layer.qkv = nn.Linear(D, 3 * D)
            else:
                layer.q, layer.k, layer.v = (nn.Linear(D, D) for _ in range(3))
            layer.wo, layer.up, layer.down = nn.Linear(D, D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
            layer.register_buffer("causal", torch.tril(torch.ones(T, T)).view(1, 1, T, T))
            self.stack.append(layer)
        self.last = nn.LayerNorm(D)
        if not tied:
            self.unembed = nn.Linear(D, V, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.where(torch.arange(tokens.shape[1]))
        for layer in self.stack:
            y = layer.ln1(x)
            qkv = layer.qkv(y).split(D, 2) if self.joint else (layer.q(y), layer.k(y), layer.v(y))
            x = x + layer.wo(attend(*qkv))
            x = x + layer.down(tanh_gelu(layer.up(layer.ln2(x))))
        x = self.last(x)
        return x @ self.embed.weight.T if self.tied else self.unembed(x)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_draft_is_completed_and_reads_and_writes_like_a_built_in_dialect(tmp_path, joint, tied):
    model, file, table = Odd(joint, tied), tmp_path / "odd.pt", tmp_path / "odd.toml"
    state = {name.replace("where.", "pos."): tensor for name, tensor in model.state_dict().items()}
    torch.save(state, file)
    refused = call("convert", file, check=False)
    assert "--propose=my.toml drafts" in " ".join(refused.stderr.split())
    said = call("convert", file, f"--propose={table}").stdout
    draft = table.read_text()
    assert f"{draft.count('?')} gaps" in " ".join(said.split())
    # of the rows only the square kernels are open, and the heads and the activation
    open_rows = re.findall(r'^    \["([^"]+)", .*"\?"', draft, re.M)
    assert open_rows == [*([] if joint else ["blocks.{i}.attn.c_attn.kernel"]), "blocks.{i}.attn.c_proj.kernel"]
    assert 'n_head = "?"' in draft
    assert "not placed" not in draft
    with pytest.raises(jaxgpt.InputError, match="is undecided"):
        convert.read(file, dialect=str(table))
    kernels = {"c_attn": "C (N H) D -> D C N H", "c_proj": "D (N H) -> N H D"}
    lines = [
        re.sub(r'"\?"(?=\])', json.dumps(kernels["c_attn" if "c_attn" in line else "c_proj"]), line)
        for line in draft.splitlines()
    ]
    whole = "\n".join(lines).replace('activation_function = "?"', 'activation_function = "gelu_new"')
    table.write_text(whole.replace('n_head = "?"', f"n_head = {N}"))
    ours = assert_same_logits(file, logits_of(model), dialect=str(table))
    assert ours.config.tie_word_embeddings == tied
    call("convert", file, tmp_path / "orbax", f"--dialect={table}")
    call("convert", tmp_path / "orbax", tmp_path / "back.pt", f"--to={table}")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    expected = {name: tensor for name, tensor in state.items() if "causal" not in name}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    again = call("convert", file, f"--propose={table}", check=False)
    assert "--force replaces it" in again.stderr


@pytest.mark.parametrize("attention", ["query", "joint"])
@pytest.mark.parametrize("mlp", ["mlp", "fc", "numbers"])
@pytest.mark.parametrize(
    ("head", "pos", "norms"),
    [
        ("head", "parameter", ("ln1", "ln2")),
        ("lm_head", "parameter", ("ln_1", "ln_2")),
        ("head", "table", ("ln_1", "ln_2")),
    ],
)  # fmt: skip
def test_a_mixture_of_known_names_is_read(tmp_path, attention, mlp, head, pos, norms):
    """As tok_emb, pos_emb, blocks, mlp.c_fc and head, with masks called mask."""
    model = Mixture(attention, mlp, head, pos, norms)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert_same_logits(tmp_path / "model.pt", logits_of(model), n_head=N, activation="gelu")
    checkpoint = convert.read(tmp_path / "model.pt", n_head=N, activation="gelu")
    is_old_mingpt = (attention, mlp, head, pos, norms) == ("query", "numbers", "head", "parameter", ("ln1", "ln2"))
    assert checkpoint.dialect.name == ("old-mingpt" if is_old_mingpt else "mixture")
    assert len(checkpoint.buffers) == L
    state = dict(model.state_dict())
    state["blocks.1.attn.proj.weight" if attention == "query" else "blocks.1.attn.c_proj.weight"] = torch.ones(D, D + 1)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(jaxgpt.InputError, match=r"shape: blocks\.1\.attn\.\w+\.weight is"):
        convert.read(tmp_path / "model.pt", n_head=N, activation="gelu")


GOOD = """
rows = [
  ["tok_emb.embedding", "e", "V D -> V D"], ["pos_emb.embedding", "p", "T D -> T D"],
  ["blocks.{i}.ln_1.scale", "{i}.a", "D -> D"], ["blocks.{i}.attn.c_attn.kernel", "{i}.b", "D (C N H) -> D C N H"],
  ["blocks.{i}.attn.c_proj.kernel", "{i}.c", "(N H) D -> N H D"], ["blocks.{i}.ln_2.scale", "{i}.d", "D -> D"],
  ["blocks.{i}.mlp.fc1.kernel", "{i}.e", "D F -> D F"], ["blocks.{i}.mlp.fc2.kernel", "{i}.f", "F D -> F D"],
  ["ln_f.scale", "n", "D -> D"],
]
"""


def test_a_table_without_biases_or_a_head_is_one(tmp_path):
    (tmp_path / "good.toml").write_text(GOOD)
    assert len(read_dialect(tmp_path / "good.toml").rows) == 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"e", "V D', '"?", "V D', "'\\?' is undecided: replace it"),
        ("D (C N H) -> D C N H", "D (N C H) -> D C H N", "must end in '-> D C N H'"),
        ("D (C N H) -> D C N H", "D (C N) -> D C N H", "must have the same letters"),
        ("D F -> D F", "D F; import os -> D F", "is not a layout"),
        ('"{i}.a"', '"a"', "must be in both names or in none"),
        ('"{i}.a"', '"{i}.b"', "twice in rows"),
        ('["ln_f.scale", "n", "D -> D"],', "", "no row for ln_f.scale"),
        ("ln_f.scale", "ln_g.scale", "is not a parameter name of jaxgpt"),
        ('"D -> D"],\n]', '"D -> D", "maybe"],\n]', "a row is"),
        ("rows = [", "rows = 3\nmore = [", "unknown keys: more"),
        ("rows = [", "rows = [", None),
        ("\n]", "\n]\nfixed = {vocab_size = 5}", "fixed: vocab_size: not among"),
        ("\n]", '\n]\nfixed = {n_head = "?"}', "n_head is undecided"),
        ("\n]", '\n]\nbuffers = [["m", "T; T"]]', "a buffer is"),
        ("\n]", "\n]\nrows = []", "Cannot overwrite"),
        ('"p"', "[" * 3000, "that can be read: maximum"),
        ('"p"', '["p", "q"]', "must begin with C"),
        ('"n", "D -> D"],', '"n", "D -> D"], ["ln_f.bias", "nb", "D -> D"],', "no row for blocks"),
        (GOOD, "x" * 1_000_001, "more than 1,000,000 bytes"),
        (GOOD, "\udc80", "that can be read: 'utf-8'"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path, old, new, message):
    (tmp_path / "bad.toml").write_bytes(GOOD.replace(old, new, 1).encode("utf-8", "surrogateescape"))
    if message is None:
        read_dialect(tmp_path / "bad.toml")
        return
    with pytest.raises(jaxgpt.InputError, match=message) as refused:
        read_dialect(tmp_path / "bad.toml")
    assert str(refused.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": (3, 4)}, "no names with the number of a block"),
        ({"h.0.x": (3, 4), "h.1.x": (3, 4)}, "no LayerNorm"),
        ({"h.0.ln_1.weight": (4,), "h.0.b": (4,), "wte.weight": (9, 4)}, "expected exactly one position embedding"),
        ({"h.0.ln_1.weight": (4,), "a": (9, 4), "b": (9, 4), "pos": (5, 4)}, "expected exactly one token embedding"),
    ],
)
def test_what_is_no_gpt_gets_no_draft(tensors, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        propose({name: np.zeros(shape, np.float32) for name, shape in tensors.items()})


def test_hostile_names_make_no_lines_of_a_draft(tmp_path):
    state = Odd(True, True).state_dict()
    evil = 'x"]]\nfixed = {n_head = 1}\n# \x1b[31m'
    state = {name.replace("where.", "pos."): tensor for name, tensor in state.items()} | {evil: torch.zeros(3)}
    torch.save(state, tmp_path / "m.pt")
    call("convert", tmp_path / "m.pt", f"--propose={tmp_path}/m.toml")
    text = (tmp_path / "m.toml").read_text()
    assert "\x1b" not in text
    assert "\nfixed = {" not in text
