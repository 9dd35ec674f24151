"""Optimizers by name, and their learning rates: decay on matrices, one clip over all that trains, rates by layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxgpt import freeze
from jaxgpt.convert.errors import InputError, about
from jaxgpt.mesh import platform
from jaxgpt.params import Rules, match
from jaxgpt.patterns import Pattern

DECAYED: Rules[bool] = ((r".*\.(kernel|embedding|new|lora_[ab])", True), (r".*\.(bias|scale|lora_m)", False))
"""Weight decay by name: a bias of heads has three axes and still is no matrix."""

B1, B2, EPSILON = 0.9, 0.95, 1e-8
"""AdamW's, as in nanoGPT and GPT-3 (Brown et al. 2020, appendix B)."""

MUON: Rules[optax.contrib.MuonDimensionNumbers | None] = (
    (r"blocks\.\d+\.attn\.c_attn\.kernel", optax.contrib.MuonDimensionNumbers(0, (2, 3))),  # q, k and v each alone
    (r"blocks\.\d+\.attn\.[qkv]_proj\.kernel", optax.contrib.MuonDimensionNumbers(0, (1, 2))),
    (r"blocks\.\d+\.attn\.c_proj\.kernel", optax.contrib.MuonDimensionNumbers((0, 1), 2)),
    (r"blocks\.\d+\.mlp\.(gate|fc1|fc2)\.kernel", optax.contrib.MuonDimensionNumbers(0, 1)),
    (r".*", None),
)
"""The axes of the matrices inside blocks, inputs and outputs, that Muon orthogonalises; AdamW updates the rest."""

MUON_RMS = 0.2
"""Root mean square of Muon's updates, AdamW's usual one, so that the same rate suits both (Liu et al. 2025, 2.2)."""

PEAK_LR = {"adamw": 0.128, "muon": 0.128, "adafactor": 0.128, "lion": 0.025, "sgd": 25.0}
"""Default peak learning rate of each optimizer, times the width D."""

ADAPTER_RATE = 10.0
"""Where no rate is given, that of adapters over that of the rest: B begins at zero (Schulman et al. 2025, LoRA Without
Regret; the bundled model agrees: 4.07 nats after 60 steps, 4.31 at the rate of the rest)."""

FINAL = 0.1
"""The learning rate at the end of the cosine or of the line, as a fraction of its peak."""

WSD_DECAY = 0.2
"""The fraction of the steps in which the rate of `wsd` falls to zero (Hu et al. 2024: warm-up, stable, decay)."""


SMALL = 4096
"""Numbers of an array that needs no sum of its own on a GPU."""


def warmup_steps(steps: int, warmup: float) -> int:
    """Return the number of steps in which the learning rate rises: a fraction of all, and at least one."""
    return min(max(1, round(steps * warmup)), steps)


def lr_schedule(steps: int, warmup: float, kind: str = "cosine") -> optax.Schedule:
    """Return the learning rate as a fraction of its peak, by the number of steps that are made.

    It rises in equal parts to 1 in the last step of the warm-up, so that the first step already updates the parameters.

    Args:
        kind: what follows. `"cosine"` or `"linear"`: it falls to a tenth; `"constant"`: it stays; `"wsd"`: it stays,
            and falls to zero in the last fifth.
    """
    rise = warmup_steps(steps, warmup)
    rest = max(steps - rise, 1)
    if kind == "cosine":
        after = optax.warmup_cosine_decay_schedule(0.0, 1.0, rise, rise + rest, FINAL)
    elif kind == "linear":
        after = optax.linear_schedule(1.0, FINAL, rest, rise)
    elif kind == "wsd":
        fall = min(max(1, round(steps * WSD_DECAY)), rest)
        after = optax.linear_schedule(1.0, 0.0, fall, rise + rest - fall)
    else:
        after = optax.constant_schedule(1.0)

    def schedule(count: Any) -> Any:
        return jnp.where(count < rise, (count + 1) / rise, after(count))

    return schedule


def make_optimizer(
    plan: freeze.Plan,
    trainable: dict[str, Any],
    rate: optax.Schedule,
    *,
    weight_decay: float,
    clip: float,
    step: int = 0,
    thaw_warmup: int = 1,
    kind: str = "adamw",
) -> optax.GradientTransformation:
    """Return a clip over all groups together, then an optimizer of its own for what each phase thawed.

    Updates are those of a peak learning rate of 1: the training step multiplies them by each parameter's peak.

    Args:
        trainable: what trains in the phase that the step after `step` belongs to.
        thaw_warmup: steps in which the rate of what a later phase thawed rises to the schedule's.
        kind: one of `PEAK_LR`.
    """

    def of_phase(phase: freeze.Phase) -> optax.GradientTransformation:
        def group_rate(count):  # of updates of this group: its own optimizer began when it thawed
            risen = jnp.minimum(1.0, (count + 1) / thaw_warmup) if phase.start else 1.0
            return rate(phase.start + count) * risen

        return update_rule(kind, group_rate, weight_decay)

    return optax.chain(clip_by_norm(clip), freeze.optimizer(plan, trainable, of_phase, step))


