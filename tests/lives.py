"""A process of a run, forked from one that has imported everything: what the test of kills starts thirty times."""

import os
import signal
import sys

from transformers import AutoTokenizer  # noqa: F401

import jaxgpt.train.finetune  # noqa: F401
from jaxgpt.train.__main__ import main


def live(flags: list[str], pipe) -> None:
    """From the command line to the end; what the program says goes into a pipe."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as long as the program has not asked for signals
    for stream in (1, 2):
        os.dup2(pipe.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    print("begins", flush=True)
    sys.argv = ["train", *flags]
    main()
