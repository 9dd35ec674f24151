"""Our own names and layouts, as in Orbax checkpoints: the right-hand sides of any dialect's table."""

from jaxgpt.convert.dialect import HEAD_BIAS, Dialect, Row
from jaxgpt.convert.dialects.hf import HF

JAXGPT = Dialect(
    name="jaxgpt",
    title="jaxgpt",
    rows=tuple(
        Row(row.ours, row.ours, f"{row.right} -> {row.right}")
        for row in (*HF.rows, Row(HEAD_BIAS, HEAD_BIAS, "V -> V"))
    ),
)
