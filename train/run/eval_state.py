"""The state of the evaluations of a run: the best one, and one that a signal cut off."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

OLD_NAMES = {"waited": "evals_since_best", "unevaluated": "pending_metrics"}
"""As checkpoints of version 0.1 call two of the fields."""


@dataclass(frozen=True)
class EvalState:
    """The evaluations so far, as a resumed run has to know them; kept with each checkpoint."""

    best_step: int | None = None
    best_loss: float = math.inf
    evals_since_best: int = 0
    """Evaluations since the best one."""
    pending_metrics: dict[str, float] | None = None
    """Metrics of the checkpoint's step, if it was to be evaluated and was not."""

    def after(self, step: int, eval_loss: float) -> "EvalState":
        """Return the state after an evaluation; an equal loss does not count as better."""
        if eval_loss < self.best_loss:
            return EvalState(step, eval_loss)
        return replace(self, evals_since_best=self.evals_since_best + 1, pending_metrics=None)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON, which has no infinity."""
        return asdict(self) | {"best_loss": self.best_loss if self.best_step is not None else None}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "EvalState":
        """Return the state that a checkpoint holds.

        Raises:
            KeyError, TypeError, ValueError: the checkpoint is damaged.
        """
        fields = {OLD_NAMES.get(name, name): value for name, value in fields.items()}
        metrics, best = fields["pending_metrics"], fields["best_step"]
        return cls(
            None if best is None else int(best),
            math.inf if best is None else float(fields["best_loss"]),
            int(fields["evals_since_best"]),
            None if metrics is None else {str(name): float(value) for name, value in metrics.items()},
        )
