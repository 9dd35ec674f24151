"""The difference of a model from the same in PyTorch, for every module's output, and its cause.

A difference is relative to the largest value of the reference at the same position, because single dimensions of real
GPT-2s' streams reach thousands, most of all at the first position.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from jaxgpt.sanity.faults import Fault

# Measured without a fault: up to 6e-6 on the bundled model, 1e-6 on small random ones, 2e-6 on a random 124M. The
# smallest fault that was planted, exact instead of tanh gelu, is 1.7e-4 to 4e-4 at the first block's MLP.
TOLERANCE = 2e-5

AMPLIFIED = 10
"""Where attention's scores are in the hundreds, rounding alone moves its weights by more than the tolerance: 1e-4 was
seen. What differs by little is held against this many times the reference's own rounding error there, float32 against
float64; without a fault the difference was up to 5.6 times that, in 18 random models of such scores."""


@dataclass(frozen=True)
class Difference:
    """The difference of a module's output from the reference's."""

    name: str
    largest: float
    """Max |difference|; infinite where shapes differ or one of the two has no such module."""
    relative: float
    """The largest over positions of max |difference| over max |reference|."""
    rounding: float = 0.0
    """The same of the reference in float32 from itself in float64; 0 where nobody had to know."""

    @property
    def equal(self) -> bool:
        """True if rounding explains it; NaN is never equal."""
        return self.relative <= max(TOLERANCE, AMPLIFIED * self.rounding)


@dataclass(frozen=True)
class Parity:
    """A model's outputs and parameters compared with a reference's."""

    reference: str
    tokens: int
    kl: float
    """KL(reference || ours) of the next token, mean over positions, in nats."""
    top1: float
    """Fraction of positions whose likeliest token is the same."""
    top10: float
    """Mean fraction of the ten likeliest tokens that are the same, in whatever order."""
    modules: tuple[Difference, ...]
    """In the order of the network; the last is `logits`."""
    faults: tuple[Fault, ...]
    """Parameters and config fields that differ; what concerns the first differing module comes first."""
    parameters: int
    """Number of tensors that were compared."""

    @property
    def first(self) -> Difference | None:
        """The first module whose output differs: its inputs were equal."""
        return next((module for module in self.modules if not module.equal), None)

    @property
    def worst(self) -> Difference:
        """The module with the largest relative difference."""
        return max(self.modules, key=lambda module: math.inf if math.isnan(module.relative) else module.relative)

    @property
    def logits(self) -> Difference:
        return self.modules[-1]

    def as_json(self) -> dict[str, Any]:
        """Return its fields, and `first`, the name of the first module that differs, or None."""
        return {**asdict(self), "first": self.first and self.first.name}

    def cause(self, limit: int = 4) -> str:
        """Return the first differing module, and what explains it."""
        if self.first is None:
            return "; ".join(map(str, self.faults[:limit])) + ("; …" if len(self.faults) > limit else "")
        near = [str(fault) for fault in self.faults if fault.concerns(self.first.name)] or list(map(str, self.faults))
        near = near[:limit] + ([f"and {len(self.faults) - limit} more"] if len(near) > limit else [])
        equal = "all parameters and the config are equal, so that it is jaxgpt's code that differs: please report it"
        why = "; ".join(near) or equal
        return f"the first module that differs is {self.first.name}: {why}"

    def table(self, around: int = 3) -> str:
        """Return one line if all is equal, else the modules around the first that differs, and the logits."""
        if self.first is None:
            worst = self.worst
            return f"largest of {len(self.modules)} modules' differences: {worst.name}, {worst.relative:.1e} relative"
        at = self.modules.index(self.first)
        shown = [*self.modules[max(at - around, 0) : at + around + 1], self.logits]
        lines = [f"{'module':24}  {'max |difference|':>16}  {'relative':>9}"]
        for module in dict.fromkeys(shown):
            mark = "  <- the first that differs" if module is self.first else "" if module.equal else "  differs"
            lines.append(f"{module.name:24}  {module.largest:16.2e}  {module.relative:9.1e}{mark}")
        return "\n".join(lines)
