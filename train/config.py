"""Settings as flags: of an earlier run's run.json, and of a run for its own."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxgpt.convert.errors import InputError
from jaxgpt.train.settings import Settings

NOT_REPEATED = ("config", "resume", "resume_anyway", "force")
"""What a run was told about its folder and not about itself."""


def plain(settings: Settings) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def command(settings: Settings) -> str:
    """The command line that makes a run."""
    return shlex.join(["python", "-m", "train", *as_flags(plain(settings))])


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """The flags that give these settings, for those that differ from the defaults."""
    flags = []
    for name, default in plain(Settings()).items():
        value = settings.get(name, default)
        if name in NOT_REPEATED or value == default:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags.append(flag if value is True else f"{flag}={value}")
    return flags


def with_config(flags: Sequence[str]) -> list[str]:
    """The flags after those that `--config` stands for, so that they have the last word.

    Raises:
        InputError: the file can't be read, or holds no settings, or such as there are not.
    """
    paths = [flag.partition("=")[2] for flag in flags if flag.startswith("--config=")]
    paths += [path for flag, path in pairwise(flags) if flag == "--config"]
    if not paths or "--help" in flags or "-h" in flags:
        return [*flags]
    path = Path(paths[-1]).expanduser()
    try:
        settings = json.loads(path.read_text("utf-8"))["settings"]
        unknown = settings.keys() - {field.name for field in dataclasses.fields(Settings)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--config: {path} is no run.json ({type(error).__name__}: {error})") from None
    if unknown:
        raise InputError(f"--config: {path} holds settings that there are not: {', '.join(sorted(unknown))}")
    return [*as_flags(settings), *flags]
