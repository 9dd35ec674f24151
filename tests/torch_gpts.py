"""GPTs in PyTorch's own modules, one for each layout in the wild, with random weights that all matter."""

import math

import torch
from conftest import DIMS
from torch import nn
from torch.nn import functional as F

V, T, D, N, L = (DIMS[name] for name in ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer"))


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


class Norm(nn.Module):
    """A LayerNorm that can do without a bias, as nanoGPT's."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))
        self.bias = nn.Parameter(torch.zeros(D)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, (D,), self.weight, self.bias, 1e-5)


def attend(q, k, v):
    """Causal attention over (B, T, D) queries, keys and values, with the mask written out."""
    B, t, _ = q.shape
    q, k, v = (x.view(B, t, N, D // N).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(D // N)
    scores = scores.masked_fill(torch.tril(torch.ones(t, t)) == 0, float("-inf"))
    return (F.softmax(scores, -1) @ v).transpose(1, 2).reshape(B, t, D)


class Attention(nn.Module):
    def __init__(self, bias: bool, masks: bool):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(D, 3 * D, bias), nn.Linear(D, D, bias)
        if masks:
            self.register_buffer("bias", torch.tril(torch.ones(T, T)).view(1, 1, T, T))

    def forward(self, x):
        return self.c_proj(attend(*self.c_attn(x).split(D, 2)))


class SplitAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.query, self.value, self.proj = (nn.Linear(D, D) for _ in range(4))
        self.register_buffer("mask", torch.tril(torch.ones(T, T)).view(1, 1, T, T))

    def forward(self, x):
        return self.proj(attend(self.query(x), self.key(x), self.value(x)))


class MLP(nn.Module):
    def __init__(self, names: tuple[str, str], activation, bias: bool):
        super().__init__()
        self.names, self.activation = names, activation
        setattr(self, names[0], nn.Linear(D, 4 * D, bias))
        setattr(self, names[1], nn.Linear(4 * D, D, bias))

    def forward(self, x):
        return getattr(self, self.names[1])(self.activation(getattr(self, self.names[0])(x)))


class Block(nn.Module):
    def __init__(self, attn, mlp, bias: bool = True, norms: tuple[str, str] = ("ln_1", "ln_2")):
        super().__init__()
        self.norms = norms
        setattr(self, norms[0], Norm(bias))
        self.attn = attn
        setattr(self, norms[1], Norm(bias))
        self.mlp = mlp

    def forward(self, x):
        x = x + self.attn(getattr(self, self.norms[0])(x))
        return x + self.mlp(getattr(self, self.norms[1])(x))


class HuggingFaceNames(nn.Module):
    """nanoGPT (tied, exact GELU, biases or none) and minGPT (untied, tanh GELU, masks as buffers)."""

    def __init__(self, tied: bool, activation, bias: bool = True, masks: bool = False):
        super().__init__()
        names = ("c_fc", "c_proj")
        blocks = [Block(Attention(bias, masks), MLP(names, activation, bias), bias) for _ in range(L)]
        parts = {"wte": nn.Embedding(V, D), "wpe": nn.Embedding(T, D), "h": nn.ModuleList(blocks), "ln_f": Norm(bias)}
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(D, V, bias=False)
        if tied:
            self.transformer.wte.weight = self.lm_head.weight
        randomise(self)

    def forward(self, tokens):
        x = self.transformer.wte(tokens) + self.transformer.wpe(torch.arange(tokens.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Lesson(nn.Module):
    """The lesson's GPT."""

    def __init__(self, tied: bool, activation):
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(V, D), nn.Embedding(T, D)
        names = ("fc1", "fc2")
        self.blocks = nn.ModuleList([Block(Attention(True, False), MLP(names, activation, True)) for _ in range(L)])
        self.ln_f = Norm()
        self.lm_head = nn.Linear(D, V, bias=False)
        if tied:
            self.lm_head.weight = self.tok_emb.weight
        randomise(self)

    def forward(self, tokens):
        x = self.tok_emb(tokens) + self.pos_emb(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class OldMinGPT(nn.Module):
    """minGPT of 2020."""

    def __init__(self):
        super().__init__()
        self.tok_emb = nn.Embedding(V, D)
        self.pos_emb = nn.Parameter(torch.zeros(1, T, D))
        norms = ("ln1", "ln2")
        mlps = [nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D), nn.Dropout(0)) for _ in range(L)]
        self.blocks = nn.Sequential(*(Block(SplitAttention(), mlp, norms=norms) for mlp in mlps))
        self.ln_f = Norm()
        self.head = nn.Linear(D, V, bias=False)
        randomise(self)

    def forward(self, tokens):
        x = self.tok_emb(tokens) + self.pos_emb[:, : tokens.shape[1]]
        return self.head(self.ln_f(self.blocks(x)))


