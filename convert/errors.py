"""What a user can mend, and how the command lines say it."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """The user's input can't be used: one message that names the cause and what to do; command lines exit with 2."""


@contextlib.contextmanager
def one_clear_line(program: str) -> Iterator[None]:
    """Ends a command line with a message and exit code 2 instead of a traceback, where the user can mend the cause."""
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
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"{program}: {what_failed(error)}", file=sys.stderr)
        sys.exit(2)


def what_failed(error: OSError) -> str:
    """The file and what the operating system says of it."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
