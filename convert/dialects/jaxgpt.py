"""Our own names and layouts, as in Orbax checkpoints: the right-hand sides of any dialect's table, and adapters."""

from collections.abc import Iterator

from jaxgpt.convert.adapter import input_axes
from jaxgpt.convert.dialect import EMBEDDING, HEAD, HEAD_BIAS, Dialect, Row
from jaxgpt.convert.dialects.hf import HF

PARAMETERS = (
    ("tok_emb.embedding", "V D"),
    ("pos_emb.embedding", "P D"),
    ("blocks.{i}.ln_1.scale", "D"),
    ("blocks.{i}.ln_1.bias", "D"),
    ("blocks.{i}.attn.c_attn.kernel", "D C N H"),
    ("blocks.{i}.attn.c_attn.bias", "C N H"),
    ("blocks.{i}.attn.q_proj.kernel", "D N H"),
    ("blocks.{i}.attn.q_proj.bias", "N H"),
    ("blocks.{i}.attn.k_proj.kernel", "D K H"),
    ("blocks.{i}.attn.k_proj.bias", "K H"),
    ("blocks.{i}.attn.v_proj.kernel", "D K H"),
    ("blocks.{i}.attn.v_proj.bias", "K H"),
    ("blocks.{i}.attn.q_norm.scale", "H"),
    ("blocks.{i}.attn.k_norm.scale", "H"),
    ("blocks.{i}.attn.c_proj.kernel", "N H D"),
    ("blocks.{i}.attn.c_proj.bias", "D"),
    ("blocks.{i}.ln_2.scale", "D"),
    ("blocks.{i}.ln_2.bias", "D"),
    ("blocks.{i}.mlp.gate.kernel", "D F"),
    ("blocks.{i}.mlp.gate.bias", "F"),
    ("blocks.{i}.mlp.fc1.kernel", "D F"),
    ("blocks.{i}.mlp.fc1.bias", "F"),
    ("blocks.{i}.mlp.fc2.kernel", "F D"),
    ("blocks.{i}.mlp.fc2.bias", "D"),
    ("ln_f.scale", "D"),
    ("ln_f.bias", "D"),
    ("lm_head.kernel", "D V"),
    ("lm_head.bias", "V"),
)
"""Every parameter that a model may have, in the order of the network; its config says which of them it has."""


def _same(name: str, side: str) -> Row:
    return Row(name, name, f"{side} -> {side}")


def _adapters(row: Row) -> Iterator[Row]:
    """Yield the parameters that adapters may add beside a parameter of the model."""
    module, _, kind = row.ours.rpartition(".")
    if row.ours in (EMBEDDING, HEAD):
        yield _same(f"{module}.new", row.right.replace("V", "S"))
    if kind == "kernel":
        axes, n_in = row.right.split(), input_axes(module)
        yield _same(f"{module}.lora_a", " ".join([*axes[:n_in], "R"]))
        yield _same(f"{module}.lora_b", " ".join(["R", *axes[n_in:]]))
        yield _same(f"{module}.lora_m", " ".join(axes[n_in:]))


OWN = tuple(_same(name, side) for name, side in PARAMETERS)
"""The parameters of a model without adapters."""

OF_GPT2 = tuple(_same(row.ours, row.right) for row in (*HF.rows, Row(HEAD_BIAS, HEAD_BIAS, "V -> V")))
"""Those of a GPT-2, which a user's own table names."""

JAXGPT = Dialect(name="jaxgpt", title="jaxgpt", rows=tuple(one for row in OWN for one in (row, *_adapters(row))))
