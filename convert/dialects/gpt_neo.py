"""GPT-Neo, as in TinyStories: GPT-2's names, but for an attention of split queries, keys and values in nn.Linear."""

from jaxgpt.convert.dialect import Dialect, Row

ATTENTION = "h.{i}.attn.attention"

GPT_NEO = Dialect(
    name="gpt_neo",
    title="GPT-Neo",
    prefix="transformer.",
    needs_config=True,
    rows=(
        Row("tok_emb.embedding", "wte.weight", "V D -> V D"),
        Row("pos_emb.embedding", "wpe.weight", "P D -> P D"),
        Row("blocks.{i}.ln_1.scale", "h.{i}.ln_1.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "h.{i}.ln_1.bias", "D -> D"),
        Row("blocks.{i}.attn.q_proj.kernel", f"{ATTENTION}.q_proj.weight", "(N H) D -> D N H"),
        Row("blocks.{i}.attn.k_proj.kernel", f"{ATTENTION}.k_proj.weight", "(K H) D -> D K H"),
        Row("blocks.{i}.attn.v_proj.kernel", f"{ATTENTION}.v_proj.weight", "(K H) D -> D K H"),
        Row("blocks.{i}.attn.c_proj.kernel", f"{ATTENTION}.out_proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", f"{ATTENTION}.out_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "h.{i}.ln_2.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "h.{i}.ln_2.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "h.{i}.mlp.c_fc.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "h.{i}.mlp.c_fc.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "h.{i}.mlp.c_proj.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "h.{i}.mlp.c_proj.bias", "D -> D"),
        Row("ln_f.scale", "ln_f.weight", "D -> D"),
        Row("ln_f.bias", "ln_f.bias", "D -> D"),
        Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
    ),
    buffers=((f"{ATTENTION}.bias", "1 1 T T"), (f"{ATTENTION}.masked_bias", "")),
)
