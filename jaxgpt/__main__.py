"""The command `jaxgpt`, also `python -m jaxgpt`: it calls the command that is named."""

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

COMMANDS = {
    "train": ("jaxgpt.training.__main__", "fine-tune a model, or only what --freeze leaves trainable"),
    "generate": ("jaxgpt.commands.generate", "generate text from prompts"),
    "eval": ("jaxgpt.commands.evaluate", "measure loss, perplexity and bits per byte of a text"),
    "check": ("jaxgpt.commands.check", "check that a model was loaded right, on its own or against PyTorch"),
    "report": ("jaxgpt.training.report.command", "write a run's report.html again, or compare several runs"),
    "convert": ("jaxgpt.convert.__main__", "inspect a checkpoint, or convert it between PyTorch and JAX"),
    "push": ("jaxgpt.training.push.command", "upload a run to the Hugging Face hub, with a model card"),
}
"""Where each command is, and what it does. Its module is imported when it is called."""

HARNESS = ": the evaluation harness is python -m jaxgpt.lm_eval; for loss and perplexity, jaxgpt eval"
"""The message for `jaxgpt lm_eval`, which is no command."""

HELP = """usage: jaxgpt COMMAND …

Take a GPT from PyTorch into JAX, fine-tune exactly the layers you choose, and take it back out.

commands, each with --help:
{commands}

examples:
  jaxgpt train --freeze=first6          the demo: the bundled model, in runs/demo
  jaxgpt generate runs/demo             text from it
  jaxgpt convert runs/demo out --to=hf  for transformers

MODEL is a folder, a file, a training run, a hub name such as gpt2, or tiny, the bundled model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out a command line; a mistake of the user's is one message and exit code 2."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name == "train":
        train(rest)
        return
    with quiet_interrupts():
        from jaxgpt.convert.command_line.console import show
        from jaxgpt.convert.command_line.flags import flags_of
        from jaxgpt.convert.command_line.mistakes import one_clear_line
        from jaxgpt.convert.command_line.parser import version
        from jaxgpt.convert.command_line.process import prepare_process
        from jaxgpt.convert.errors import InputError, did_you_mean
        from jaxgpt.convert.exit_codes import ExitCode
    prepare_process()
    with one_clear_line("jaxgpt"):
        if name in ("-h", "--help", "--help-all"):
            listed = "\n".join(f"  {command:<10}{says}" for command, (_, says) in COMMANDS.items())
            show(HELP.format(commands=listed))
        elif name == "--version":
            print(version())
        elif name not in COMMANDS:
            meant = HARNESS if name.replace("-", "_") == "lm_eval" else did_you_mean(name, COMMANDS)
            listed = f": the commands are {', '.join(COMMANDS)}"
            raise InputError(f"there is no command {name!r}{meant or listed}")
    if name not in COMMANDS:
        sys.exit(ExitCode.OK)
    with quiet_interrupts():
        command = importlib.import_module(COMMANDS[name][0])
    with one_clear_line("jaxgpt", flags_of(command.PARSER.command)):
        sys.exit(command.main(rest))


def train(arguments: Sequence[str] | None = None) -> None:
    """Carry out `jaxgpt train`, which answers signals by itself once it is imported."""
    with quiet_interrupts():
        from jaxgpt.training.__main__ import main
    main(arguments)


def convert(arguments: Sequence[str] | None = None) -> None:
    """Carry out `jaxgpt convert`."""
    main(["convert", *(sys.argv[1:] if arguments is None else arguments)])


@contextlib.contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the process without a traceback while packages are imported: nothing has begun."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
