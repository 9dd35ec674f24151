"""`jaxgpt.train`: a run from Python, with the names and defaults of the command line."""

import contextlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxgpt.convert.command_line.flags import defaults_of, flags_of, from_python, values_of
from jaxgpt.convert.command_line.mistakes import in_arguments
from jaxgpt.convert.command_line.process import is_interactive
from jaxgpt.convert.errors import InputError, did_you_mean
from jaxgpt.training.command import settings_given
from jaxgpt.training.failures import TrainingError, describe_failure
from jaxgpt.training.finetune import train as finetune
from jaxgpt.training.loop import Callbacks
from jaxgpt.training.output import logged_output
from jaxgpt.training.run.run import Run
from jaxgpt.training.settings import Settings
from jaxgpt.training.signals import Interrupts

FLAGS = {name: described for name, described in flags_of(Settings).items() if described.group != "compile"}
"""The settings that Python may give; to compile only is a command."""

SWITCHES = {name: values_of(Settings)[name].of is bool or FLAGS[name].may_stand_alone for name in FLAGS}
"""By their names, whether each may be True or False."""


def train(
    model: str | Path | None = None,
    *,
    on_step: Callable[[int, dict[str, float]], Any] | None = None,
    on_evaluate: Callable[[int, float], Any] | None = None,
    verbose: bool | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune a model, and return the run, which is on disk and can be resumed.

    This is `jaxgpt train`: each flag is an argument of the same name and default, so that `--eval-every=10` is
    `eval_every=10`. In a notebook the first interrupt stops the run after the step under way, which is saved;
    `jaxgpt.train(resume="runs/mine")` resumes it.

    Args:
        model: where to start: a folder, a file, a run, or a hub name such as `"gpt2"`; by default the bundled model,
            or that of the run that `resume` or `config` names.
        on_step: is called with each step and its metrics, as metrics.jsonl names them; if it returns True, the run
            stops after the step under way, and is saved.
        on_evaluate: the same with the step and the held-out loss, in nats per token; first with step 0.
        verbose: print what the command prints; by default False in a notebook or a shell, which get a progress bar,
            and True elsewhere. run.log has all of it.

    Raises:
        InputError: a mistake in the arguments, or in what they name; nothing was written.
        TrainingError: the loss is non-finite, a step does not fit into memory, or the run's folder can't be written
            any more; what was saved stays.
    """
    given = settings if model is None else {"model": model, **settings}
    is_quiet = is_interactive() if verbose is None else not verbose
    callbacks = Callbacks(*(shown(function, sys.stdout) for function in (on_step, on_evaluate)))
    try:
        made = settings_given(checked(given))
        with logged_output(is_quiet=is_quiet), Interrupts() as stop:
            finetune(made, stop, callbacks)
    except InputError as error:
        raise InputError(*(in_arguments(line, SWITCHES) for line in error.args)) from None
    except TrainingError as error:
        raise TrainingError(in_arguments(str(error), SWITCHES), error.code) from error.__cause__
    except RuntimeError as error:
        if (failure := describe_failure(error)) is None:
            raise
        raise TrainingError(in_arguments(failure[0], SWITCHES), failure[1]) from error
    return Run(made.out)


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as values of settings.

    Raises:
        InputError: an argument is unknown, of another type, or out of bounds.
    """
    values = values_of(Settings)
    for name in given:
        if name not in SWITCHES:
            raise InputError(f"jaxgpt.train has no argument {name}{did_you_mean(name, SWITCHES)}")
    return {name: from_python(name, value, FLAGS[name], values[name]) for name, value in given.items()}


def shown(function: Callable | None, stream: TextIO) -> Callable | None:
    """Return a callback whose prints go to this stream, also in a run that is quiet."""

    if function is None:
        return None

    def call(*arguments: Any) -> Any:
        with contextlib.redirect_stdout(stream):
            return function(*arguments)

    return call


def _described() -> tuple[inspect.Signature, str]:
    """Return the signature and the docstring of `train`, with every setting by its name."""
    hints, defaults, own = typing.get_type_hints(Settings), defaults_of(Settings), inspect.signature(train)
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hints[name])
        for name in FLAGS
        if name != "model"
    ]
    before = [parameter for parameter in own.parameters.values() if parameter.name != "settings"]
    about = "".join(f"    {name}: {in_arguments(FLAGS[name].help, SWITCHES)}\n" for name in FLAGS if name != "model")
    head, raises, tail = inspect.cleandoc(train.__doc__ or "").partition("\nRaises:")
    return own.replace(parameters=[*before, *further]), f"{head}{about}{raises}{tail}"


train.__signature__, train.__doc__ = _described()  # type: ignore[attr-defined]
