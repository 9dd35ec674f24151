"""minGPT of 2020: separate query, key and value (three of theirs to one of ours), a `Sequential` MLP, exact GELU."""

from jaxgpt.convert.dialect import Dialect, Row

QKV = ("query", "key", "value")

OLD_MINGPT = Dialect(
    name="old-mingpt",
    title="minGPT's first version (2020)",
    rows=(
        Row("tok_emb.embedding", "tok_emb.weight", "V D -> V D"),
        Row("pos_emb.embedding", "pos_emb", "1 T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "blocks.{i}.ln1.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "blocks.{i}.ln1.bias", "D -> D"),
        Row(
            "blocks.{i}.attn.c_attn.kernel",
            tuple(f"blocks.{{i}}.attn.{part}.weight" for part in QKV),
            "C (N H) D -> D C N H",
        ),
        Row("blocks.{i}.attn.c_attn.bias", tuple(f"blocks.{{i}}.attn.{part}.bias" for part in QKV), "C (N H) -> C N H"),
        Row("blocks.{i}.attn.c_proj.kernel", "blocks.{i}.attn.proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "blocks.{i}.attn.proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "blocks.{i}.ln2.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "blocks.{i}.ln2.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "blocks.{i}.mlp.0.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "blocks.{i}.mlp.0.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "blocks.{i}.mlp.2.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "blocks.{i}.mlp.2.bias", "D -> D"),
        Row("ln_f.scale", "ln_f.weight", "D -> D"),
        Row("ln_f.bias", "ln_f.bias", "D -> D"),
        Row("lm_head.kernel", "head.weight", "V D -> D V"),
    ),
    buffers=(("blocks.{i}.attn.mask", "1 1 T T"),),
    fixed={"layer_norm_epsilon": 1e-5},
    assumed={"activation_function": "gelu"},
)
