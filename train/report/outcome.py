"""The outcome of a run: its numbers, and the verdict in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from jaxgpt.training.report.figure import short
from jaxgpt.training.run.run_json import PhaseInfo, RunInfo

State = Literal["improved", "worse", "unchanged", "unknown"]
SAME = 5e-4
"""Losses that differ by less are written alike."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run, from its run.json and metrics.jsonl."""

    evaluations: tuple[tuple[int, float], ...]
    """Steps and losses on held-out text; a loss may be infinite or NaN."""
    last_step: int | None
    planned: int
    patience: int | None
    failure: tuple[int, str] | None
    """The step at which training broke off, and why."""
    seconds: float | None
    """In training steps."""
    tokens_per_s: float | None
    """Median of the steps."""
    peak_bytes: float | None
    is_preference: bool
    accuracies: tuple[float, ...] = ()
    """The fraction of held-out pairs whose preferred answer has the higher reward, by evaluation."""

    @classmethod
    def of(cls, info: RunInfo, metrics: Sequence[dict[str, Any]]) -> "Outcome":
        """Return the result of a run."""
        speeds, peaks = (
            [value for value in finite_values(metrics, key) if value > 0] for key in ("tokens_per_s", "peak_memory")
        )
        last = metrics[-1]["step"] if metrics else None
        accuracies = [line["eval_reward_accuracy"] for line in metrics if line.get("eval_reward_accuracy") is not None]
        patience = info.settings.get("patience")
        return cls(
            evaluations=tuple(
                (line["step"], line["eval_loss"]) for line in metrics if line.get("eval_loss") is not None
            ),
            last_step=last,
            planned=max(info.steps, 0),
            patience=patience if type(patience) is int and patience > 0 else None,
            failure=_failure(info, metrics),
            seconds=_seconds(info, metrics, speeds),
            tokens_per_s=median(speeds) if speeds else None,
            peak_bytes=max(peaks, default=None),
            is_preference=info.data.kind.endswith("pairs"),
            accuracies=tuple(accuracies),
        )  # fmt: skip

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The evaluations whose loss is a finite number."""
        return [(step, loss) for step, loss in self.evaluations if math.isfinite(loss)]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best evaluation, the earliest of several."""
        return min(self.finite, key=lambda found: found[1], default=None)

    @property
    def first_loss(self) -> float | None:
        """The loss of the first evaluation."""
        return self.evaluations[0][1] if self.evaluations else None

    @property
    def last_loss(self) -> float | None:
        """The loss of the last evaluation."""
        return self.evaluations[-1][1] if self.evaluations else None

    @property
    def evals_since_best(self) -> int:
        """The number of evaluations after the best one."""
        return sum(step > self.best[0] for step, _ in self.evaluations) if self.best else 0

    @property
    def is_finished(self) -> bool:
        """True if all steps are made."""
        return self.failure is None and self.last_step is not None and self.last_step >= self.planned

    @property
    def is_stopped_early(self) -> bool:
        """True if training ended because no evaluation was better than the best for long enough."""
        waited = self.patience is not None and self.evals_since_best >= self.patience
        is_evaluated = bool(self.evaluations) and self.evaluations[-1][0] == self.last_step
        return self.failure is None and not self.is_finished and waited and is_evaluated

    @property
    def state(self) -> State:
        """How the last loss compares with the first."""
        if len(self.evaluations) < 2:
            return "unknown"
        first, last = self.evaluations[0][1], self.evaluations[-1][1]
        if not math.isfinite(last) or not math.isfinite(first):
            return "worse"
        return "unchanged" if abs(last - first) < SAME else "improved" if last < first else "worse"

    @property
    def badge(self) -> tuple[str, str]:
        """The result in a word or two, and whether that is `good`, `fair` or `bad`."""
        if self.failure:
            return "broke off", "bad"
        if not self.is_finished and not self.is_stopped_early:
            return "unfinished", "fair"
        words = {"improved": "improved", "worse": "worse", "unchanged": "no change", "unknown": "not evaluated"}
        if self.is_stopped_early:
            words |= {"improved": "stopped early", "worse": "stopped early, worse"}
        return words[self.state], {"improved": "good", "worse": "bad"}.get(self.state, "fair")

    @property
    def finding(self) -> str:
        """The course of the held-out loss, without a full stop."""
        what = "The loss on held-out pairs" if self.is_preference else "The held-out loss"
        if not self.evaluations:
            return "No evaluation was recorded"
        (first_step, first), (last_step, last) = self.evaluations[0], self.evaluations[-1]
        if len(self.evaluations) == 1:
            return f"{what} was {_loss(first)} at step {first_step:,}, and was not measured again"
        if not math.isfinite(last):
            return f"{what} went from {_loss(first)} to {_loss(last)}"
        best_step, best = self.best or (last_step, last)
        turned = best_step not in (first_step, last_step) and min(last, first) - best >= SAME
        if self.state == "unchanged":
            return f"{what} did not change overall: {_loss(last)}" + (f", {_loss(best)} at best" if turned else "")
        if self.state == "improved":
            if last - best >= SAME:
                return (
                    f"{what} fell from {_loss(first)} to {_loss(best)} at step {best_step:,}, and then rose to "
                    f"{_loss(last)}"
                )
            return f"{what} fell from {_loss(first)} to {_loss(last)}"
        if turned:
            return (
                f"{what} fell from {_loss(first)} to {_loss(best)} at step {best_step:,}, and then rose above where it "
                f"began, to {_loss(last)}"
            )
        return f"{what} rose from {_loss(first)} to {_loss(last)}"

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.failure:
            return f"Training broke off at step {self.failure[0]:,}: {self.failure[1]}."
        if len(self.evaluations) < 2 or self.last_step is None:
            return f"{self.finding}."
        return f"{self.finding} by step {self.last_step:,}."

    @property
    def remarks(self) -> list[str]:
        """Sentences about how the run ended otherwise, and about what to do next."""
        said, best, made = [], self.best, f"{self.last_step:,}" if self.last_step is not None else "none"
        if self.failure:
            said += [f"{self.finding} before."] if len(self.evaluations) > 1 else []
            said += ["A smaller --lr or a longer --warmup may help; --resume goes on from the last good checkpoint."]
            return said
        if self.is_stopped_early:
            n = self.evals_since_best
            times = "evaluation was" if n == 1 else "evaluations in a row were"
            said.append(f"Training stopped early, at step {made} of {self.planned:,}: {n} {times} no better.")
        elif not self.is_finished:
            said.append(f"Training is not finished: {made} of {self.planned:,} steps are done.")
        if best is not None and self.last_loss is not None and not self.last_loss - best[1] < SAME:
            if best[0] > 0:
                said.append(f"The commands below use the best checkpoint, that of step {best[0]:,}.")
            else:
                said.append("No evaluation was better than the one before training: a smaller --lr may help.")
        return said


