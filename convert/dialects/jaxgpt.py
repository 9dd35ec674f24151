"""Our own names and layouts, as Orbax checkpoints hold them: the right-hand sides of any dialect's table."""

from convert.dialect import Dialect, Row
from convert.dialects.hf_gpt2 import HF_GPT2

JAXGPT = Dialect(
    name="jaxgpt",
    title="jaxgpt",
    rows=tuple(
        Row(row.ours, row.ours, f"{side} -> {side}") for row in HF_GPT2.rows for side in [row.layout.split(" -> ")[1]]
    ),
)
