"""A fine-tuning run from top to bottom."""

import math
import sys
import time

from jaxgpt.convert.errors import InputError, what_failed
from jaxgpt.train.distributed import agree_on_step, connect, disconnect, wait_for_all
from jaxgpt.train.diverged import Diverged, explain
from jaxgpt.train.loop import TrainLoop, is_done
from jaxgpt.train.report.console import Evaluation, draw_new_rows, outcome, sample, sanity_checks, written
from jaxgpt.train.report.page import write_report
from jaxgpt.train.run.checkpoints import Checkpoints
from jaxgpt.train.run.eval_state import EvalState
from jaxgpt.train.run.folder import Run
from jaxgpt.train.run.logs import Log
from jaxgpt.train.settings import Settings
from jaxgpt.train.setup import prepare
from jaxgpt.train.signals import STOPPED, StopSignals
from jaxgpt.train.step.phases import PhaseCompiler
from jaxgpt.train.tracking.trackers import Trackers

LOST = 74
"""Exit code of a run whose folder can't be written any more (EX_IOERR of sysexits.h)."""

DIVERGED = 1
"""Exit code of a run whose loss was no number any more."""


def train(settings: Settings, stop: StopSignals) -> int:
    """Runs until the last step, a signal or a loss that is no number, and returns the exit code."""
    connect(settings)
    run = Run(settings.out.expanduser())
    setup, params = prepare(settings, run)
    phases, facts = PhaseCompiler(setup), setup.facts

    # go on from the newest complete checkpoint, or begin
    first = agree_on_step(run.last_step if settings.resume or settings.resume_anyway else None)
    changes = [] if first is None else run.changes(settings, facts)
    if first is None:
        state, eval_state = phases.init(params), EvalState()
    else:
        checkpoints = Checkpoints(run.checkpoints, settings.keep)
        # written by the phase of the last step that was made, also when the next step begins another
        state, eval_state = checkpoints.restore(first, setup.state(max(first - 1, 0)), setup.model.config)
    del params

    # look before the first step
    evaluation = Evaluation(setup)
    before = evaluation.loss(state, stop)
    if before is None or not math.isfinite(before):
        raise InputError(f"the loss on held-out text is {before}: see python -m jaxgpt check {settings.model}")
    facts["sanity"] = sanity_checks(setup, first or 0, before)
    print(facts["sanity"])
    if first is not None and eval_state.pending_metrics is None and is_done(setup, first, eval_state):
        if not run.report.exists():  # a kill came between the last checkpoint and the page
            Log(run).sample(first, sample(setup, state))
            _report(run)
        use = written(run, eval_state.best_step, setup.is_chat)
        print(f"\n{run.folder} is finished: {outcome(setup, run, first, eval_state)}\n{use}")
        return 0
    text = sample(setup, state) if first is None else ""
    began = time.time()
    state, program = phases.begin(state, first or 0)
    print(f"\nthe step is compiled, in {time.time() - began:.0f} s", flush=True)

    # all went well so far: the first files
    stop.at_once = False
    tracked = settings.track if run.writes else ()
    if first is None:
        first, eval_state = 0, EvalState(0, before)
        run.start(settings, facts)
        wait_for_all("the folder is there")
        log = Log(run, trackers := Trackers(tracked, run.folder, settings, facts, first))
        log.metrics(0, None, before, None, program.n_trainable)
        log.sample(0, text)
        checkpoints = Checkpoints(run.checkpoints, settings.keep)
        if setup.added:
            draw_new_rows(setup, state, run)
    else:
        log = Log(run, trackers := Trackers(tracked, run.folder, settings, facts, first))
        log.truncate(first, eval_state.pending_metrics is None)
        if run.writes:
            run.report.unlink(missing_ok=True)  # it would tell of less
        if changes:
            run.note_changes(settings, facts, first, changes)
    run.save_tokenizer(setup.tokenizer)

    steps = TrainLoop(setup, stop, phases, evaluation, log, checkpoints, state, program, eval_state, first)
    del state  # the first step donates it
    try:
        if eval_state.pending_metrics is not None:
            steps.make_up(before)
        if not steps.done:
            steps.run()
    except Diverged as error:
        checkpoints.wait()
        last_good = run.checkpoints / str(run.last_step) if run.last_step is not None else None
        _report(run)
        trackers.close(finished=True)
        print(f"train: {explain(error, setup, last_good)}", file=sys.stderr)
        return DIVERGED
    except OSError as error:
        good = f"the newest checkpoint is that of step {run.last_step}" if run.last_step else "there is no checkpoint"
        print(f"train: {what_failed(error)}: stopped after step {steps.step}; {good}", file=sys.stderr)
        stop.leave(LOST)
    finally:
        phases.close()
    checkpoints.close()
    if not steps.done:
        trackers.close(finished=False)
        print(f"stopped at step {steps.step}, which is saved; the same command with --resume goes on", flush=True)
        if phases.compiling:
            disconnect()
            stop.leave(STOPPED)
        return STOPPED

    # all is saved
    stop.at_once = True
    log.sample(steps.step, sample(setup, steps.state))
    trackers.close(finished=True)
    _report(run)
    if run.writes:
        print(f"\n{run.samples.read_text('utf-8')}")
    seconds = time.time() - began
    print(f"{steps.step - first} steps in {seconds:.0f} s: {outcome(setup, run, steps.step, steps.eval_state, before)}")
    print(written(run, steps.eval_state.best_step, setup.is_chat))
    return 0


def _report(run: Run) -> None:
    if run.writes:
        write_report(run.folder)
