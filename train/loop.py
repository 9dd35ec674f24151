"""A fine-tuning run from top to bottom."""

import signal
import time
from typing import Any

import grain
import jax

from jaxgpt.mesh import batch_sharding
from train.checkpoints import Checkpoints
from train.data import train_batches
from train.log import Log
from train.page import write_report
from train.phases import Phases
from train.progress import Progress
from train.report import Evaluation, draw_new_rows, sample, sanity_checks, written
from train.run import Run
from train.settings import Settings
from train.setup import Setup, prepare
from train.trackers import Trackers

STOPPED = 75
"""Exit code of a run that a signal stopped and that --resume finishes (EX_TEMPFAIL of sysexits.h)."""


def train(settings: Settings) -> int:
    """Runs until the last step or a signal, and returns the exit code."""
    run, stop = Run(settings.out.expanduser()), StopSignal()
    setup, params = prepare(settings, run)
    phases, log, facts = Phases(setup), Log(run), setup.facts

    # go on from the newest complete checkpoint, or begin
    first = run.last_step if settings.resume else None
    if first is None:
        state = phases.init(params)
    else:
        run.check_same(settings, setup.data.digest)
        checkpoints = Checkpoints(run.checkpoints, settings.keep)
        # written by the phase of the last step that was made, also when the next step begins another
        state = checkpoints.restore(first, phases.shapes(max(first - 1, 0)))
    del params

    # look before the first step
    stop.listen()
    evaluation = Evaluation(setup)
    before = eval_loss = evaluation.loss(state)
    facts["sanity"] = sanity_checks(setup, first or 0, before)
    print(facts["sanity"])
    if first == settings.steps:
        if not run.report.exists():  # a kill came between the last checkpoint and the page
            log.sample(first, sample(setup, state))
            write_report(run.folder)
        print(f"\n{run.folder} is finished: all {settings.steps} steps are made\n{written(run)}")
        return 0
    text = sample(setup, state) if first is None else None
    began = time.time()
    state, program = phases.begin(state, first or 0)
    print(f"\nthe step is compiled, in {time.time() - began:.0f} s", flush=True)
    if stop.requested:
        print("stopped before the first step; nothing was written")
        return STOPPED

    # all went well so far: the first files
    if first is None:
        first = 0
        run.start(settings, facts)
        trackers = Trackers(settings.track, run, settings, facts, first)
        trackers.log(0, log.metrics(0, None, before, None, program.trainable))
        log.sample(0, text or "")
        trackers.text(0, "sample", text or "")
        checkpoints = Checkpoints(run.checkpoints, settings.keep)
        if setup.added:
            draw_new_rows(setup, state, run)
    else:
        log.truncate(first)
        trackers = Trackers(settings.track, run, settings, facts, first)
    run.save_tokenizer(setup.tokenizer)

    # step k + 1 is under way before the metrics of step k are fetched
    batches, progress = _batches(setup, first), Progress(first, settings.steps, settings.batch_size * setup.context)
    pending: tuple[int, int, dict[str, Any]] | None = None

    def report(step: int, trainable: int, metrics: dict[str, Any], eval_loss: float | None = None) -> None:
        metrics = jax.tree.map(float, jax.device_get(metrics))
        progress.advance(metrics["loss"])
        log.updates(step, settings.steps, metrics.pop("updates"), setup.modules)
        if step % settings.log_every == 0 or eval_loss is not None:
            speed = progress.mark(step)
            trackers.log(step, log.metrics(step, metrics, eval_loss, speed, trainable))
            progress.logged(step, metrics["loss"], eval_loss, speed)

    for step in range(first + 1, settings.steps + 1):
        if setup.plan.at(step - 1) > setup.plan.phases.index(program.phase):
            if pending:
                report(*pending)
                pending = None
            progress.pause()
            state, program = phases.enter_next(state)
            progress.go_on()
            progress.say(f"step {step}: {program.phase.name} thaws, {program.trainable:,} parameters train")
        state, metrics = program.step(state, next(batches), program.rates)
        if pending:
            report(*pending)
        pending, last = (step, program.trainable, metrics), step == settings.steps or stop.requested
        if step % settings.eval_every == 0 or step == settings.steps:
            jax.block_until_ready(metrics)
            progress.pause()
            eval_loss = evaluation.loss(state)
            progress.go_on()
            report(*pending, eval_loss)
            pending = None
        if step % settings.checkpoint_every == 0 or last:
            checkpoints.save(state, setup.model.config)
        if last:
            break
    if pending:
        report(*pending)
    checkpoints.wait()
    phases.close()
    progress.close()
    checkpoints.close()

    if step < settings.steps:
        trackers.close(finished=False)
        print(f"stopped at step {step}, which is saved; the same command with --resume goes on")
        return STOPPED
    text = sample(setup, state)
    log.sample(step, text)
    trackers.text(step, "sample", text)
    trackers.close(finished=True)
    write_report(run.folder)
    print(f"\n{run.samples.read_text('utf-8')}")
    print(f"{step - first} steps in {time.time() - began:.0f} s: evaluation loss {before:.3f} -> {eval_loss:.3f}")
    print(written(run))
    return 0


def _batches(setup: Setup, first: int):
    """Batches on their devices, from that of step `first` on: the position in the data is the step."""
    settings, place = setup.settings, batch_sharding(setup.mesh)
    dataset = train_batches(setup.data, setup.context, settings.batch_size, settings.seed)[first : settings.steps]
    for batch in dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)):
        yield jax.device_put(batch, place)


class StopSignal:
    """Once it listens, SIGINT and SIGTERM ask the loop to stop after its step; a second one stops at once."""

    def __init__(self):
        self.requested = False

    def listen(self) -> None:
        """From here on."""
        self._old = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number, frame) -> None:
        self.requested = True
        for old_number, handler in self._old.items():
            signal.signal(old_number, handler)