def update_rule(kind: str, rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Return an optimizer by its name, with decoupled weight decay of matrices."""
    decay = optax.add_decayed_weights(weight_decay, _decayed)
    adamw = optax.adamw(rate, B1, B2, EPSILON, weight_decay=weight_decay, mask=_decayed)
    match kind:
        case "lion":
            return optax.lion(rate, weight_decay=weight_decay, mask=_decayed)
        case "sgd":
            return optax.chain(optax.trace(B1), decay, optax.scale_by_learning_rate(rate))
        case "adafactor":
            factored = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
            return optax.chain(factored, decay, optax.scale_by_learning_rate(rate))
        case "muon":
            muon = optax.contrib.muon(
                rate, weight_decay=weight_decay, consistent_rms=MUON_RMS,
                muon_weight_dimension_numbers=lambda params: match(MUON, params),
            )  # fmt: skip
            groups = {"muon": muon, "adamw": adamw}
            return optax.multi_transform(
                groups, lambda params: {name: "muon" if axes else "adamw" for name, axes in match(MUON, params).items()}
            )
    return adamw


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Scale all updates together so that their norm is at most `most`: Optax's clip with the norm below."""

    def clip(updates: Any, params: Any = None) -> Any:
        factor = jnp.minimum(1.0, most / jnp.maximum(norm(updates), jnp.finfo(jnp.float32).tiny))
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(clip)


def norm(tree: Any) -> Float[Array, ""]:
    """Compute the 2-norm of all numbers of a tree, summed row by row.

    In one go XLA's CPU backend touches 4 GB to square and sum the 768 x 50257 of an untied head: 3 s instead of 0.01.
    """
    return norms({"all": tree})["all"]


def norms(groups: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """Compute the norm of each tree.

    One sum over a table adds up what there is of all groups: else each array would need one or two of its own, that is
    more kernels on a GPU, and on a CPU a program that takes longer to compile. Over several devices it would gather
    each array's.
    """
    if platform() != "tpu" and jax.sharding.get_abstract_mesh().size <= 1:
        parts = [jnp.concatenate([_squares(leaf) for leaf in jax.tree.leaves(tree)]) for tree in groups.values()]
        longest = max(map(len, parts))
        # held together: XLA takes the sum of joined arrays apart
        table = jax.lax.optimization_barrier(jnp.stack([jnp.pad(part, (0, longest - len(part))) for part in parts]))
        return dict(zip(groups, jnp.sqrt(jnp.sum(table, 1)), strict=True))
    found = {}
    for name, tree in groups.items():
        rows = [_rows(leaf) for leaf in jax.tree.leaves(tree)]
        found[name] = jnp.sqrt(sum(map(jnp.sum, rows), jnp.float32(0)))
    return found


def _rows(x: Array) -> Float[Array, "..."]:
    """Return the sum of squares of each row."""
    return jax.lax.optimization_barrier(jnp.sum(jnp.square(x), axis=-1))


def _squares(x: Array) -> Float[Array, " n"]:
    """Return numbers whose sum is that of all squares: of a small array the squares themselves."""
    return (jnp.square(x) if x.size <= SMALL else _rows(x)).ravel()


def rate_factors(
    names: Iterable[str], n_layer: int, layer_lr_decay: float, lr_scale: Sequence[str]
) -> dict[str, float]:
    """Return what the learning rate of each parameter is multiplied by.

    Args:
        layer_lr_decay: each block below the top has this times the rate of the one above, and the embeddings that of
            the lowest block once more (Howard and Ruder 2018, section 3.1, where it is 1/2.6).
        lr_scale: `PATTERN=FACTOR`, over whole names; the first that matches multiplies the factor of its layer.

    Raises:
        InputError: an `lr_scale` that is not written so, or matches none of the names.
    """
    layers: Rules[float] = (
        (r"(tok_emb|pos_emb)\..*", layer_lr_decay**n_layer),
        *((rf"blocks\.{i}\..*", layer_lr_decay ** (n_layer - 1 - i)) for i in range(n_layer)),
        (r"(ln_f|lm_head)\..*", 1.0),
    )
    factors = match(layers, names)
    scales: Rules[float] = (*(_scale(text, factors) for text in lr_scale), (".*", 1.0))
    return {name: factor * factors[name] for name, factor in match(scales, factors).items()}


def _scale(text: str, names: Iterable[str]) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        factor, compiled = float(number), Pattern(pattern)
    except ValueError as error:
        raise InputError(rf"--lr-scale={text}: must be PATTERN=FACTOR, as in blocks\.1\d\..*=2.0 ({error})") from None
    if not pattern or not 0 < factor <= 1e30:
        raise InputError(f"--lr-scale={text}: must be PATTERN=FACTOR with a factor above 0, at most 1e30")
    with about(f"--lr-scale={text}"):
        is_used = bool(compiled.matching(names))
    if not is_used:
        raise InputError(
            f"--lr-scale={text}: no trainable parameter matches; one is called, for example, {next(iter(names))}"
        )
    return pattern, factor


def _decayed(params: dict[str, Any]) -> dict[str, bool]:
    return match(DECAYED, params)
