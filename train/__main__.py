"""jaxgpt train, also python -m train: fine-tune a GPT. `--help` shows the flags."""

import os
import signal
import sys
from collections.abc import Sequence

from jaxgpt.convert.command_line.console import say
from jaxgpt.convert.command_line.mistakes import one_clear_line
from jaxgpt.convert.command_line.process import prepare_process
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.training.output import lasting_output
from jaxgpt.training.signals import StopSignals, heeded


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out a command line; a mistake of the user's is one message and exit code 2."""
    if arguments is None:
        arguments = sys.argv[1:]
    prepare_process()
    for number in heeded():  # until there is something to save
        signal.signal(number, lambda *_: os._exit(ExitCode.STOPPED))
    from jaxgpt.training.command import read_command
    from jaxgpt.training.settings import Settings, flags_of

    with one_clear_line("train", flags_of(Settings)):
        settings = read_command(arguments)
        if settings.compile_only:
            for number in heeded():
                signal.signal(number, signal.SIG_DFL)  # nothing to save, and the compiler would not be interrupted
            from jaxgpt.training.compile_only.command import compile_only

            sys.exit(compile_only(settings))
        with lasting_output(), StopSignals() as stop:
            # JAX is imported after the flags are read, so that --help answers at once
            from jaxgpt.training.failures import TrainingError, describe_failure
            from jaxgpt.training.finetune import train

            try:
                sys.exit(train(settings, stop))
            except TrainingError as error:
                say(f"train: {error}", sys.stderr)
                if error.code == ExitCode.DISK:
                    stop.leave(error.code)  # threads may hang on a lost disk
                sys.exit(error.code)
            except (RuntimeError, InputError) as error:
                failure = describe_failure(error)
                if failure is None:
                    raise
                message, code = failure
                say(f"train: {message}", sys.stderr)
                stop.leave(code)


if __name__ == "__main__":
    main()
