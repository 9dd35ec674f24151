"""What a user can mend, and how the command lines say it."""

import contextlib
import os
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """The user's input can't be used: one message that names the cause and what to do; command lines exit with 2."""


@contextlib.contextmanager
def one_clear_line(program: str) -> Iterator[None]:
    """Ends a command line with a message and exit code 2 instead of a traceback, where the user can mend the cause."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (InputError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
