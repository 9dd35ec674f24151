"""Freezing: which parameters train, and from when on.

Frozen is free when the trainable part alone is differentiated::

    plan = freeze.parse("first6", model.config)
    trainable, frozen = plan.partition(named_params(model))
    tx = freeze.optimizer(plan, trainable, optax.adamw(1e-4))
    grads = jax.grad(lambda t: loss(with_params(model, t | frozen), tokens))(trainable)

A gradual unfreeze is several such phases; `examples/own_loop.py` is a whole loop over them.
"""

from jaxgpt.freeze.plan import FROZEN, Phase, Plan
from jaxgpt.freeze.strategies import GRAMMAR, parse
from jaxgpt.freeze.transforms import optimizer, thaw

__all__ = ["FROZEN", "GRAMMAR", "Phase", "Plan", "optimizer", "parse", "thaw"]
