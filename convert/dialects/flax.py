"""transformers' FlaxGPT2LMHeadModel: the names of Flax; its FlaxConv1D stores kernels as (out, in), its head (in, out).

FlaxConv1D makes its kernel as `(features, inputs.shape[-1])` and transposes it before it multiplies.
"""

from jaxgpt.convert.dialect import Dialect, Row

FLAX = Dialect(
    name="flax",
    title="Hugging Face GPT-2 in Flax",
    prefix="transformer.",
    rows=(
        Row("tok_emb.embedding", "wte.embedding", "V D -> V D"),
        Row("pos_emb.embedding", "wpe.embedding", "T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "h.{i}.ln_1.scale", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "h.{i}.ln_1.bias", "D -> D"),
        Row("blocks.{i}.attn.c_attn.kernel", "h.{i}.attn.c_attn.kernel", "(C N H) D -> D C N H"),
        Row("blocks.{i}.attn.c_attn.bias", "h.{i}.attn.c_attn.bias", "(C N H) -> C N H"),
        Row("blocks.{i}.attn.c_proj.kernel", "h.{i}.attn.c_proj.kernel", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "h.{i}.attn.c_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "h.{i}.ln_2.scale", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "h.{i}.ln_2.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "h.{i}.mlp.c_fc.kernel", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "h.{i}.mlp.c_fc.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "h.{i}.mlp.c_proj.kernel", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "h.{i}.mlp.c_proj.bias", "D -> D"),
        Row("ln_f.scale", "ln_f.scale", "D -> D"),
        Row("ln_f.bias", "ln_f.bias", "D -> D"),
        Row("lm_head.kernel", "lm_head.kernel", "D V -> D V"),
    ),
    fixed={"layer_norm_epsilon": 1e-5},
)
