"""A plan: the phases of a training, the parameters that each thaws, and those that stay frozen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.params import Rules, count_params, list_modules, match

FROZEN = "frozen"
"""The label of parameters that do not train."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training that thaws what its strategy names, beside all that thawed before."""

    name: str
    """The strategy, and the label of what it thaws."""
    start: int
    """Optimizer steps made before the phase begins."""
    rules: Rules[bool]
    """Rules over names: true for a parameter that thaws."""


@dataclass(frozen=True)
class Plan:
    """A parsed strategy: one phase, or several of a gradual unfreeze.

    A `step` counts the completed optimizer steps.
    """

    text: str
    phases: tuple[Phase, ...]

    def at(self, step: int) -> int:
        """Return the index of the phase to which the step after `step` belongs."""
        if step < 0:
            raise InputError(f"step must be the number of completed steps, 0 or more, not {step}")
        return max(i for i, phase in enumerate(self.phases) if phase.start <= step)

    def labels(self, params: Iterable[str], step: int = 0) -> dict[str, str]:
        """Return for every name the phase that thawed it, or `"frozen"`."""
        params = list(params)
        labels = dict.fromkeys(params, FROZEN)
        for phase in reversed(self.phases[: self.at(step) + 1]):
            labels |= {name: phase.name for name, thaws in match(phase.rules, params).items() if thaws}
        return labels

    def partition(self, params: Mapping[str, Any], step: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters that train, and those that are frozen."""
        labels = self.labels(params, step)
        trainable = {name: p for name, p in params.items() if labels[name] != FROZEN}
        return trainable, {name: p for name, p in params.items() if labels[name] == FROZEN}

    def describe(self, params: Mapping[str, Any], config: GPTConfig) -> str:
        """Return a text that says what trains and what is frozen, with counts.

        It has two lines for each phase, with a heading where there are several phases.
        """
        total, lines = count_params(params), []
        for i, phase in enumerate(self.phases):
            if len(self.phases) > 1:
                lines.append(f"phase {i + 1}     {phase.name}, from step {phase.start + 1:,} on")
            for word, part in zip(("trains", "frozen"), self.partition(params, phase.start), strict=True):
                count = count_params(part)
                lines.append(f"{word}  {count:>13,}  {count / total:6.1%}  {list_modules(part, params, config)}")
        return "\n".join(lines)
