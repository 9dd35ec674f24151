"""Why a model differs from its reference: which parameter or config field, and in what way."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.convert.config import GPTConfig

FIELDS = {
    "norm": "ln_",
    "positions": "",
    "position_offset": "pos_emb",
    "rotary_dim": ".attn",
    "rope_theta": ".attn",
    "rope_scaling": ".attn",
    "windows": ".attn",
    "n_kv_head": ".attn",
    "head_dim": ".attn",
    "split_qkv": ".attn",
    "qk_norm": ".attn",
    "gated_mlp": ".mlp",
    "parallel_residual": ".ln_2",
    "activation_function": ".mlp",
    "layer_norm_epsilon": "ln_",
    "scale_attn_weights": ".attn",
    "scale_attn_by_inverse_layer_idx": ".attn",
    "n_head": ".attn",
    "n_inner": ".mlp",
    "n_embd": "",
    "n_layer": "",
    "n_positions": "pos_emb",
    "tie_word_embeddings": "logits",
    "bias": "",
}
"""Fields of the config that change what is computed, each with a part of the modules' names where it does."""

CLOSE = 0.01
"""Largest difference, over the largest value, at which an array counts as another one's transpose.

Half precision rounds by at most 0.004 of a value (bfloat16), and arrays that were trained apart differ by about their
largest value.
"""


OTHER_VALUES = "has other values"


@dataclass(frozen=True)
class Fault:
    """One difference between a model and its reference."""

    name: str
    """A parameter, or `config.` and a field."""
    says: str

    def concerns(self, module: str) -> bool:
        """Return whether this explains that a module's output is the first that differs."""
        if field := self.name.removeprefix("config.") if self.name.startswith("config.") else None:
            return FIELDS[field] in module
        home = {"logits": ("tok_emb", "lm_head"), "embeddings": ("tok_emb", "pos_emb")}
        return self.name.startswith(home.get(module, (module.removesuffix(".pattern") + ".",)))

    def __str__(self) -> str:
        return f"{self.name} {self.says}"


def config_faults(ours: GPTConfig, theirs: GPTConfig) -> tuple[Fault, ...]:
    """Return the fields that differ and change what is computed."""
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in FIELDS}
    return tuple(Fault(f"config.{name}", f"is {a}, the reference's {b}") for name, (a, b) in pairs.items() if a != b)


