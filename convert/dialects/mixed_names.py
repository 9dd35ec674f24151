"""Names of several small GPTs in one checkpoint, as people's own code has them: each part is known by its names."""

from collections.abc import Collection

from jaxgpt.convert.dialect import Dialect, Row

QKV = ("query", "key", "value")


def _norms(first: str, second: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"blocks.{{i}}.{ours}.{kind}", f"blocks.{{i}}.{theirs}.{ending}", "D -> D")
        for ours, theirs in (("ln_1", first), ("ln_2", second))
        for kind, ending in (("scale", "weight"), ("bias", "bias"))
    )


def _attention(theirs: str | tuple[str, ...], left: str, proj: str) -> tuple[Row, ...]:
    names = [theirs] if isinstance(theirs, str) else theirs
    kernels, biases = ([f"blocks.{{i}}.attn.{name}.{end}" for name in names] for end in ("weight", "bias"))
    of = (lambda found: found[0]) if isinstance(theirs, str) else tuple
    return (
        Row("blocks.{i}.attn.c_attn.kernel", of(kernels), f"{left} D -> D C N H"),
        Row("blocks.{i}.attn.c_attn.bias", of(biases), f"{left} -> C N H", may_lack=True),
        Row("blocks.{i}.attn.c_proj.kernel", f"blocks.{{i}}.attn.{proj}.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", f"blocks.{{i}}.attn.{proj}.bias", "D -> D"),
    )


def _mlp(first: str, second: str) -> tuple[Row, ...]:
    return (
        Row("blocks.{i}.mlp.fc1.kernel", f"blocks.{{i}}.mlp.{first}.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", f"blocks.{{i}}.mlp.{first}.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", f"blocks.{{i}}.mlp.{second}.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", f"blocks.{{i}}.mlp.{second}.bias", "D -> D"),
    )


PARTS: tuple[tuple[tuple[Row, ...], ...], ...] = (
    ((Row("tok_emb.embedding", "tok_emb.weight", "V D -> V D"),),),
    (
        (Row("pos_emb.embedding", "pos_emb.weight", "T D -> T D"),),
        (Row("pos_emb.embedding", "pos_emb", "1 T D -> T D"),),
    ),
    (_norms("ln_1", "ln_2"), _norms("ln1", "ln2")),
    (_attention("c_attn", "(C N H)", "c_proj"), _attention(QKV, "C (N H)", "proj")),
    (_mlp("fc1", "fc2"), _mlp("c_fc", "c_proj"), _mlp("0", "2")),
    ((Row("ln_f.scale", "ln_f.weight", "D -> D"), Row("ln_f.bias", "ln_f.bias", "D -> D")),),
)
"""The ways in which each part is named and laid out, in nn.Linear's (out, in)."""

HEADS = ("lm_head.weight", "head.weight")


def mixture_of(names: Collection[str]) -> Dialect | None:
    """Return the dialect of a checkpoint in which each part is there in exactly one way."""
    rows: list[Row] = []
    for ways in PARTS:
        found = [way for way in ways if way[0].at(0).names[0] in names]
        if len(found) != 1:
            return None
        rows += found[0]
    head = next((name for name in HEADS if name in names), HEADS[0])
    return Dialect(
        name="mixture",
        title="a small GPT with names of several codebases",
        rows=(*rows, Row("lm_head.kernel", head, "V D -> D V")),
        buffers=tuple(
            (f"blocks.{{i}}.attn.{name}", side) for name in ("mask", "bias", "tril") for side in ("1 1 T T", "T T")
        ),
        fixed={"layer_norm_epsilon": 1e-5},
    )
