"""AdamW with warm-up and a cosine, decay on matrices only, and one clip over the gradients that train."""

from typing import Any

import optax

from jaxgpt import freeze
from jaxgpt.params import Rules, match

DECAYED: Rules[bool] = ((r".*\.(kernel|embedding)", True), (r".*\.(bias|scale)", False))
"""Weight decay by name: a bias of heads has three axes and still is no matrix."""

B1, B2, EPSILON = 0.9, 0.95, 1e-8
"""AdamW's, as in nanoGPT and GPT-3 (Brown et al. 2020, appendix B)."""

FINAL = 0.1
"""The learning rate at the end of the cosine, as a fraction of its peak."""


def schedule(lr: float, steps: int, warmup: float) -> optax.Schedule:
    """From 0 up to `lr` in the fraction `warmup` of the steps, then a cosine down to a tenth of it."""
    rise = min(max(1, round(steps * warmup)), steps)
    return optax.warmup_cosine_decay_schedule(0.0, lr, rise, max(steps, rise + 1), FINAL * lr)


def make_optimizer(
    plan: freeze.Plan, trainable: dict[str, Any], lr: float | optax.Schedule, *, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Clips over all groups together, then AdamW for each group of the plan."""
    adamw = optax.adamw(lr, B1, B2, EPSILON, weight_decay=weight_decay, mask=lambda params: _decayed(params))
    return optax.chain(optax.clip_by_global_norm(clip), freeze.optimizer(plan, trainable, adamw))


def _decayed(params: dict[str, Any]) -> dict[str, bool]:
    return match(DECAYED, params)
