"""The exit codes of all commands."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended; a table in README.md says the same."""

    OK = 0
    """All was done."""
    FAILED = 1
    """A check failed, a loss was not finite, or a step does not fit into memory: the answer is no."""
    MISTAKE = 2
    """The command can't be carried out as it was given; nothing was written."""
    FAULT = 70
    """A fault of jaxgpt itself, whatever the input: `EX_SOFTWARE` of sysexits.h."""
    DISK = 74
    """A run's folder can't be written to any more: `EX_IOERR` of sysexits.h."""
    STOPPED = 75
    """A signal, or the loss of another process, ended a run that `--resume` goes on with: `EX_TEMPFAIL`."""
