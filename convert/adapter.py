"""Adapters: what a model has beside its own parameters, so that it alone trains. LoRA, and rows of new tokens.

A linear layer of kernel W with LoRA (Hu et al. 2021) computes x W + scale (x A) B; DoRA (Liu et al. 2024) scales the
columns of W + scale A B to the lengths in a parameter m. Merged, they are a model without adapters.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.layout import LazyArray

MODULE = re.compile(r"blocks\.(0|[1-9]\d{0,4})\.(attn\.(c_attn|[qkv]_proj|c_proj)|mlp\.(gate|fc1|fc2))|lm_head")
"""Names of linear layers."""

TWO_INPUTS = ".attn.c_proj"
"""The end of the names of layers whose kernels have two axes of inputs, N and H; others have one."""

ADAPTERS = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|lora_m|new)")
"""Names of an adapter's parameters."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """A low-rank adapter on some linear layers."""

    r: int = 8
    """R, the rank."""
    alpha: float = 16.0
    """The product of A and B is multiplied by alpha / r."""
    modules: tuple[str, ...] = ()
    """Names of the layers that have one, such as `blocks.0.attn.c_attn`, in the order of the network."""
    dropout: float = 0.0
    """Dropout probability on the adapter's input, in training only."""
    rslora: bool = False
    """Multiply by alpha / sqrt(r) instead (Kalajdzievski 2023)."""
    dora: bool = False
    """Scale the columns of the sum to lengths that are parameters."""

    def __post_init__(self):
        object.__setattr__(self, "modules", tuple(self.modules))
        is_number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if not isinstance(self.r, int) or isinstance(self.r, bool) or not 1 <= self.r <= 4096:
            raise InputError(f"lora: r must be an integer from 1 to 4,096, not {self.r!r}")
        if not is_number or not 0 < self.alpha <= 1e6:
            raise InputError(f"lora: alpha must be a number above 0, at most 1,000,000, not {self.alpha!r}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise InputError(f"lora: dropout must be a probability in [0, 1), not {self.dropout!r}")
        if not isinstance(self.rslora, bool) or not isinstance(self.dora, bool):
            raise InputError("lora: rslora and dora must be true or false")
        if not self.modules or len({*self.modules}) < len(self.modules):
            raise InputError("lora: modules must be names of layers, each once")
        if wrong := [name for name in self.modules if not isinstance(name, str) or not MODULE.fullmatch(name)]:
            raise InputError(
                f"lora: {str(wrong[0])[:100]!r} is not the name of a linear layer, such as blocks.0.attn.c_attn"
            )

    @property
    def scale(self) -> float:
        """The factor of the product of A and B."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


def column_lengths(kernel: Any, n_in: int, xp: Any = np) -> Any:
    """Return the 2-norm of a kernel over its first `n_in` axes, its inputs: one number for each output."""
    return xp.sqrt(xp.sum(xp.square(kernel), axis=tuple(range(n_in))))


def input_axes(module: str) -> int:
    """Return how many of the first axes of a layer's kernel are inputs."""
    return 2 if module.endswith(TWO_INPUTS) else 1


def without_adapters(names: Iterable[str]) -> list[str]:
    """Return the names of a model's own parameters."""
    return [name for name in names if not ADAPTERS.fullmatch(name)]


def merged(params: Mapping[str, Any], lora: LoRA | None, n_tokens: int) -> dict[str, Any]:
    """Return a model's own parameters with its adapters in them; each is computed when it is read, in float32.

    Args:
        n_tokens: the rows of the token embedding before the padding; those of new tokens are the last of them.
    """
    own = {name: params[name] for name in without_adapters(params)}
    for name in params:
        if (found := ADAPTERS.fullmatch(name)) is None:
            continue
        module = found["module"]
        if found["part"] == "new":
            kernel = f"{module}.{'embedding' if module == 'tok_emb' else 'kernel'}"
            n_new = params[name].shape[0 if module == "tok_emb" else 1]
            own[kernel] = with_rows(own[kernel], range(n_tokens - n_new, n_tokens), params[name], module != "tok_emb")
        elif found["part"] == "lora_a":
            assert lora is not None
            kernel = f"{module}.kernel"
            shape, dtype = tuple(own[kernel].shape), own[kernel].dtype
            own[kernel] = LazyArray(shape, dtype, _with_product(own[kernel], params, module, lora))
    return own


def with_rows(
    table: Any, numbers: Sequence[int], rows: Any, is_head: bool = False, n_rows: int | None = None
) -> LazyArray:
    """Return a token embedding (V, D) in which some rows (S, D) are others, or a head, both transposed.

    Args:
        numbers: of the rows.
        n_rows: rows of the result, if it is to have more; all of those are among `numbers`.
    """
    n_rows = table.shape[1 if is_head else 0] if n_rows is None else n_rows
    dtype = np.promote_types(table.dtype, rows.dtype)  # a table of 16 bits may get rows of 32

    def read() -> np.ndarray:
        before, new = ((np.asarray(x).T if is_head else np.asarray(x)) for x in (table, rows))
        whole = np.zeros((n_rows, before.shape[1]), dtype)
        whole[: len(before)] = before
        whole[list(numbers)] = new
        return whole.T if is_head else whole

    width = table.shape[0 if is_head else 1]
    return LazyArray((width, n_rows) if is_head else (n_rows, width), dtype, read)


def _with_product(kernel: Any, params: Mapping[str, Any], module: str, lora: LoRA) -> Any:
    def read() -> np.ndarray:
        whole = np.asarray(kernel)
        a, b = (np.asarray(params[f"{module}.{part}"], np.float32) for part in ("lora_a", "lora_b"))
        total = whole.astype(np.float32) + np.float32(lora.scale) * np.tensordot(a, b, 1)
        if lora.dora:
            total *= np.asarray(params[f"{module}.lora_m"], np.float32) / column_lengths(total, input_axes(module))
        return total.astype(whole.dtype)

    return read
