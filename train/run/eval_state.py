"""How a run stands beside its parameters: the best evaluation, and one that a signal cut off."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Standing:
    """What a resumed run has to know; kept with each checkpoint."""

    best_step: int | None = None
    best_loss: float = math.inf
    waited: int = 0
    """Evaluations since the best one."""
    unevaluated: dict[str, float] | None = None
    """Metrics of the checkpoint's step, if it was to be evaluated and was not."""

    def after(self, step: int, eval_loss: float) -> "Standing":
        """How it stands after an evaluation; equals do not count as better."""
        if eval_loss < self.best_loss:
            return Standing(step, eval_loss)
        return replace(self, waited=self.waited + 1, unevaluated=None)

    def as_json(self) -> dict[str, Any]:
        """Infinity is no JSON."""
        return asdict(self) | {"best_loss": self.best_loss if self.best_step is not None else None}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Standing":
        """Of a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        metrics, best = fields["unevaluated"], fields["best_step"]
        return cls(
            None if best is None else int(best),
            math.inf if best is None else float(fields["best_loss"]),
            int(fields["waited"]),
            None if metrics is None else {str(name): float(value) for name, value in metrics.items()},
        )
