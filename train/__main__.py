"""python -m train: fine-tune a GPT. `--help` explains every flag."""

import os
import signal
import sys

if __name__ == "__main__":  # the imports take a second, in which there is nothing to save
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(75))

import tyro

from jaxgpt.convert.errors import InputError, one_clear_line
from jaxgpt.train.config import with_config
from jaxgpt.train.settings import Settings
from jaxgpt.train.signals import StopSignals


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is not there
    with one_clear_line("train"):
        flags = with_config(sys.argv[1:])
        settings = tyro.cli(Settings, prog="python -m train", config=(tyro.conf.FlagCreatePairsOff,), args=flags)
        if settings.topology is not None and not settings.compile_only:
            raise InputError(
                f"--topology={settings.topology}: nothing can be trained there; --compile-only says what it would take"
            )
        if settings.compile_only:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)  # nothing to save, and the compiler would not be interrupted
            from jaxgpt.train.compile_only.command import compile_only

            sys.exit(compile_only(settings))
        with StopSignals() as stop:
            # after the flags are read: --help answers without the second that importing JAX takes
            from jaxgpt.train.failures import describe_failure
            from jaxgpt.train.finetune import train

            try:
                sys.exit(train(settings, stop))
            except (RuntimeError, InputError) as error:
                if (found := describe_failure(error)) is None:
                    raise
                print(f"train: {found[0]}", file=sys.stderr)
                stop.leave(found[1])


if __name__ == "__main__":
    main()
