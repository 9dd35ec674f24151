"""Qwen3: Llama's names, and a norm for the queries and one for the keys."""

from dataclasses import replace

from jaxgpt.convert.dialect import Row
from jaxgpt.convert.dialects.llama import LAYER, LLAMA

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    title="Qwen3",
    rows=(
        *LLAMA.rows,
        Row("blocks.{i}.attn.q_norm.scale", f"{LAYER}.self_attn.q_norm.weight", "H -> H"),
        Row("blocks.{i}.attn.k_norm.scale", f"{LAYER}.self_attn.k_norm.weight", "H -> H"),
    ),
)
