"""python -m train: fine-tune a GPT. `--help` explains every flag."""

import os
import sys

import tyro

from convert.errors import one_clear_line
from train.settings import Settings


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is not there
    with one_clear_line("train"):
        settings = tyro.cli(Settings, prog="python -m train", config=(tyro.conf.FlagCreatePairsOff,))
        # after the flags are read: --help answers without the second that importing JAX takes
        from train.loop import train

        sys.exit(train(settings))


if __name__ == "__main__":
    main()
