"""A plan in Optax: an optimizer that updates what trains, and its state from one phase to the next."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxgpt.convert.errors import InputError
from jaxgpt.freeze.plan import FROZEN, Phase, Plan
from jaxgpt.params import leaves_by_path, param_name


def optimizer(
    plan: Plan,
    params: Any,
    tx: optax.GradientTransformation | Callable[[Phase], optax.GradientTransformation],
    step: int = 0,
) -> optax.GradientTransformation:
    """Make `tx` update what trains and nothing else: `optax.multi_transform` over the plan's labels.

    State is kept only for what trains, and separately for each phase that thawed something. What reads all gradients,
    such as a clip by global norm, belongs into a chain around this optimizer.

    Args:
        params: a pytree of named parameters, a model or a dict by name: all of them, or only the trainable ones.
        tx: the optimizer, or a function that makes one for each phase.
        step: see `Plan`.
    """
    names = [param_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    labels = plan.labels(names, step)
    tree = jax.tree_util.tree_map_with_path(lambda path, _: labels[param_name(path)], params)
    groups = {FROZEN: optax.set_to_zero()}
    for phase in plan.phases:
        if phase.name in labels.values():
            groups[phase.name] = tx if isinstance(tx, optax.GradientTransformation) else tx(phase)
    return optax.multi_transform(groups, lambda _: tree)


def thaw(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """Return the state of `tx` when a phase begins.

    What trained before keeps its moments and counts, and the rest starts afresh.

    Args:
        tx: the new phase's optimizer.
        params: what trains in it.
        opt_state: the state of the phase before, or None at the first phase.

    Raises:
        InputError: the state is not of an earlier phase of this optimizer.
    """
    before, state = leaves_by_path(opt_state), tx.init(params)
    fresh = leaves_by_path(state)
    if lost := before.keys() - fresh.keys():
        held = min(lost) or "a single number"
        raise InputError(f"opt_state does not match this phase: it holds {held}, which tx.init(params) does not")
    return jax.tree.unflatten(jax.tree.structure(state), [before.get(path, leaf) for path, leaf in fresh.items()])
