"""The set-up of a process that runs a command."""

import gc
import os
import sys


def prepare_process() -> None:
    """Set up this process for a command: called before the heavy packages are imported."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is not there
    # imports and traces make objects by the hundred thousand, nearly all to stay: looking through them after every 700
    # takes a tenth of a start
    gc.set_threshold(100_000, 20, 50)


def is_interactive() -> bool:
    """Tell whether a person types into this process: a notebook or a shell of Python's."""
    return hasattr(sys, "ps1")