def tiles(outcome: Outcome, info: RunInfo) -> list[dict[str, str]]:
    """Return the five numbers that come first, each with a note."""
    return [_loss_tile(outcome), _trained_tile(info), *_time_tiles(outcome), _best_tile(outcome)]


def _loss_tile(outcome: Outcome) -> dict[str, str]:
    found = [loss for _, loss in outcome.evaluations]
    ends = [found[0], found[-1]][: len(found)] if found else []
    note = "no evaluation was recorded"
    if outcome.is_preference and ends:
        right = " → ".join(f"{share:.0%}" for share in dict.fromkeys(outcome.accuracies[:1] + outcome.accuracies[-1:]))
        right = right or "unknown"
        note = f"nats per preference; the preferred answer is ahead in {right} of the pairs"
    elif ends:
        note = f"nats per token; perplexity {' → '.join(f'{_exp(loss):,.1f}' for loss in ends)}"
    if len(found) == 1:
        note += "; not evaluated since"
    return _tile("Held-out loss", " → ".join(map(_loss, ends)) or "unknown", note)


def _trained_tile(info: RunInfo) -> dict[str, str]:
    counts = [phase.trainable for phase in info.phases] or [info.parameters.get("trainable", 0)]
    total, last = info.parameters.get("all", 0), counts[-1]
    share = f"{_percent(last / total)}: {last:,} of {total:,} parameters" if total > 0 else f"{last:,} parameters"
    where = f"; {what_trains(info.phases[-1])}" if info.phases else ""
    if len(counts) > 1:
        share += f"; {counts[0]:,} in the first of {len(counts)} phases"
    return _tile("Trained", short(last), share + (where if len(counts) == 1 else ""))


