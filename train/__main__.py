"""python -m train: fine-tune a GPT. `--help` explains every flag."""

import sys

import tyro

from train.settings import Settings


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    settings = tyro.cli(Settings, prog="python -m train", config=(tyro.conf.FlagCreatePairsOff,))
    # after the flags are read: --help answers without the second that importing JAX takes
    from convert.errors import InputError
    from train.loop import train

    try:
        sys.exit(train(settings))
    except (InputError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
