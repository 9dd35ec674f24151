"""The end of a command that can't be carried out: one message, in the words of the command line."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Collection, Iterator

from jaxgpt.convert.command_line.console import show
from jaxgpt.convert.errors import InputError, what_failed
from jaxgpt.convert.exit_codes import ExitCode

ARGUMENT = re.compile(
    r"(?<!\w)'[^']*'"  # in quotes: as it is
    r"|(?<![\w.-])(?P<name>[a-z][a-z0-9_]*)=(?P<value>True|False|[^\s=(),;`']*)"
)
"""An argument of the library in a message, such as `force=True`; quotes come first, so that nothing in them is one."""


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


@contextlib.contextmanager
def one_clear_line(program: str, flags: Collection[str] = ()) -> Iterator[None]:
    """End a command with one message and exit code 2, and no traceback, where the user can mend the cause.

    Args:
        program: what the message begins with.
        flags: the command's flags, by the names of their fields; see `in_flags`.
    """
    if sys.stdout is None or sys.stderr is None:  # closed by the shell, as by >&-
        nowhere = open(os.devnull, "w")  # noqa: SIM115  until the process ends
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a letter is no reason to stop
    try:
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
        show(f"{program}: {what_failed(error)}", sys.stderr)
        sys.exit(ExitCode.MISTAKE)
