"""Raschka's *Build a Large Language Model (From Scratch)*: query, key and value apart, norms with scale and shift."""

from jaxgpt.convert.dialect import Dialect, Row

QKV = ("W_query", "W_key", "W_value")

RASCHKA = Dialect(
    name="raschka",
    title="Raschka's Build a Large Language Model",
    rows=(
        Row("tok_emb.embedding", "tok_emb.weight", "V D -> V D"),
        Row("pos_emb.embedding", "pos_emb.weight", "T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "trf_blocks.{i}.norm1.scale", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "trf_blocks.{i}.norm1.shift", "D -> D"),
        Row(
            "blocks.{i}.attn.c_attn.kernel",
            tuple(f"trf_blocks.{{i}}.att.{part}.weight" for part in QKV),
            "C (N H) D -> D C N H",
        ),
        Row(
            "blocks.{i}.attn.c_attn.bias",
            tuple(f"trf_blocks.{{i}}.att.{part}.bias" for part in QKV),
            "C (N H) -> C N H",
            may_lack=True,  # qkv_bias=False
        ),
        Row("blocks.{i}.attn.c_proj.kernel", "trf_blocks.{i}.att.out_proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "trf_blocks.{i}.att.out_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "trf_blocks.{i}.norm2.scale", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "trf_blocks.{i}.norm2.shift", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "trf_blocks.{i}.ff.layers.0.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "trf_blocks.{i}.ff.layers.0.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "trf_blocks.{i}.ff.layers.2.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "trf_blocks.{i}.ff.layers.2.bias", "D -> D"),
        Row("ln_f.scale", "final_norm.scale", "D -> D"),
        Row("ln_f.bias", "final_norm.shift", "D -> D"),
        Row("lm_head.kernel", "out_head.weight", "V D -> D V"),
    ),
    buffers=(("trf_blocks.{i}.att.mask", "T T"),),
    fixed={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
)
