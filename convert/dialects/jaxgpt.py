"""Our own names and layouts, as in Orbax checkpoints: the right-hand sides of any dialect's table, and adapters."""

from collections.abc import Iterator

from jaxgpt.convert.adapter import input_axes
from jaxgpt.convert.dialect import EMBEDDING, HEAD, HEAD_BIAS, Dialect, Row
from jaxgpt.convert.dialects.hf import HF


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


OWN = tuple(_same(row.ours, row.right) for row in (*HF.rows, Row(HEAD_BIAS, HEAD_BIAS, "V -> V")))
"""The parameters of a model without adapters."""

JAXGPT = Dialect(name="jaxgpt", title="jaxgpt", rows=tuple(one for row in OWN for one in (row, *_adapters(row))))
