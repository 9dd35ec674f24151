"""Which parameters train, and from when on: strategies by name, as labels for `optax.multi_transform`.

Frozen is free when the trainable part alone is differentiated:

    plan = freeze.parse("first6", model.config)
    trainable, frozen = plan.partition(named_params(model))
    tx = freeze.optimizer(plan, trainable, optax.adamw(1e-4))
    grads = jax.grad(lambda t: loss(with_params(model, t | frozen), tokens))(trainable)

A gradual unfreeze is several such phases; `examples/own_loop.py` is a whole loop over them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxgpt import modules
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.errors import InputError
from jaxgpt.freeze import strategies
from jaxgpt.params import Rules, by_path, count_params, match

FROZEN = "frozen"


@dataclass(frozen=True)
class Phase:
    """A stretch of training that thaws what its strategy names, beside all that thawed before."""

    name: str
    """The strategy, and the label of what it thaws."""
    start: int
    """Optimizer steps that are made when it begins."""
    rules: Rules[bool]


@dataclass(frozen=True)
class Plan:
    """A parsed strategy: one phase, or several of a gradual unfreeze. A `step` counts the steps that are made."""

    text: str
    phases: tuple[Phase, ...]

    def at(self, step: int) -> int:
        """Index of the phase to which the step after `step` belongs."""
        if step < 0:
            raise InputError(f"a step is a number of steps that are made, and not {step}")
        return max(i for i, phase in enumerate(self.phases) if phase.start <= step)

    def labels(self, params: Iterable[str], step: int = 0) -> dict[str, str]:
        """For every name the phase that thawed it, or `"frozen"`."""
        params = list(params)
        labels = dict.fromkeys(params, FROZEN)
        for phase in reversed(self.phases[: self.at(step) + 1]):
            labels |= {name: phase.name for name, thaws in match(phase.rules, params).items() if thaws}
        return labels

    def partition(self, params: Mapping[str, Any], step: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters that train, and those that are frozen."""
        labels = self.labels(params, step)
        trainable = {name: p for name, p in params.items() if labels[name] != FROZEN}
        return trainable, {name: p for name, p in params.items() if labels[name] == FROZEN}

    def describe(self, params: Mapping[str, Any], config: GPTConfig) -> str:
        """For a person: what trains and what is frozen, with counts; two lines, and one before them for each phase."""
        total, lines = count_params(params), []
        for i, phase in enumerate(self.phases):
            if len(self.phases) > 1:
                lines.append(f"phase {i + 1}     {phase.name}, after {phase.start:,} steps")
            for word, part in zip(("trains", "frozen"), self.partition(params, phase.start), strict=True):
                count = count_params(part)
                lines.append(f"{word}  {count:>13,}  {count / total:6.1%}  {modules.names(part, params, config)}")
        return "\n".join(lines)


def parse(text: str, config: GPTConfig, steps: int | None = None, *, epoch_steps: float | None = None) -> Plan:
    """The plan that a strategy such as `"first6"` stands for in a model of this shape.

    Args:
        steps: length of the training, which a gradual unfreeze by thirds or percent needs.
        epoch_steps: steps in an epoch, which one by epochs needs.

    Raises:
        InputError: an unknown strategy (the grammar is in the message), or one that leaves something without effect.
    """
    names = [row.ours for row in JAXGPT.expand(config)]
    phases: list[Phase] = []
    for name, after in strategies.schedule(text, config):
        phase = Phase(name, strategies.start_of(text, after, steps, epoch_steps), strategies.rules(text, name, config))
        thaws = {param for param, thawed in match(phase.rules, names).items() if thawed}
        if not thaws:
            raise InputError(
                f"--freeze={text}: {name}: nothing would train; parameters are named like {', '.join(names[:3])}"
            )
        if phases and all(label != FROZEN for label in Plan(text, tuple(phases)).labels(thaws, phase.start).values()):
            raise InputError(f"--freeze={text}: {name} thaws nothing that does not train already")
        if phase.start <= phases[-1].start if phases else phase.start != 0:
            raise InputError(f"--freeze={text}: phases must begin at 0 and each later than the one before, not {after}")
        if steps is not None and phase.start >= steps:
            raise InputError(f"--freeze={text}: {name} would begin after the last of {steps:,} steps")
        phases.append(phase)
    return Plan(text, tuple(phases))


def optimizer(
    plan: Plan,
    params: Any,
    tx: optax.GradientTransformation | Callable[[Phase], optax.GradientTransformation],
    step: int = 0,
) -> optax.GradientTransformation:
    """`tx` for what trains and zero updates for what is frozen, as `optax.multi_transform` over the plan's labels.

    `params` is a pytree of named parameters: a model, or a dict by name, whole or its trainable part alone. State is
    kept for what trains only, apart for each phase that thawed something; `tx` may be made for each of them. Anything
    that reads all gradients, such as a clip by global norm, belongs into a chain around it.
    """
    paths = [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    labels = plan.labels(paths, step)
    tree = jax.tree_util.tree_map_with_path(lambda path, _: labels[name_of(path)], params)
    groups = {FROZEN: optax.set_to_zero()}
    for phase in plan.phases:
        if phase.name in labels.values():
            groups[phase.name] = tx if isinstance(tx, optax.GradientTransformation) else tx(phase)
    return optax.multi_transform(groups, lambda _: tree)


def thaw(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
    """The state of `tx` when a phase begins: what trained keeps its moments and counts, the rest starts afresh.

    Args:
        tx: the new phase's optimizer.
        params: what trains in it.
        opt_state: of the phase before; None where there is none.

    Raises:
        InputError: a state that is not of an earlier phase of this optimizer.
    """
    held, state = by_path(opt_state), tx.init(params)
    fresh = by_path(state)
    if lost := held.keys() - fresh.keys():
        raise InputError(f"opt_state is not of an earlier phase of this optimizer: it holds {min(lost) or 'a number'}")
    return jax.tree.unflatten(jax.tree.structure(state), [held.get(path, leaf) for path, leaf in fresh.items()])


def name_of(path: tuple) -> str:
    """A parameter's dotted name from its path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
