"""Messages of the library in the words of the command line, such as the one that ends a command."""

import contextlib
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping

from jaxgpt.convert.command_line.console import say, show
from jaxgpt.convert.errors import InputError, what_failed
from jaxgpt.convert.exit_codes import ExitCode

ARGUMENT = re.compile(
    r"(?<!\w)'[^']*'"  # in quotes: as it is
    r"|(?<![\w.,-])(?P<name>[a-z][a-z0-9_]*)=(?P<value>True|False|[^\s=(),;`']*)"
)
"""An argument of the library in a message, such as `force=True`; quotes come first, so that nothing in them is one.

After a comma it is an option of something else, as in `lora:r=8,dropout=0.05`.
"""


def in_flags(message: str, flags: Collection[str]) -> str:
    """Turn the arguments that a message of the library names into the flags of a command line.

    `force=True` becomes `--force`, `tie=False` becomes `--no-tie`, `n_head=` and `n_head=5` become `--n-head=` and
    `--n-head=5`. Only names in `flags` are turned, and nothing between quotes, which the user wrote.
    """

    def flag(found: re.Match) -> str:
        name, value = found["name"], found["value"]
        if name not in flags:  # None for quotes
            return found[0]
        name = name.replace("_", "-")
        return {"True": f"--{name}", "False": f"--no-{name}"}.get(value, f"--{name}={value}")

    return ARGUMENT.sub(flag, message)


FLAG = re.compile(
    r"(?<!\w)'[^']*'"  # in quotes: as it is
    r"|(?<![\w-])--(?P<no>no-)?(?P<name>[a-z][a-z-]*)(?:=(?P<value>[^\s,;:()`']*))?(?P<colon>:?)"
)
"""A flag in a message of a command, such as `--resume`, `--out=OTHER` or, as its subject, `--data:`."""


def in_arguments(message: str, switches: Mapping[str, bool]) -> str:
    """Turn the flags that a message of a command names into arguments of Python: `in_flags`, the other way.

    `--force` becomes `force=True`, `--no-standalone` becomes `standalone=False`, `--out=OTHER` stays `out=OTHER`, and
    what a message is about, as in `--data: …`, loses its hyphens. Nothing between quotes is turned.

    Args:
        switches: by the names of the arguments, whether each may be True or False.
    """

    def argument(found: re.Match) -> str:
        name = (found["name"] or "").replace("-", "_")
        if name not in switches:
            return found[0]
        if found["colon"] and found["value"] is None:
            return f"{name}:"
        value = found["value"]
        if value is None:
            value = str(not found["no"]) if switches[name] else ""
        return f"{name}={value}{found['colon']}"

    return FLAG.sub(argument, message)


@contextlib.contextmanager
def one_clear_line(program: str, flags: Collection[str] = ()) -> Iterator[None]:
    """End a command with one message and exit code 2, and no traceback, where the user can mend the cause.

    All other errors are faults of ours: what to report is said, and the exit code is 70. What is logged is shown on
    the way.

    Args:
        program: what the message begins with.
        flags: the command's flags, by the names of their fields; see `in_flags`.
    """
    _fill_closed_descriptors()
    if sys.stdout is None or sys.stderr is None:  # closed by the shell, as by >&-
        nowhere = open(os.devnull, "w")  # noqa: SIM115  until the process ends
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a letter is no reason to stop
    try:
        with _notes_shown(program, flags):
            yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        show(f"{program}: {in_flags(str(error), flags)}", sys.stderr)
        sys.exit(ExitCode.MISTAKE)
    except OSError as error:
        say(f"{program}: {what_failed(error)}", sys.stderr)
        sys.exit(ExitCode.MISTAKE)
    except MemoryError:
        say(f"{program}: this takes more memory than there is", sys.stderr)
        sys.exit(ExitCode.MISTAKE)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of a library in Rust, such as tokenizers, over a file
            say(f"{program}: a file of the tokenizer or the data is damaged ({error})", sys.stderr)
            sys.exit(ExitCode.MISTAKE)
        if not isinstance(error, Exception):
            raise
        if is_of_jax(error):
            say(f"{program}: JAX can't start here ({first_line(error)}): see the variables JAX_* and XLA_*", sys.stderr)
            sys.exit(ExitCode.MISTAKE)
        # nobody's mistake but ours
        _say_what_to_report(program, error)
        sys.exit(ExitCode.FAULT)


def _fill_closed_descriptors() -> None:
    """Let what is closed of standard input, output and error lead nowhere.

    The next file that is opened would get its number, and what libraries in C print: a checkpoint with lines of a log.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def is_of_jax(error: BaseException) -> bool:
    """Tell whether JAX could not be imported, or could not start on the devices that the environment names."""
    where = [(f.f_globals.get("__name__"), f.f_code.co_name) for f, _ in traceback.walk_tb(error.__traceback__)]
    return ("jax", "<module>") in where or where[-1][0] == "jax._src.xla_bridge"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _say_what_to_report(program: str, error: Exception) -> None:
    """Say of a fault of ours what to report: the log that has the traceback, or the traceback itself."""
    notes = getattr(error, "__notes__", [])
    if not notes:
        show("".join(traceback.format_exception(error)), sys.stderr)
    report = "; ".join(notes) or "please report this with the lines above"
    what = f"{type(error).__name__}: {first_line(error)}"
    say(f"{program}: a fault of jaxgpt, and not of your input ({what}): {report}", sys.stderr)


class _Notes(logging.Handler):
    """Shows what is logged as a line on standard error, in flags."""

    def __init__(self, program: str, flags: Collection[str]):
        super().__init__(logging.WARNING)
        self._program, self._flags = program, flags

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(sys.stdout, "name", "") != os.devnull:  # as in all but the first of several processes
            say(f"{self._program}: {in_flags(record.getMessage(), self._flags)}", sys.stderr)


@contextlib.contextmanager
def _notes_shown(program: str, flags: Collection[str]) -> Iterator[None]:
    """Show what is logged where checkpoints and data are read; of commands in each other the inner one does."""
    logs = [logging.getLogger(name) for name in ("jaxgpt.convert", "jaxgpt.data")]
    outer = [(log.handlers, log.propagate) for log in logs]
    if flags:
        for log in logs:
            log.handlers, log.propagate = [_Notes(program, flags)], False  # packages give the root a handler, too
    try:
        yield
    finally:
        for log, (handlers, propagate) in zip(logs, outer, strict=True):
            log.handlers, log.propagate = handlers, propagate
