"""From a command line to settings, and back: flags, and what an earlier run had."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.convert.command_line.flags import check_bounds, spelled
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.disk import local_path, target_path
from jaxgpt.convert.errors import InputError, about
from jaxgpt.training.run.run_json import NAME, RunInfo, refusal
from jaxgpt.training.settings import GROUPS, Settings, changed_settings, stored_settings, to_json, trait

HELP = Help(
    program="jaxgpt train",
    summary="Fine-tune a GPT, or only what --freeze leaves trainable. Without any flag, the bundled model is trained "
    "on text that comes with Python.",
    examples=(
        ("--freeze=first6", "the demo: runs/demo"),
        ("--model=gpt2 --data=my.txt --out=runs/mine", "a text of yours"),
        ("--resume runs/mine", "resume a run"),
    ),
    groups=GROUPS,
    notes="Exit codes: 0 done; 1 the loss is non-finite, or a step does not fit into memory; 2 a mistake in the "
    "command, and nothing was written; 70 a fault of jaxgpt; 74 the run's folder can no longer be written; 75 "
    "interrupted by a signal or a lost process: resume with --resume.",
)

PARSER = Parser(Settings, HELP)


def read_command(arguments: Sequence[str]) -> Settings:
    """Return the settings that a command line describes.

    A flag that is given counts first. Where none is, `--resume` takes the setting of the run that it goes on with,
    `--config` that of the run that it names, and else the default counts.

    Raises:
        InputError: a mistake in the flags, or a run that can't be read, or be resumed with these flags.
    """
    return settings_given(PARSER.given(arguments))


def settings_given(given: Mapping[str, Any]) -> Settings:
    """Return the settings that these values of flags describe, by the same rules.

    Raises:
        InputError: as `read_command`.
    """
    given = dict(given)
    if isinstance(named := given.get("resume"), str):
        with about("--resume"):
            folder = local_path(named)
        if "out" in given and given["out"] != folder:
            raise InputError(f"--resume={named} and --out={given['out']} name two runs; one of them is enough")
        if not (folder / NAME).is_file():
            raise InputError(f"--resume={named}: no run is there; to start one, use --out={named}")
        given |= {"resume": True, "out": folder}
    values: dict[str, Any] = {}
    if given.get("config") is not None:
        with about("--config"):
            values = settings_of(given["config"])
    out = given.get("out", values.get("out", Settings().out))
    resumes = given.get("resume") or given.get("resume_anyway")
    if resumes and not given.get("force") and (out / NAME).is_file():
        with about("--resume"):
            earlier = settings_of(out)
        changes = changed_settings(earlier, given)
        if changes and not given.get("resume_anyway"):
            raise InputError(refusal(out, changes))
        values = earlier | {"out": out}
    settings = Settings(**(values | given))
    check_settings(settings)
    return settings


def check_settings(settings: Settings) -> None:
    """Refuse numbers that are out of bounds, and settings that contradict each other.

    Raises:
        InputError: the first of them.
    """
    check_bounds(settings)
    for name in ("out", "cache"):
        if (path := getattr(settings, name)) is not None:
            with about(spelled(name)):
                target_path(path)
    if settings.steps is not None and settings.epochs is not None:
        raise InputError("--steps and --epochs contradict each other: give one of them")
    if settings.objective == "next-token":
        given = [name for name in ("beta", "margin") if getattr(settings, name) is not None]
    else:
        given = [
            name
            for name, usual in (("rows", None), ("train_on", "assistant"), ("text_field", None))
            if getattr(settings, name) != usual
        ]
    if settings.objective != "simpo" and settings.margin is not None:
        given = ["margin"]
    if given:
        raise InputError(f"{spelled(given[0])} has no meaning with --objective={settings.objective}")
    if settings.objective != "next-token" and settings.label_smoothing >= 0.5:
        raise InputError(
            f"--label-smoothing: must be below 0.5 with --objective={settings.objective}, where it is the probability "
            "that a preference is labelled the wrong way round"
        )
    if settings.frozen_dtype != "float32" and settings.standalone:
        raise InputError(
            f"--frozen-dtype={settings.frozen_dtype} rounds what never trains, and --standalone would write that: "
            "leave one of them out"
        )
    if settings.topology is not None and not settings.compile_only:
        raise InputError(
            f"--topology={settings.topology} needs --compile-only, which prints what a step would need there; "
            "training runs on this machine's devices"
        )


def settings_of(run: Path) -> dict[str, Any]:
    """Return the settings of an earlier run that another run may take over, by name.

    Args:
        run: its folder, or the run.json in it.

    Raises:
        InputError: it can't be read, or holds settings that are unknown or of another type.
    """
    path = local_path(run)
    folder = path if path.is_dir() else path.parent
    stored = RunInfo.read(folder).settings
    with about(str(folder)):
        return stored_settings(stored)


def command_of(settings: Settings) -> str:
    """Return the command line that makes a run with these settings."""
    return shlex.join(["jaxgpt", "train", *as_flags(to_json(settings))])


def resume_command(settings: Settings, stored: Mapping[str, Any]) -> str:
    """Return the command line that goes on with a run.

    Args:
        stored: the run's settings in its run.json; what differs from them is said again.
    """
    others = {name: value for name, value in to_json(settings).items() if name != "out"}
    usual = {**to_json(Settings()), **stored}  # a run of an earlier version lacks later settings
    return shlex.join(["jaxgpt", "train", "--resume", str(settings.out), *as_flags(others, usual)])


def as_flags(settings: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> list[str]:
    """Return the flags that give these settings, for those that differ from the usual ones, by default the defaults."""
    flags, repeated = [], trait("is_repeated")
    usual = to_json(Settings()) if usual is None else usual
    for name, value in settings.items():
        if name not in repeated or not repeated[name] or value == usual.get(name):
            continue
        if isinstance(value, list):
            flags += [f"{spelled(name)}={item}" for item in value]  # a value may look like a flag
        elif isinstance(value, bool):
            flags.append(spelled(name) if value else f"--no-{name.replace('_', '-')}")
        else:
            flags.append(f"{spelled(name)}={value}")
    return flags
