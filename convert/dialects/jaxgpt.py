"""Our own names and layouts, as in Orbax checkpoints: the right-hand sides of any dialect's table."""

from jaxgpt.convert.dialect import Dialect, Row
from jaxgpt.convert.dialects.hf import HF

JAXGPT = Dialect(
    name="jaxgpt",
    title="jaxgpt",
    rows=tuple(
        Row(row.ours, row.ours, f"{side} -> {side}") for row in HF.rows for side in [row.layout.split(" -> ")[1]]
    ),
)