def parameter_faults(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return the parameters, by our names, that differ at all; one of ours is in memory at a time.

    A bias that is missing counts as zero, and a head that is missing as the token embedding.
    """
    faults = []
    for name in dict.fromkeys([*ours, *theirs]):
        a, b = _values(name, ours), _values(name, theirs)
        if a is None or b is None:
            faults.append(Fault(name, f"is {'missing here' if a is None else 'not in the reference'}"))
        elif a.shape != b.shape and a.size != b.size:
            faults.append(Fault(name, f"has the shape {a.shape}, the reference's {b.shape}"))
        elif not np.array_equal(a.ravel(), b.ravel()):
            says = difference(name, a, b, missing=(name not in ours, name not in theirs))
            if says.startswith(OTHER_VALUES) and (other := _taken_for(name, a, theirs)):
                says = f"is the reference's {other}"
            faults.append(Fault(name, says))
    return tuple(faults)


def _taken_for(name: str, ours: np.ndarray, theirs: Mapping[str, Any]) -> str | None:
    """Return the reference's parameter of the same block and kind that one of ours is, in place of its own."""
    block, kind = name.split(".")[:2], name.rpartition(".")[2]
    for other, array in theirs.items():
        is_near = other != name and other.split(".")[:2] == block and other.endswith(f".{kind}")
        if is_near and array.size == ours.size and _close(ours, np.asarray(array, np.float32)):
            return other
    return None


def difference(name: str, ours: np.ndarray, theirs: np.ndarray, missing: tuple[bool, bool] = (False, False)) -> str:
    """Describe how two arrays of one parameter and one size differ, such as "has q and k swapped"."""
    if not np.isfinite(ours).all():
        return "is not finite"
    if not ours.any():
        return ("is missing here" if missing[0] else "is all zeros here") + ", and not zero in the reference"
    if not theirs.any():
        return ("is missing" if missing[1] else "is all zeros") + " in the reference, and not zero here"
    for kind in (np.float16, ml_dtypes.bfloat16):
        if np.array_equal(ours.ravel().astype(kind), theirs.ravel().astype(kind)):
            mine = np.array_equal(ours, ours.astype(kind).astype(np.float32))
            short = np.dtype(kind).name
            return (
                f"is the reference's, rounded to {short}" if mine else f"is not rounded to {short}, the reference's is"
            )
    if not _close(ours, theirs):
        for says, variant in _variants(name, theirs):
            if _close(ours, variant):
                return says
        if ours.shape == theirs.shape and ours.ndim == 2 and len(ours) > 1:
            for offset, a, b in ((1, ours[1:], theirs[:-1]), (-1, ours[:-1], theirs[1:])):
                if _close(a, b):
                    return f"is the reference's, its rows shifted by one position ({offset:+d})"
    off, largest = np.abs(ours.ravel() - theirs.ravel()).max(), np.abs(theirs).max()
    return f"{OTHER_VALUES}: max |difference| {off:.3g}, max |reference| {largest:.3g}"


def _variants(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Return what a wrong reading makes of a parameter, each with its description."""
    if name.endswith(("attn.c_attn.kernel", "attn.c_attn.bias")):
        triple = array.ndim - 3
        for order in list(permutations(range(3)))[1:]:
            swapped = [letter for letter, at, was in zip("qkv", order, range(3), strict=True) if at != was]
            yield f"has {', '.join(swapped[:-1])} and {swapped[-1]} swapped", array.take(order, triple)
        yield "holds q, k and v head by head, not all of q, then k, then v", np.swapaxes(array, triple, triple + 1)
    if name.endswith("attn.c_attn.kernel"):
        matrices = array.reshape(*array.shape[:2], -1)
        if matrices.shape[0] == matrices.shape[2]:
            yield "is the reference's, with q, k and v each transposed", matrices.transpose(2, 1, 0)
    if re.search(r"attn\.[qk]_proj\.(kernel|bias)$", name) and array.shape[-1] % 2 == 0:
        pairs = array.reshape(*array.shape[:-1], 2, -1)
        yield "has its rotary pairs side by side (interleaved), not in two halves", np.swapaxes(pairs, -1, -2)
        pairs = array.reshape(*array.shape[:-1], -1, 2)
        yield "has its rotary pairs in two halves, not side by side (interleaved)", np.swapaxes(pairs, -1, -2)
    if re.search(r"attn\.[qkv]_proj\.(kernel|bias)$", name):
        n_head = array.shape[-2]
        for n_outer in (n for n in range(2, n_head) if n_head % n == 0):
            groups = array.reshape(*array.shape[:-2], n_outer, n_head // n_outer, array.shape[-1])
            yield "has its heads in another order", np.swapaxes(groups, -3, -2)
    if name.endswith("attn.c_proj.kernel"):
        yield "is the reference's, with the axes of heads and head size swapped", np.swapaxes(array, 0, 1)
    if name.endswith("kernel"):
        rows = array.shape[0] * (array.shape[1] if name.endswith("attn.c_proj.kernel") else 1)
        yield "is the reference's, transposed", array.reshape(rows, -1).T


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours.ravel() - theirs.ravel()).max() <= CLOSE * np.abs(theirs).max())


def _values(name: str, params: Mapping[str, Any]) -> np.ndarray | None:
    if name in params:
        return np.asarray(params[name], np.float32)
    if name == "lm_head.kernel":
        return np.asarray(params["tok_emb.embedding"], np.float32).T
    other = name.removesuffix("bias") + ("scale" if ".ln_" in name or name.startswith("ln_f") else "kernel")
    if not name.endswith(".bias") or other not in params:
        return None
    shape = np.shape(params[other])  # the bias has the kernel's dimensions but those it sums over
    summed = 0 if other.endswith("scale") else 2 if name.endswith("attn.c_proj.bias") else 1
    return np.zeros(shape[summed:], np.float32)
