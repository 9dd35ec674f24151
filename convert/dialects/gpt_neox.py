"""GPT-NeoX, as in Pythia: query, key and value of each head lie side by side, and the head is called embed_out."""

from jaxgpt.convert.dialect import Dialect, Row

GPT_NEOX = Dialect(
    name="gpt_neox",
    title="GPT-NeoX",
    prefix="gpt_neox.",
    renamed={"lm_head.weight": "embed_out.weight"},  # in the memory of transformers 5, which writes the old name
    needs_config=True,
    rows=(
        Row("tok_emb.embedding", "embed_in.weight", "V D -> V D"),
        Row("blocks.{i}.ln_1.scale", "layers.{i}.input_layernorm.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "layers.{i}.input_layernorm.bias", "D -> D"),
        Row("blocks.{i}.attn.c_attn.kernel", "layers.{i}.attention.query_key_value.weight", "(N C H) D -> D C N H"),
        Row("blocks.{i}.attn.c_attn.bias", "layers.{i}.attention.query_key_value.bias", "(N C H) -> C N H"),
        Row("blocks.{i}.attn.c_proj.kernel", "layers.{i}.attention.dense.weight", "D (N H) -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "layers.{i}.attention.dense.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "layers.{i}.post_attention_layernorm.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "layers.{i}.post_attention_layernorm.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "layers.{i}.mlp.dense_h_to_4h.weight", "F D -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "layers.{i}.mlp.dense_h_to_4h.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "layers.{i}.mlp.dense_4h_to_h.weight", "D F -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "layers.{i}.mlp.dense_4h_to_h.bias", "D -> D"),
        Row("ln_f.scale", "final_layer_norm.weight", "D -> D"),
        Row("ln_f.bias", "final_layer_norm.bias", "D -> D"),
        Row("lm_head.kernel", "embed_out.weight", "V D -> D V"),
    ),
    buffers=(
        ("layers.{i}.attention.bias", "1 1 T T"),
        ("layers.{i}.attention.masked_bias", ""),
        ("layers.{i}.attention.rotary_emb.inv_freq", "J"),
    ),
)
