"""A draft of a dialect's table for a checkpoint that none describes, from its names and shapes.

What these don't decide is left open, and nothing is guessed.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxgpt.convert.dialect import HEAD, HEAD_BIAS
from jaxgpt.convert.dialects.jaxgpt import OF_GPT2
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import Shape

WORDS = {
    "blocks.{i}.ln_1": ("ln_1", "ln1", "norm1", "norm_1", "layernorm1", "attn_norm", "input_layernorm", "ln_attn"),
    "blocks.{i}.ln_2": ("ln_2", "ln2", "norm2", "norm_2", "layernorm2", "mlp_norm", "ffn_norm", "ln_mlp"),
    "blocks.{i}.attn.c_attn": ("c_attn", "qkv", "in_proj", "query_key_value", "attn_qkv"),
    "blocks.{i}.attn.c_proj": ("proj", "c_proj", "out_proj", "o_proj", "wo", "dense", "projection"),
    "blocks.{i}.mlp.fc1": ("fc1", "c_fc", "0", "fc_in", "w1", "up", "linear1", "lin1", "dense_h_to_4h", "fc"),
    "blocks.{i}.mlp.fc2": ("fc2", "c_proj", "2", "fc_out", "w2", "down", "linear2", "lin2", "dense_4h_to_h", "proj"),
}
"""Words by which modules of a block are called; shapes decide besides."""

QKV = (
    ("query", "q", "w_query", "q_proj", "wq"),
    ("key", "k", "w_key", "k_proj", "wk"),
    ("value", "v", "w_value", "v_proj", "wv"),
)
"""Words for query, key and value apart."""

OPEN = "?"


@dataclass(frozen=True)
class Kind:
    """Tensors of one name but for the number of their block."""

    name: str
    """With `{i}` for the number of the block, and `{j}` for that of an attention head."""
    shape: Shape

    @property
    def words(self) -> list[str]:
        return self.name.lower().split(".")

    @property
    def is_bias(self) -> bool:
        return self.words[-1] in ("bias", "shift", "beta", "b")


def propose(tensors: Mapping[str, Any]) -> str:
    """Return a draft in TOML. `?` stands where neither a name nor a shape decides, and is refused until it is replaced.

    Raises:
        InputError: there are no blocks, or no token and position embedding, in it.
    """
    kinds = _kinds(tensors)
    blocks, rest = [kind for kind in kinds if "{i}" in kind.name], [kind for kind in kinds if "{i}" not in kind.name]
    D = Counter(kind.shape[0] for kind in blocks if len(kind.shape) == 1).most_common(1)[0][0]
    left = {kind.name: kind for kind in kinds}
    rows: dict[str, tuple[str | list[str], str, str]] = {}

    def take(ours: str, kind: Kind | list[Kind], layout: str, note: str = "") -> None:
        several = kind if isinstance(kind, list) else [kind]
        for one in several:
            left.pop(one.name, None)
        rows[ours] = ([one.name for one in several] if isinstance(kind, list) else several[0].name, layout, note)

    _place_embeddings(rest, D, take)
    for scale in (kind for kind in rest if kind.shape == (D,) and not kind.is_bias):
        take("ln_f.scale", scale, "D -> D")
    for bias in (kind for kind in rest if kind.shape == (D,) and kind.is_bias):
        take("ln_f.bias", bias, "D -> D")
    linear = _place_blocks(blocks, D, take)
    return _written(rows, left, linear, tensors)


def _kinds(tensors: Mapping[str, Any]) -> list[Kind]:
    """Return the kinds of tensors: those of blocks once, by the number that counts up in most of the names."""
    numbered = Counter(re.sub(r"\.\d+\..*", "", name) for name in tensors if re.search(r"\.\d+\.", name))
    if not numbered:
        raise InputError("no names with the number of a block in them, such as blocks.0.ln_1.weight: not a GPT?")
    prefix = numbered.most_common(1)[0][0]
    found: dict[str, Kind] = {}
    for name, array in tensors.items():
        general = re.sub(rf"^{re.escape(prefix)}\.\d+\.", lambda _: f"{prefix}.{{i}}.", name)
        if "{i}" in general:  # a module for each head
            general = re.sub(r"\b(heads?)\.\d+\.", r"\1.{j}.", general)
        found.setdefault(general, Kind(general, tuple(array.shape)))
    if not any(len(kind.shape) == 1 for kind in found.values() if "{i}" in kind.name):
        raise InputError(f"the blocks {prefix}.N have no LayerNorm: not a GPT?")
    return list(found.values())


def _place_embeddings(rest: list[Kind], D: int, take: Any) -> None:
    """Find the token embedding, the position embedding and the head among the tensors outside the blocks."""
    tables = [kind for kind in rest if len(kind.shape) in (2, 3) and kind.shape[-1] == D and len(kind.shape) < 4]
    heads = [kind for kind in tables if re.search(r"head|unembed|out\b|output|decoder|classifier", kind.name.lower())]
    tables = [kind for kind in tables if kind not in heads]
    positions = [kind for kind in tables if re.search(r"pos|wpe", kind.name.lower())]
    tokens = [kind for kind in tables if kind not in positions]
    for what, kinds in (("token", tokens), ("position", positions)):
        if len(kinds) != 1:
            listed = ", ".join(f"{kind.name} {kind.shape}" for kind in kinds or tables) or "none"
            raise InputError(f"expected exactly one {what} embedding of width {D}, found: {listed}")
    (tok,), (pos,) = tokens, positions
    take("tok_emb.embedding", tok, "V D -> V D")
    take("pos_emb.embedding", pos, "T D -> T D" if len(pos.shape) == 2 else "1 T D -> T D")
    for head in heads[:1]:
        take(HEAD, head, "V D -> D V")
        _take_bias(rest, head, HEAD_BIAS, "V -> V", take)


def _place_blocks(blocks: list[Kind], D: int, take: Any) -> bool | None:
    """Place the tensors of a block, and return whether kernels are (out, in), or None if no shape says so."""
    kernels = [kind for kind in blocks if len(kind.shape) == 2 and D in kind.shape]
    wide = [kind for kind in kernels if kind.shape[0] != kind.shape[1]]
    mlp = [kind for kind in wide if 3 * D not in kind.shape or not _is_called(kind, "blocks.{i}.attn.c_attn")]
    linear = next((kind.shape[1] == D for kind in wide if _is_called(kind, "blocks.{i}.attn.c_attn")), None)
    first = next((kind for kind in mlp if _is_called(kind, "blocks.{i}.mlp.fc1")), None)
    if linear is None and first is not None:
        linear = first.shape[1] == D
    second = next((kind for kind in mlp if kind is not first and _is_called(kind, "blocks.{i}.mlp.fc2")), None)
    if first is not None:
        take("blocks.{i}.mlp.fc1.kernel", first, "F D -> D F" if linear else "D F -> D F")
        _take_bias(blocks, first, "blocks.{i}.mlp.fc1.bias", "F -> F", take)
    if second is not None:
        take("blocks.{i}.mlp.fc2.kernel", second, "D F -> F D" if linear else "F D -> F D")
        _take_bias(blocks, second, "blocks.{i}.mlp.fc2.bias", "D -> D", take)
    joint = next((kind for kind in wide if 3 * D in kind.shape and _is_called(kind, "blocks.{i}.attn.c_attn")), None)
    square = [kind for kind in kernels if kind.shape == (D, D)]
    apart = [next((kind for kind in square if set(kind.words) & {*words}), None) for words in QKV]
    heads = [kind for kind in wide if "{j}" in kind.words]
    by_head = [next((kind for kind in heads if set(kind.words) & {*words}), None) for words in QKV]
    others = "nn.Linear" if linear else "Conv1D"
    undecided = f"square, so either fits: nn.Linear is {{}}, Conv1D {{}}; the others here are {others}"
    if joint is not None:
        take("blocks.{i}.attn.c_attn.kernel", joint, "(C N H) D -> D C N H" if linear else "D (C N H) -> D C N H")
        _take_bias(blocks, joint, "blocks.{i}.attn.c_attn.bias", "(C N H) -> C N H", take)
    elif None not in by_head:
        parts = [kind for kind in by_head if kind is not None]
        layout = "(C N) H D -> D C N H" if parts[0].shape[1] == D else "(C N) D H -> D C N H"
        take("blocks.{i}.attn.c_attn.kernel", parts, layout)
        biases = [_bias_of(blocks, kind) for kind in parts]
        if None not in biases:
            take("blocks.{i}.attn.c_attn.bias", biases, "(C N) H -> C N H")
    elif None not in apart:
        parts = [kind for kind in apart if kind is not None]
        note = undecided.format("'C (N H) D -> D C N H'", "'C D (N H) -> D C N H'")
        take("blocks.{i}.attn.c_attn.kernel", parts, OPEN, note)
        biases = [_bias_of(blocks, kind) for kind in parts]
        if None not in biases:
            take("blocks.{i}.attn.c_attn.bias", biases, "C (N H) -> C N H")
        square = [kind for kind in square if kind not in parts]
    proj = next((kind for kind in square if _is_called(kind, "blocks.{i}.attn.c_proj")), None)
    if proj is not None:
        note = undecided.format("'D (N H) -> N H D'", "'(N H) D -> N H D'")
        take("blocks.{i}.attn.c_proj.kernel", proj, OPEN, note)
        _take_bias(blocks, proj, "blocks.{i}.attn.c_proj.bias", "D -> D", take)
    for norm in ("blocks.{i}.ln_1", "blocks.{i}.ln_2"):
        for kind in (kind for kind in blocks if kind.shape == (D,) and _is_called(kind, norm)):
            take(f"{norm}.{'bias' if kind.is_bias else 'scale'}", kind, "D -> D")
    return linear


def _is_called(kind: Kind, ours: str) -> bool:
    return bool({*kind.words[:-1]} & {*WORDS[ours]})


def _bias_of(blocks: list[Kind], kernel: Kind) -> Kind | None:
    stem = kernel.name.rpartition(".")[0]
    return next((kind for kind in blocks if kind.is_bias and kind.name.rpartition(".")[0] == stem), None)


def _take_bias(blocks: list[Kind], kernel: Kind, ours: str, layout: str, take: Any) -> None:
    if (bias := _bias_of(blocks, kernel)) is not None:
        take(ours, bias, layout)


def _written(rows: dict[str, Any], left: dict[str, Kind], linear: bool | None, tensors: Mapping[str, Any]) -> str:
    lines = [
        "# A draft from names and shapes. Replace every ? and look at each row; then test it,",
        "# by a comparison with your own code or with",
        "#     jaxgpt check SRC --dialect=THIS --against=…",
        'title = "my GPT"',
        "rows = [",
    ]
    has_bias = any(ours.endswith(".bias") for ours in rows)
    for row in OF_GPT2:
        if row.ours in rows:
            theirs, layout, note = rows[row.ours]
            lines.append(f"    [{_text(row.ours)}, {_text(theirs)}, {_text(layout)}],{f'  # {note}' if note else ''}")
        elif row.ours == HEAD_BIAS:
            continue
        elif row.ours == HEAD:
            lines.append("    # no head found: it is tied to the token embedding")
        elif row.ours.endswith(".bias"):
            if has_bias:
                absent = "absent." + row.ours.removeprefix("blocks.")
                lines.append(f'    [{_text(row.ours)}, {_text(absent)}, "{row.right} -> {row.right}", "may lack"],')
        else:
            lines.append(f"    [{_text(row.ours)}, {_text(OPEN)}, {_text(OPEN)}],  # not found")
    masks = [kind for kind in left.values() if len(kind.shape) >= 2 and len({*kind.shape} - {1}) == 1]
    lines += ["]", "buffers = ["]
    lines += [
        f"    [{_text(kind.name)}, {_text(' '.join('1' if n == 1 else 'T' for n in kind.shape))}]," for kind in masks
    ]
    lines += ["]"]
    lines += [f"# not placed: {_text(kind.name)} {kind.shape}" for kind in left.values() if kind not in masks]
    lines += [
        "[fixed]",
        'activation_function = "?"  # gelu_new is the tanh form, gelu the exact one; relu, silu, tanh',
        *(() if any("{j}" in kind for kind in map(str, rows.values())) else ('n_head = "?"  # no shape tells',)),
        "layer_norm_epsilon = 1e-5",
    ]
    return "\n".join(lines) + "\n"


def _text(value: str | list[str]) -> str:
    """Write a TOML text, or a list of texts."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", escaped) + '"'
