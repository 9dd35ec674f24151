"""Llama, and those that name their tensors like it: Mistral and Qwen2. Their biases are where the config has any."""

from jaxgpt.convert.dialect import Dialect, Row

LAYER = "layers.{i}"

LLAMA = Dialect(
    name="llama",
    title="Llama",
    prefix="model.",
    needs_config=True,
    rows=(
        Row("tok_emb.embedding", "embed_tokens.weight", "V D -> V D"),
        Row("blocks.{i}.ln_1.scale", f"{LAYER}.input_layernorm.weight", "D -> D"),
        Row("blocks.{i}.attn.q_proj.kernel", f"{LAYER}.self_attn.q_proj.weight", "(N H) D -> D N H"),
        Row("blocks.{i}.attn.q_proj.bias", f"{LAYER}.self_attn.q_proj.bias", "(N H) -> N H"),
        Row("blocks.{i}.attn.k_proj.kernel", f"{LAYER}.self_attn.k_proj.weight", "(K H) D -> D K H"),
        Row("blocks.{i}.attn.k_proj.bias", f"{LAYER}.self_attn.k_proj.bias", "(K H) -> K H"),
        Row("blocks.{i}.attn.v_proj.kernel", f"{LAYER}.self_attn.v_proj.weight", "(K H) D -> D K H"),
        Row("blocks.{i}.attn.v_proj.bias", f"{LAYER}.self_attn.v_proj.bias", "(K H) -> K H"),
        Row("blocks.{i}.attn.c_proj.kernel", f"{LAYER}.self_attn.o_proj.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", f"{LAYER}.self_attn.o_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", f"{LAYER}.post_attention_layernorm.weight", "D -> D"),
        Row("blocks.{i}.mlp.gate.kernel", f"{LAYER}.mlp.gate_proj.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.gate.bias", f"{LAYER}.mlp.gate_proj.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc1.kernel", f"{LAYER}.mlp.up_proj.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", f"{LAYER}.mlp.up_proj.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", f"{LAYER}.mlp.down_proj.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", f"{LAYER}.mlp.down_proj.bias", "D -> D"),
        Row("ln_f.scale", "norm.weight", "D -> D"),
        Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
    ),
    buffers=((f"{LAYER}.self_attn.rotary_emb.inv_freq", "J"),),
)
