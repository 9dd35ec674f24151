"""The training loop: step after step, and what is looked at and kept between them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxgpt.training.data.device_batches import device_train_batches
from jaxgpt.training.distributed import any_process
from jaxgpt.training.evaluation import Evaluator
from jaxgpt.training.failures import check_finite
from jaxgpt.training.progress import ProgressBar
from jaxgpt.training.run.checkpoints import Checkpoints
from jaxgpt.training.run.eval_state import EvalState
from jaxgpt.training.run.logs import RunLog
from jaxgpt.training.setup import TrainingInputs
from jaxgpt.training.signals import Stop
from jaxgpt.training.step.optimizer import norm
from jaxgpt.training.step.phases import CompiledPhase, PhaseCompiler, wait
from jaxgpt.training.step.spec import measure_every
from jaxgpt.training.step.step import TrainState


@dataclass(frozen=True)
class Callbacks:
    """Functions of the caller's; a run stops, saved, once one of them returns True."""

    on_step: Callable[[int, dict[str, float]], Any] | None = None
    """Is given each step and its metrics, as metrics.jsonl names them."""
    on_evaluate: Callable[[int, float], Any] | None = None
    """Is given a step and the held-out loss after it, in nats per token; first step 0."""


NO_CALLBACKS = Callbacks()

norm_of = jax.jit(norm)

UnderWay = tuple[int, int, dict[str, Any]]
"""A step, its number of trainable parameters, and its metrics, which may still be computed."""


