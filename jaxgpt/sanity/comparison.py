"""A model beside the same in PyTorch, on the same tokens: which module's output is the first that differs."""

import math
import re
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxgpt.convert.errors import InputError
from jaxgpt.model.gpt import GPT
from jaxgpt.params import named_params
from jaxgpt.sanity.faults import config_faults, parameter_faults
from jaxgpt.sanity.parity import Difference, Parity
from jaxgpt.sanity.reference import Reference, torch_outputs

OUTPUTS = r"tok_emb|pos_emb|embeddings|ln_f|blocks\.\d+(\.(ln_1|attn|ln_2|mlp))?"
"""Names that are captured at once; attention's weights, T times T for every head, only where needed."""

LITTLE = 0.01
"""A relative difference up to which rounding may be the cause, where attention amplifies it."""


def compare(model: GPT, reference: Reference, tokens: Int[np.ndarray, "1 T"]) -> Parity:
    """Compare a float32 model with its reference on some tokens.

    Raises:
        InputError: the model is not of float32, whose rounding would hide faults.
    """
    params = named_params(model)
    kinds = {np.dtype(model.dtype).name, *(param.dtype.name for param in params.values())}
    if kinds != {"float32"}:
        raise InputError(
            f"the comparison needs a float32 model, not {', '.join(sorted(kinds))}: load it without dtype="
        )
    logits, found = _ours(model, tokens, OUTPUTS)
    ours: dict[str, Any] = {**found, "logits": logits}
    modules: dict[str, Difference] = {}
    kept: dict[str, np.ndarray] = {}

    def see(name: str, theirs: np.ndarray) -> None:
        if name == "logits":
            kept[name] = theirs
        modules[name] = measure(name, ours.pop(name, None), theirs)

    torch_outputs(reference, tokens, see)
    logits_found = modules.pop("logits")
    rest = {name: Difference(name, math.inf, math.inf) for name in ours if name not in modules and name != "logits"}
    ordered = [*modules.values(), *rest.values(), logits_found]
    ordered = _with_pattern(model, reference, tokens, _with_rounding(reference, tokens, ordered))
    faults = config_faults(model.config, reference.config) + parameter_faults(params, reference.params)
    first = next((module.name for module in ordered if not module.equal), "")
    faults = tuple(sorted(faults, key=lambda fault: not fault.concerns(first)))
    agreement = _agreement(np.asarray(logits)[0], kept["logits"][0])
    return Parity(
        reference.name, tokens.shape[1], *agreement, tuple(ordered), faults, len({*params, *reference.params})
    )


def measure(name: str, ours: Any, theirs: np.ndarray) -> Difference:
    """Measure the difference of two outputs (1, …, T, D); logits are compared where both have a column."""
    if ours is not None and name == "logits":
        columns = min(ours.shape[-1], theirs.shape[-1])
        ours, theirs = ours[..., :columns], theirs[..., :columns]
    if ours is None or ours.shape != theirs.shape:
        return Difference(name, math.inf, math.inf)
    size = np.abs(theirs).max(-1)
    off = np.abs(np.asarray(ours, np.float32) - theirs).max(-1)
    # where the reference is next to nothing, a thousandth of its largest value anywhere
    scale = np.maximum(size, max(1e-3 * float(size.max()), float(np.finfo(np.float32).tiny)))
    return Difference(name, float(off.max()), float((off / scale).max()))


def _with_pattern(model: GPT, reference: Reference, tokens: np.ndarray, modules: list[Difference]) -> list[Difference]:
    """Add the attention weights of the first module that differs, if that is attention: they tell q, k from v."""
    at = next((i for i, module in enumerate(modules) if not module.equal), None)
    if at is None or not modules[at].name.endswith(".attn") or math.isinf(modules[at].relative):
        return modules
    name = f"{modules[at].name}.pattern"
    _, found = _ours(model, tokens, re.escape(name))
    patterns: list[Difference] = []
    torch_outputs(reference, tokens, lambda n, theirs: patterns.append(measure(n, found[n], theirs)), pattern=name)
    return [*modules[:at], *_with_rounding(reference, tokens, patterns, name), *modules[at:]]


def _with_rounding(
    reference: Reference, tokens: np.ndarray, modules: list[Difference], pattern: str | None = None
) -> list[Difference]:
    """Add the reference's own rounding errors, where the first difference is so small that they might explain it."""
    first = next((module for module in modules if not module.equal), None)
    if first is None or not first.relative <= LITTLE:
        return modules
    exact: dict[str, np.ndarray] = {}
    torch_outputs(reference, tokens, exact.__setitem__, pattern=pattern, double=True)
    rounding: dict[str, float] = {}

    def see(name: str, rounded: np.ndarray) -> None:
        rounding[name] = measure(name, rounded, exact.pop(name)).relative

    torch_outputs(reference, tokens, see, pattern=pattern)
    return [replace(module, rounding=rounding.get(module.name, 0.0)) for module in modules]


def _ours(model: GPT, tokens: np.ndarray, names: str) -> tuple[jax.Array, dict[str, jax.Array]]:
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 products to fewer bits
        return jax.jit(lambda model, tokens: model(tokens, capture=names))(model, tokens)


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Compute KL(theirs || ours), top-1 and top-10 agreement of logits (T, V), a position at a time in float64."""
    columns = min(ours.shape[-1], theirs.shape[-1])
    k, found = min(10, columns), []
    for a, b in zip(ours[:, :columns].astype(np.float64), theirs[:, :columns].astype(np.float64), strict=True):
        p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (b, a))
        shared = np.intersect1d(np.argpartition(a, -k)[-k:], np.argpartition(b, -k)[-k:]).size
        found.append((np.sum(np.exp(p) * (p - q)), a.argmax() == b.argmax(), shared / k))
    kl, top1, top10 = np.mean(found, 0)
    return float(kl), float(top1), float(top10)
