"""Hugging Face's GPT-2, as `GPT2LMHeadModel.save_pretrained` writes it. Its Conv1D stores kernels as (in, out)."""

from dataclasses import replace

from jaxgpt.convert.dialect import Dialect, Row

HF = Dialect(
    name="hf",
    title="Hugging Face GPT-2",
    prefix="transformer.",
    rows=(
        Row("tok_emb.embedding", "wte.weight", "V D -> V D"),
        Row("pos_emb.embedding", "wpe.weight", "T D -> T D"),
        Row("blocks.{i}.ln_1.scale", "h.{i}.ln_1.weight", "D -> D"),
        Row("blocks.{i}.ln_1.bias", "h.{i}.ln_1.bias", "D -> D"),
        Row("blocks.{i}.attn.c_attn.kernel", "h.{i}.attn.c_attn.weight", "D (C N H) -> D C N H"),
        Row("blocks.{i}.attn.c_attn.bias", "h.{i}.attn.c_attn.bias", "(C N H) -> C N H"),
        Row("blocks.{i}.attn.c_proj.kernel", "h.{i}.attn.c_proj.weight", "(N H) D -> N H D"),
        Row("blocks.{i}.attn.c_proj.bias", "h.{i}.attn.c_proj.bias", "D -> D"),
        Row("blocks.{i}.ln_2.scale", "h.{i}.ln_2.weight", "D -> D"),
        Row("blocks.{i}.ln_2.bias", "h.{i}.ln_2.bias", "D -> D"),
        Row("blocks.{i}.mlp.fc1.kernel", "h.{i}.mlp.c_fc.weight", "D F -> D F"),
        Row("blocks.{i}.mlp.fc1.bias", "h.{i}.mlp.c_fc.bias", "F -> F"),
        Row("blocks.{i}.mlp.fc2.kernel", "h.{i}.mlp.c_proj.weight", "F D -> F D"),
        Row("blocks.{i}.mlp.fc2.bias", "h.{i}.mlp.c_proj.bias", "D -> D"),
        Row("ln_f.scale", "ln_f.weight", "D -> D"),
        Row("ln_f.bias", "ln_f.bias", "D -> D"),
        Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
    ),
    buffers=(("h.{i}.attn.bias", "1 1 T T"), ("h.{i}.attn.masked_bias", "")),
    fixed={"layer_norm_epsilon": 1e-5},
)

DIALOGPT = replace(
    HF,
    name="dialogpt",
    title="DialoGPT",
    rows=(*HF.rows[:-1], Row("lm_head.kernel", "lm_head.decoder.weight", "V D -> D V")),
)
"""Microsoft's DialoGPT `.pkl`: Hugging Face's names, but for the head's."""