class TrainLoop:
    """The steps of a run, and the state that changes in them."""

    def __init__(
        self,
        inputs: TrainingInputs,
        stop: Stop,
        compiler: PhaseCompiler,
        evaluator: Evaluator,
        log: RunLog,
        checkpoints: Checkpoints,
        state: TrainState,
        phase: CompiledPhase,
        eval_state: EvalState,
        first: int,
        eval_loss: float,
        callbacks: Callbacks,
    ):
        self._inputs, self._stop, self._compiler, self._evaluator = inputs, stop, compiler, evaluator
        self._log, self._checkpoints, self._phase, self._callbacks = log, checkpoints, phase, callbacks
        self.state, self.eval_state, self.step = state, eval_state, first
        spec = inputs.spec
        self._modules = spec.modules
        self._progress = ProgressBar(first, spec.steps, spec.tokens_per_step, (first, eval_loss))
        self._under_way: UnderWay | None = None
        """The last step, until it is settled."""
        self._is_measured = True
        """True if the updates of the last step are known, and so to be finite."""
        self._is_told = False
        """True when all processes know that one of them was asked to stop."""

    @property
    def is_done(self) -> bool:
        """True if the run needs no further step."""
        return is_done(self._inputs, self.step, self.eval_state)

    @property
    def _is_stopping(self) -> bool:
        return self._is_told or (jax.process_count() == 1 and self._stop.requested.is_set())

    def run(self) -> None:
        """Make steps until the run is done or asked to stop; the last one is saved.

        Raises:
            NonFiniteLoss: nothing that came of the step is saved.
        """
        spec, settings = self._inputs.spec, self._inputs.settings
        batches = device_train_batches(
            self._inputs.data.train.rows, settings.batch_size, settings.seed, spec.mesh,
            first=self.step, last=spec.steps, workers=settings.workers,
        )  # fmt: skip
        batch = next(batches, None)
        while batch is not None:
            if spec.plan.at(self.step) > spec.plan.phases.index(self._phase.phase) and not self._enter_phase():
                break
            if (step := self._next_step()) is None:
                break
            # step k + 1 is under way, and the batch of step k + 2, before anything waits for the metrics of step k
            before = self._under_way
            self.state, metrics = step(self.state, batch, self._phase.rates)
            batch = next(batches, None)
            self.step += 1
            self._settle(before)
            metrics["stop"] = any_process(self._stop.requested.is_set())
            self._under_way = self.step, self._phase.n_trainable, metrics
            if self.step % settings.eval_every == 0 or self.step == spec.steps:
                self._evaluate()
            is_last = self.is_done or self._is_stopping
            if is_last or self.step % settings.checkpoint_every == 0 or self.eval_state.best_step == self.step:
                self._settle(self._under_way)
                self._save()
            if is_last:
                break
        self._checkpoints.wait()
        self._progress.close()

    def finish_evaluation(self, eval_loss: float) -> None:
        """Take the evaluation of the first step's checkpoint, which a signal had cut off."""
        metrics = dict(self.eval_state.pending_metrics or {})
        self._take(metrics, int(metrics.pop("trainable")), eval_loss)

    def _take(self, metrics: dict[str, float], n_trainable: int, eval_loss: float) -> None:
        check_finite(self.step, {"the held-out loss": eval_loss})
        self.eval_state = self.eval_state.after(self.step, eval_loss)
        self._checkpoints.best = self.eval_state.best_step
        self._progress.evaluated(self.step, eval_loss)
        self._write(self.step, n_trainable, metrics | self._evaluator.measured, eval_loss)

    def _enter_phase(self) -> bool:
        """Enter the next phase; return False if a signal came while its program was still being compiled."""
        self._settle(self._under_way)
        if not self._compiler.is_next_ready:
            self._progress.say(f"step {self.step + 1}: waiting while the next phase's program is compiled")
        self._progress.pause()
        entered = self._compiler.enter_next(self.state, self._stop)
        self._progress.go_on()
        if entered is None:
            self._save()
            return False
        self.state, self._phase = entered
        name, n_trainable = self._phase.phase.name, self._phase.n_trainable
        number = 1 + self._inputs.spec.plan.at(self.step)
        self._progress.say(f"step {self.step + 1}: phase {number} begins, {name}: {n_trainable:,} parameters train")
        return True

    def _next_step(self) -> jax.stages.Compiled | None:
        """Return the program of the next step; None if a signal came while it was still being compiled."""
        measuring = self._phase.measuring
        if measuring is None or (self.step + 1) % measure_every(self._inputs.spec.steps):
            return self._phase.step
        if measuring.done():
            return measuring.result()
        self._settle(self._under_way)
        self._progress.say(f"step {self.step + 1}: waiting while the program that measures updates is compiled")
        self._progress.pause()
        step = wait(measuring, self._stop)
        self._progress.go_on()
        if step is None:
            self._save()
        return step

    def _save(self) -> None:
        """Save the state; a step that measured no updates may have left weights that are not finite."""
        if not self._is_measured:
            check_finite(self.step, {"the weights' norm": float(norm_of(self.state.trainable))})
        self._checkpoints.save(self.state, self._inputs.spec.model.config, self.eval_state)

    def _evaluate(self) -> None:
        """Compute the loss on the held-out part; if a signal interrupts it, the resumed run repeats it."""
        assert self._under_way is not None
        _, n_trainable, metrics = self._under_way
        self._under_way = None
        metrics = self._fetch(self.step, metrics)
        self._progress.pause()
        eval_loss = self._evaluator.loss(self.state, self._stop)
        self._progress.go_on()
        if eval_loss is None:
            self._is_told = True
            self.eval_state = replace(self.eval_state, pending_metrics=metrics | {"trainable": n_trainable})
        else:
            self._take(metrics, n_trainable, eval_loss)

    def _settle(self, under_way: UnderWay | None) -> None:
        """Wait for a step, and write its metrics."""
        if under_way is None:
            return
        step, n_trainable, metrics = under_way
        if self._under_way is under_way:
            self._under_way = None
        self._write(step, n_trainable, self._fetch(step, metrics))

    def _fetch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of a step, which must be finite before anything that came of it is kept."""
        found = jax.tree.map(float, jax.device_get(metrics))
        updates = found.pop("updates", None)
        self._is_measured = updates is not None
        self._is_told = bool(found.pop("stop")) or self._is_told
        numbers = {"the loss": "loss", "the gradient's norm": "grad_norm", "the update's norm": "update_norm"}
        check_finite(step, {says: found[name] for says, name in numbers.items() if name in found})
        found.pop("update_norm", None)  # the next loss is of the updated parameters, and this one is of those before
        self._progress.advance(found["loss"])
        if updates is not None:
            self._log.updates(step, self._inputs.spec.steps, updates, self._modules)
        return found

    def _write(self, step: int, n_trainable: int, metrics: dict[str, float], eval_loss: float | None = None) -> None:
        speed = self._progress.speed(step)
        self._log.metrics(step, metrics, eval_loss, speed, n_trainable)
        if self._callbacks.on_step is not None:
            self._stop.ask(self._callbacks.on_step(step, dict(metrics)))
        if self._callbacks.on_evaluate is not None and eval_loss is not None:
            self._stop.ask(self._callbacks.on_evaluate(step, eval_loss))
        if eval_loss is not None or step % self._inputs.settings.log_every == 0:
            self._progress.line(step, metrics["loss"], eval_loss, speed, metrics)


def is_done(inputs: TrainingInputs, step: int, eval_state: EvalState) -> bool:
    """Return whether a run has made all its steps, or waited long enough for a better evaluation."""
    patience = inputs.settings.patience
    return step >= inputs.spec.steps or (patience is not None and eval_state.evals_since_best >= patience)
