"""OPT: split queries, keys and values, and two rows before the first position's, which stand for padding."""

from jaxgpt.convert.dialect import Dialect, Row

LAYER = "decoder.layers.{i}"

OPT = Dialect(
    name="opt",
    title="OPT",
    prefix="model.",
    needs_config=True,
    rows=(
        Row("tok_emb.embedding", "decoder.embed_tokens.weight", "V D -> V D"),
        Row("pos_emb.embedding", "decoder.embed_positions.weight", "P D -> P D"),
        Row("blocks.{i}.ln_1.scale", f"{LAYER}.self_attn_layer_norm.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", f"{LAYER}.self_attn_layer_norm.bias", "D -> D"),
        Row("blocks.{i}.attn.q_proj.kernel", f"{LAYER}.self_attn.q_proj.weight", "(N H) D -> D N H"),
        Row("blocks.{i}.attn.q_proj.bias", f"{LAYER}.self_attn.q_proj.bias", "(N H) -> N H"),
        Row("blocks.{i}.attn.k_proj.kernel", f"{LAYER}.self_attn.k_proj.weight", "(K H) D -> D K H"),
        Row("blocks.{i}.attn.k_proj.bias", f"{LAYER}.self_attn.k_proj.bias", "(K H) -> K H"),
        Row("blocks.{i}.attn.v_proj.kernel", f"{LAYER}.self_attn.v_proj.weight", "(K H) D -> D K H"),
        Row("blocks.{i}.attn.v_proj.bias", f"{LAYER}.self_attn.v_proj.bias", "(K H) -> K H"),
        Row("blocks.{i}.attn.c_proj.kernel", f"{LAYER}.self_attn.out_proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", f"{LAYER}.self_attn.out_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", f"{LAYER}.final_layer_norm.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", f"{LAYER}.final_layer_norm.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", f"{LAYER}.fc1.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", f"{LAYER}.fc1.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", f"{LAYER}.fc2.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", f"{LAYER}.fc2.bias", "D -> D"),
        Row("ln_f.scale", "decoder.final_layer_norm.weight", "D -> D"),
        Row("ln_f.bias", "decoder.final_layer_norm.bias", "D -> D"),
        Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
    ),
)
