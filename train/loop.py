"""The steps of a run, and what is looked at and kept between them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grain
import jax

from jaxgpt.mesh import batch_sharding
from jaxgpt.train.data.load import train_batches
from jaxgpt.train.distributed import any_process, local_rows, to_devices
from jaxgpt.train.diverged import check_finite
from jaxgpt.train.progress import Progress
from jaxgpt.train.report.console import Evaluation
from jaxgpt.train.run.checkpoints import Checkpoints
from jaxgpt.train.run.eval_state import EvalState
from jaxgpt.train.run.logs import Log
from jaxgpt.train.setup import Setup
from jaxgpt.train.signals import StopSignals
from jaxgpt.train.step.batch import Batch
from jaxgpt.train.step.phases import CompiledPhase, PhaseCompiler
from jaxgpt.train.step.step import TrainState


class TrainLoop:
    """What changes from step to step."""

    def __init__(
        self,
        setup: Setup,
        stop: StopSignals,
        phases: PhaseCompiler,
        evaluation: Evaluation,
        log: Log,
        checkpoints: Checkpoints,
        state: TrainState,
        program: CompiledPhase,
        eval_state: EvalState,
        first: int,
    ):
        self._setup, self._stop, self._phases, self._evaluation = setup, stop, phases, evaluation
        self._log, self._checkpoints, self._program = log, checkpoints, program
        self.state, self.eval_state, self.step = state, eval_state, first
        settings = setup.settings
        self._progress = Progress(first, setup.steps, settings.batch_size * setup.context)
        self._under_way: tuple[int, int, dict[str, Any]] | None = None
        """The last step, its number of trainable parameters, and its metrics, which may still be computed."""
        self._told = False
        """Whether all processes know that one of them was asked to stop."""

    @property
    def done(self) -> bool:
        """Whether the run needs no further step."""
        return is_done(self._setup, self.step, self.eval_state)

    @property
    def _stopping(self) -> bool:
        return self._told or (jax.process_count() == 1 and self._stop.requested.is_set())

    def run(self) -> None:
        """Makes steps until the run is done or asked to stop; the last one is saved.

        Raises:
            Diverged: the loss or the gradient is no number any more; nothing that came of it is saved.
        """
        setup, settings = self._setup, self._setup.settings
        batches = batches_of(setup, self.step)
        batch = next(batches, None)
        while batch is not None:
            if setup.plan.at(self.step) > setup.plan.phases.index(self._program.phase) and not self._thaw():
                break
            # step k + 1 is under way, and the batch of step k + 2, before anything waits for the metrics of step k
            before, (self.state, metrics) = self._under_way, self._program.step(self.state, batch, self._program.rates)
            batch = next(batches, None)
            self.step += 1
            self._settle(before)
            metrics["stop"] = any_process(self._stop.requested.is_set())
            self._under_way = self.step, self._program.n_trainable, metrics
            if self.step % settings.eval_every == 0 or self.step == setup.steps:
                self._evaluate()
            last = self.done or self._stopping
            if last or self.step % settings.checkpoint_every == 0 or self.eval_state.best_step == self.step:
                self._settle(self._under_way)
                self._checkpoints.save(self.state, setup.model.config, self.eval_state)
            if last:
                break
        self._checkpoints.wait()
        self._progress.close()

    def make_up(self, eval_loss: float) -> None:
        """The evaluation of the first step's checkpoint, which a signal had cut off."""
        metrics = dict(self.eval_state.pending_metrics or {})
        self._take(metrics, int(metrics.pop("trainable")), eval_loss)

    def _take(self, metrics: dict[str, float], trainable: int, eval_loss: float) -> None:
        check_finite(self.step, {"the evaluation loss": eval_loss})
        self.eval_state = self.eval_state.after(self.step, eval_loss)
        self._checkpoints.best = self.eval_state.best_step
        self._write(self.step, trainable, metrics, eval_loss)

    def _thaw(self) -> bool:
        """Enters the next phase; false if a signal came while its program was still being compiled."""
        self._settle(self._under_way)
        if self._phases.compiling:
            self._progress.say(f"step {self.step + 1}: waiting for the next phase's program, which is being compiled")
        self._progress.pause()
        entered = self._phases.enter_next(self.state, self._stop)
        self._progress.go_on()
        if entered is None:
            self._checkpoints.save(self.state, self._setup.model.config, self.eval_state)
            return False
        self.state, self._program = entered
        name, trainable = self._program.phase.name, self._program.n_trainable
        self._progress.say(f"step {self.step + 1}: {name} thaws, {trainable:,} parameters train")
        return True

    def _evaluate(self) -> None:
        """The loss on the held-out part; if a signal comes, the resumed run makes up for it."""
        assert self._under_way is not None
        _, trainable, metrics = self._under_way
        self._under_way = None
        metrics = self._fetch(self.step, metrics)
        self._progress.pause()
        eval_loss = self._evaluation.loss(self.state, self._stop)
        self._progress.go_on()
        if eval_loss is None:
            self._told = True
            self.eval_state = replace(self.eval_state, pending_metrics=metrics | {"trainable": trainable})
        else:
            self._take(metrics, trainable, eval_loss)

    def _settle(self, under_way: tuple[int, int, dict[str, Any]] | None) -> None:
        """Waits for a step, and writes what is to be written of it."""
        if under_way is None:
            return
        step, trainable, metrics = under_way
        if self._under_way is under_way:
            self._under_way = None
        metrics = self._fetch(step, metrics)
        if step % self._setup.settings.log_every == 0:
            self._write(step, trainable, metrics)

    def _fetch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """The numbers of a step, which must be finite before anything that came of it is kept."""
        found = jax.tree.map(float, jax.device_get(metrics))
        updates, self._told = found.pop("updates"), self._told or bool(found.pop("stop"))
        check_finite(step, {"the loss": found["loss"], "the gradient's norm": found["grad_norm"]})
        self._progress.advance(found["loss"])
        self._log.updates(step, self._setup.steps, updates, self._setup.modules)
        return found

    def _write(self, step: int, trainable: int, metrics: dict[str, float], eval_loss: float | None = None) -> None:
        speed = self._progress.mark(step)
        self._log.metrics(step, metrics, eval_loss, speed, trainable)
        self._progress.logged(step, metrics["loss"], eval_loss, speed)


def batches_of(setup: Setup, step: int) -> Iterator[Batch]:
    """Batches on their devices, from that of the step after `step` on: the position in the data is the step."""
    settings, place = setup.settings, batch_sharding(setup.mesh)
    n = settings.batch_size
    own = local_rows(place, n)
    batches = train_batches(setup.data.train.rows, n, settings.seed, own)
    options = grain.ReadOptions(num_threads=settings.workers, prefetch_buffer_size=8)
    for batch in batches[step : setup.steps].to_iter_dataset(options):
        yield Batch(**to_devices(batch, own, place, n))


def is_done(setup: Setup, step: int, eval_state: EvalState) -> bool:
    """Whether a run has made all its steps, or waited long enough for a better evaluation."""
    patience = setup.settings.patience
    return step >= setup.steps or (patience is not None and eval_state.evals_since_best >= patience)
