"""A fine-tuning run from top to bottom."""

import contextlib
import math
import time
from dataclasses import asdict, replace

from jaxgpt.compile_cache import use_compile_cache
from jaxgpt.convert.command_line.console import busy, show
from jaxgpt.convert.disk import target_path
from jaxgpt.convert.errors import InputError, escaped, what_failed
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.params import count_params
from jaxgpt.training.command import command_of, resume_command
from jaxgpt.training.data.reference import add_reference
from jaxgpt.training.distributed import connect, disconnect, wait_for_all
from jaxgpt.training.evaluation import Evaluator, sample
from jaxgpt.training.failures import NonFiniteLoss, TrainingError, explain_non_finite
from jaxgpt.training.loop import NO_CALLBACKS, Callbacks, TrainLoop, is_done
from jaxgpt.training.output import log_to
from jaxgpt.training.report.console import draw_new_rows, how_to_use, outcome, sanity_checks
from jaxgpt.training.run.checkpoints import Checkpoints, newest_undamaged
from jaxgpt.training.run.eval_state import EvalState
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.run.logs import RunLog, read_samples
from jaxgpt.training.run.place import FolderGone, FolderRenamed
from jaxgpt.training.run.run_json import RunInfo
from jaxgpt.training.settings import Settings, to_json
from jaxgpt.training.setup import TrainingInputs, prepare
from jaxgpt.training.signals import Stop
from jaxgpt.training.step.phases import PhaseCompiler
from jaxgpt.training.tracking.trackers import Trackers


def train(settings: Settings, stop: Stop, callbacks: Callbacks = NO_CALLBACKS) -> int:
    """Train until the last step or a signal, and return the exit code.

    Raises:
        InputError: a mistake of the user's; nothing was written.
        TrainingError: the loss is non-finite, or the run's folder can't be written any more.
    """
    connect(settings)
    use_compile_cache(settings.compile_cache)
    run = RunFolder(target_path(settings.out))
    try:
        return train_in(run, settings, stop, callbacks)
    except OSError as error:
        if not run.is_begun:
            raise
        raise TrainingError(f"{what_failed(error)}: {newest(run)}", ExitCode.DISK) from error
    finally:
        run.unlock()