def randomise(model: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1 if p.ndim == 1 and name.endswith("weight") else 0, 0.15 if p.ndim > 1 else 0.2)


class LectureHead(nn.Module):
    def __init__(self, bias: bool, size_in_scale: int):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(D, D // N, bias) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))
        self.size_in_scale = size_in_scale

    def forward(self, x):
        t = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * self.size_in_scale**-0.5
        return F.softmax(scores.masked_fill(self.tril[:t, :t] == 0, float("-inf")), -1) @ self.value(x)


class LectureAttention(nn.Module):
    def __init__(self, *told):
        super().__init__()
        self.heads, self.proj = nn.ModuleList([LectureHead(*told) for _ in range(N)]), nn.Linear(D, D)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], -1))


class LectureBlock(nn.Module):
    def __init__(self, *told):
        super().__init__()
        self.sa, self.ffwd, self.ln1, self.ln2 = LectureAttention(*told), nn.Module(), Norm(), Norm()
        self.ffwd.net = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D), nn.Dropout(0))

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd.net(self.ln2(x))


class Lecture(nn.Module):
    """Karpathy's `gpt.py`; its attention scores were at first divided by sqrt(D)."""

    def __init__(self, bias: bool = False, size_in_scale: int = D // N):
        super().__init__()
        self.token_embedding_table, self.position_embedding_table = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(*(LectureBlock(bias, size_in_scale) for _ in range(L)))
        self.ln_f, self.lm_head = Norm(), nn.Linear(D, V)
        randomise(self)

    def forward(self, tokens):
        x = self.token_embedding_table(tokens) + self.position_embedding_table(torch.arange(tokens.shape[1]))
        return self.lm_head(self.ln_f(self.blocks(x)))


class Mixture(nn.Module):
    """Parts that are named as in one small GPT or another."""

    def __init__(self, attention: str, mlp: str, head: str, pos: str = "parameter", norms: tuple = ("ln1", "ln2")):
        super().__init__()
        self.tok_emb = nn.Embedding(V, D)
        self.pos_emb = nn.Parameter(torch.zeros(1, T, D)) if pos == "parameter" else nn.Embedding(T, D)
        names = {"mlp": ("c_fc", "c_proj"), "fc": ("fc1", "fc2")}.get(mlp, ())
        self.blocks = nn.ModuleList(
            Block(
                SplitAttention() if attention == "query" else Attention(True, True),
                MLP(names, F.gelu, True)
                if names
                else nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D)),
                norms=norms,
            )
            for _ in range(L)
        )
        self.ln_f = Norm()
        setattr(self, head, nn.Linear(D, V, bias=False))
        self.head_name = head
        randomise(self)

    def forward(self, tokens):
        t = tokens.shape[1]
        x = self.tok_emb(tokens)
        x = x + (self.pos_emb[:, :t] if isinstance(self.pos_emb, nn.Parameter) else self.pos_emb(torch.arange(t)))
        for block in self.blocks:
            x = block(x)
        return getattr(self, self.head_name)(self.ln_f(x))