def _time_tiles(outcome: Outcome) -> list[dict[str, str]]:
    steps = f"{outcome.last_step:,} of {outcome.planned:,} steps" if outcome.last_step is not None else "no step"
    time = duration(outcome.seconds) if outcome.seconds is not None else "unknown"
    rate = f"{outcome.tokens_per_s:,.0f}" if outcome.tokens_per_s is not None else "unknown"
    return [
        _tile("Training time", time, f"{steps}; without compilation and evaluation"),
        _tile("Tokens per second", rate, "median of the steps"),
    ]


def _best_tile(outcome: Outcome) -> dict[str, str]:
    if outcome.best is None:
        return _tile("Best step", "unknown", "no evaluation was recorded")
    step, loss = outcome.best
    where = "before training" if step == 0 else "the last one" if step == outcome.last_step else ""
    return _tile("Best step", f"{step:,}", f"held-out loss {_loss(loss)}{', ' if where else ''}{where}")


def what_trains(phase: PhaseInfo) -> str:
    """Return which modules train in a phase, in words: `blocks 6–11, ln_f`."""
    trained = {name for name, share in phase.trains.items() if share > 0}
    if trained and trained == phase.trains.keys():
        return "every layer" if all(share == 1 for share in phase.trains.values()) else "a part of every layer"
    blocks = sorted(int(name[7:]) for name in trained if name.startswith("blocks.") and name[7:].isdecimal())
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    spans = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    words = [f"block{'s' if len(blocks) > 1 else ''} {', '.join(spans)}"] if spans else []
    words += [
        name for name in phase.trains if name in trained and not (name.startswith("blocks.") and name[7:].isdecimal())
    ]
    return ", ".join(words[:6]) + (" …" if len(words) > 6 else "") or "nothing"


def duration(seconds: float) -> str:
    """Return a time in the two largest units that it has."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    n = round(seconds)
    for size, name, part_size, part in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if n >= size:
            return f"{n // size:,} {name} {n % size // part_size} {part}"
    return f"{n} s"


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _failure(info: RunInfo, metrics: Sequence[dict[str, Any]]) -> tuple[int, str] | None:
    """Return where training broke off: as run.json says, or by a last line whose numbers are not finite."""
    step, why = info.failure.get("step"), info.failure.get("what")
    last = metrics[-1]["step"] if metrics else 0
    if type(step) is int and isinstance(why, str) and last <= step:
        return step, why
    names = {"loss": "the loss", "eval_loss": "the held-out loss", "grad_norm": "the gradient's norm"}
    for name, words in names.items() if metrics else ():
        value = metrics[-1].get(name)
        if value is not None and not math.isfinite(value):
            return last, f"{words} is {value}"
    return None


def _seconds(info: RunInfo, metrics: Sequence[dict[str, Any]], speeds: list[float]) -> float | None:
    """Return the time that the steps took, from their rates and the tokens of a step."""
    size, context = info.settings.get("batch_size"), info.resolved.get("context", info.settings.get("context"))
    if type(size) is not int or type(context) is not int or not speeds or size <= 0 or context <= 0:
        return None
    per_step = size * context * (2 if info.data.kind.endswith("pairs") else 1)
    return sum(per_step / speed for speed in speeds)


def finite_values(metrics: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return the finite values of a field of metrics.jsonl."""
    values = (line.get(key) for line in metrics)
    return [value for value in values if value is not None and math.isfinite(value)]


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2g}" if share == 0 else f"{100 * share:.2g}%"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if abs(loss) < 1e6 or not math.isfinite(loss) else f"{loss:.3g}"


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