def train_in(run: RunFolder, settings: Settings, stop: Stop, callbacks: Callbacks) -> int:
    """Train in a folder, which `prepare` and `start` lock."""
    inputs, params = prepare(settings, run)
    settings = inputs.settings
    compiler, info = PhaseCompiler(inputs.spec), describe_run(inputs)

    # go on from the newest checkpoint that is not damaged, or begin
    resumes = settings.resume or settings.resume_anyway
    with busy("comparing the checkpoint with its digests"):
        first, damaged = newest_undamaged(run.folder) if resumes else (None, {})
    changes = [] if first is None else run.changes(settings, info)
    stop.go_on = "" if first is None else resume_command(settings, run.read().settings)
    if first is None:
        state, eval_state = compiler.init(params), EvalState()
    else:
        checkpoints = Checkpoints(run, settings.keep, inputs.base, standalone=settings.standalone)
        # written by the phase of the last step that was made, also when the next step begins another
        shapes = inputs.spec.state(max(first - 1, 0))
        with busy(f"loading the checkpoint of step {first}"):
            state, eval_state = checkpoints.restore(first, shapes, inputs.spec.model.config, params)
    add_reference(inputs.spec, inputs.data, params, first or 0)
    del params

    # look before the first step, while that is compiled
    is_finished = first is not None and eval_state.pending_metrics is None and is_done(inputs, first, eval_state)
    if not is_finished:
        compiler.begin_ahead(first or 0)
    evaluator = Evaluator(inputs)
    before = evaluator.loss(state, stop)
    if before is None or not math.isfinite(before):
        raise InputError(f"the held-out loss is {before} before training: see jaxgpt check {settings.model}")
    info = replace(info, sanity=sanity_checks(inputs, first or 0, before))
    show(info.sanity)
    if is_finished:
        assert first is not None
        if not run.report.exists():  # a kill came between the last checkpoint and the page
            RunLog(run).sample(first, sample(inputs, state))
            _write_report(run)
        use = how_to_use(run, eval_state.best_step, inputs.is_chat, inputs.has_adapter, settings.ema is not None)
        show(f"\n{escaped(str(run.folder))} is finished: {outcome(inputs, run, first, eval_state)}\n{use}")
        return ExitCode.OK
    text = sample(inputs, state) if first is None else ""
    began = time.time()
    with busy("compiling the training step"):
        state, phase = compiler.begin(state, first or 0)
    print(f"\ncompiled the training step in {phase.seconds:.0f} s", flush=True)

    # all went well so far: the first files
    stop.exits_at_once = False
    tracked = settings.track if run.is_writer else ()
    if first is None:
        first, eval_state = 0, EvalState(0, before)
        run.start(info, settings)
        log_to_run(run)
        wait_for_all("the folder is there")
        trackers = Trackers(tracked, run.folder, asdict(info), first)
        log = RunLog(run, trackers)
        log.metrics(0, evaluator.measured, before, None, phase.n_trainable)
        if callbacks.on_evaluate is not None:
            stop.ask(callbacks.on_evaluate(0, before))
        log.sample(0, text)
        checkpoints = Checkpoints(run, settings.keep, inputs.base, standalone=settings.standalone)
        if inputs.added:
            draw_new_rows(inputs, state, run)
    else:
        run.go_on()
        checkpoints.set_aside(damaged, first)
        trackers = Trackers(tracked, run.folder, asdict(info), first)
        log_to_run(run)
        log = RunLog(run, trackers)
        for lost in () if changes else log.find_lost(first, inputs.spec.steps):
            print(f"{lost}; plots and report go on without what is lost")
        log.truncate(first, eval_state.pending_metrics is None)
        if changes:
            run.note_changes(info, first, changes)
    run.place.remember()
    run.save_tokenizer(inputs.tokenizer)
    stop.go_on = resume_command(settings, to_json(settings) if not resumes else run.read().settings)

    loop = TrainLoop(
        inputs, stop, compiler, evaluator, log, checkpoints, state, phase, eval_state, first, before, callbacks
    )  # fmt: skip
    del state  # the first step donates it
    try:
        if eval_state.pending_metrics is not None:
            loop.finish_evaluation(before)
        if not loop.is_done:
            loop.run()
    except NonFiniteLoss as error:
        checkpoints.wait()
        last_good = run.checkpoints / str(run.last_step) if run.last_step is not None else None
        run.note_failure(error.step, f"{error.name} is {error.value}")
        _write_report(run)
        trackers.close(finished=True)
        raise TrainingError(explain_non_finite(error, inputs, last_good), ExitCode.FAILED) from error
    except OSError as error:
        if isinstance(error, FolderGone):
            checkpoints.abandon()
        good = "its checkpoints are there" if isinstance(error, FolderRenamed) else newest(run)
        message = f"{what_failed(error)}: stopped after step {loop.step}; {good}"
        raise TrainingError(message, ExitCode.DISK) from error
    except Exception:  # a fault of ours: what is being saved is saved to its end
        with contextlib.suppress(Exception):
            checkpoints.wait()
        raise
    finally:
        compiler.close()
    checkpoints.close()
    if not loop.is_done:
        trackers.close(finished=False)
        show(f"stopped after step {loop.step}, which is saved; to resume:\n  {escaped(stop.go_on)}")
        if compiler.is_compiling:
            disconnect()
            stop.leave(ExitCode.STOPPED)
        return ExitCode.STOPPED

    # all is saved
    stop.exits_at_once = True
    log.sample(loop.step, sample(inputs, loop.state))
    trackers.close(finished=True)
    _write_report(run)
    if run.is_writer:
        show(f"\n{read_samples(run.samples)}")
    seconds = time.time() - began
    ended = outcome(inputs, run, loop.step, loop.eval_state, before)
    show(f"{loop.step - first} steps in {seconds:.0f} s: {ended}")
    show(how_to_use(run, loop.eval_state.best_step, inputs.is_chat, inputs.has_adapter, settings.ema is not None))
    return ExitCode.OK


def describe_run(inputs: TrainingInputs) -> RunInfo:
    """Return what run.json says of a run."""
    settings, phases = inputs.settings, inputs.phases
    return RunInfo(
        settings=to_json(settings),
        command=command_of(settings),
        resolved=inputs.resolved,
        steps=inputs.spec.steps,
        data=inputs.data.info,
        parameters={"all": count_params(inputs.spec.params), "trainable": phases[-1].trainable},
        phases=phases,
    )


def newest(run: RunFolder) -> str:
    """Return which checkpoint is the newest one."""
    return f"the newest checkpoint is that of step {run.last_step}" if run.last_step else "there is no checkpoint there"


def log_to_run(run: RunFolder) -> None:
    """Write what is printed into run.log too."""
    if run.is_writer:
        log_to(run.folder)


def _write_report(run: RunFolder) -> None:
    if run.is_writer:
        from jaxgpt.training.report.page import write_report  # late: drawing is not needed before

        with busy("writing report.html"):
            write_report(run.folder)
