"""The help of a command: short by default, all of it or one group on request."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.convert.command_line.console import WIDEST, page_width
from jaxgpt.convert.command_line.flags import Flag, Value, defaults_of, flags_of, spelled, values_of
from jaxgpt.convert.errors import InputError


@dataclass(frozen=True)
class Help:
    """The help of a command, beside its flags."""

    program: str
    """As it is typed: `jaxgpt train`."""
    summary: str
    """The purpose of the command, in a sentence or two."""
    examples: tuple[tuple[str, str], ...] = ()
    """Command lines without the program, and what each does."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Groups of flags by name, in their order, and what they are about."""
    notes: str = ""
    """The last lines, such as exit codes."""


def help_text(command: type, about: Help, group: str | None = None) -> str:
    """Return the help of a command, wrapped to the terminal or else to 80 columns.

    Args:
        group: the name of a group to show in whole; `"all"` for all of them; by default the flags most people need.

    Raises:
        InputError: there is no such group.
    """
    width = page_width()
    flags, values, defaults = flags_of(command), values_of(command), defaults_of(command)
    if group not in (None, "all") and group not in about.groups:
        raise InputError(f"--help={group}: the groups are {', '.join(about.groups)}; --help-all shows all")
    named = [name for name, described in flags.items() if described.is_positional or name not in defaults]
    words = [usage(name, flags[name], values[name]) for name in named]
    parts = [f"usage: {' '.join([about.program, *words, '[FLAGS]'])}"]
    if group in (None, "all"):
        parts.append(textwrap.fill(about.summary, width))
        parts.append(_examples(about, width))
    if group is None and about.groups:
        common = [name for name in flags if flags[name].is_common or flags[name].is_positional]
        parts.append(_entries("most used flags", command, common, width, brief=True))
        parts.append(_groups(about, width))
    elif about.groups:
        for name, title in about.groups.items():
            if group in ("all", name):
                members = [flag for flag in flags if flags[flag].group == name]
                parts.append(_entries(f"{name}: {title}", command, members, width))
    else:
        parts.append(_entries("flags", command, list(flags), width))
    if about.notes and (group == "all" or not about.groups):
        parts.append(textwrap.fill(about.notes, width, break_on_hyphens=False))
    return "\n\n".join(filter(None, parts))


def usage(name: str, flag: Flag, value: Value) -> str:
    """Return how a flag is written: `--steps=N`, `--dtype=float32|bfloat16`, `--[no-]remat`, `--stop TEXT …`."""
    if flag.is_positional:
        return f"{flag.metavar} …" if value.is_tuple else flag.metavar
    if value.of is bool:
        return f"--[no-]{name.replace('_', '-')}"
    if flag.may_stand_alone:
        return f"{spelled(name)} [{flag.metavar}]"
    what = flag.metavar or "|".join(value.choices)
    return f"{spelled(name)} {what} …" if value.is_tuple else f"{spelled(name)}={what}"


def default_in_words(flag: Flag, default: Any) -> str:
    """Return what a flag is worth where it is not given, in words; nothing where that goes without saying."""
    if flag.default_text:
        return flag.default_text
    if default is None or default == () or default is False:
        return ""
    return "on" if default is True else str(default)


def _examples(about: Help, width: int) -> str:
    if not about.examples:
        return ""
    lines = []
    longest = max(len(about.program) + 1 + len(example) for example, _ in about.examples)
    for example, says in about.examples:
        line = f"  {about.program} {example}"
        fits = longest + 6 + max(len(said) for _, said in about.examples) <= width
        lines += [f"{line:<{longest + 4}}{says}"] if fits else [line, f"      {says}"]
    return "\n".join(["examples:", *lines])


def _groups(about: Help, width: int) -> str:
    says = f"all flags: --help-all. One group: --help=GROUP, which is one of {', '.join(about.groups)}."
    return textwrap.fill(says, width, subsequent_indent="  ", break_on_hyphens=False)


def _entries(title: str, command: type, names: list[str], width: int, *, brief: bool = False) -> str:
    flags, values, defaults = flags_of(command), values_of(command), defaults_of(command)
    lines = [f"{title}:"]
    indent = 26 if width >= 100 else 22
    for name in names:
        used, flag = usage(name, flags[name], values[name]), flags[name]
        words = default_in_words(flag, defaults.get(name))
        help = (flag.brief or flag.help.split(". ")[0].rstrip(".")) if brief else flag.help
        says = f"{help} (default: {words})" if words else help
        body = textwrap.wrap(says, min(width, WIDEST) - indent, break_long_words=False, break_on_hyphens=False)
        if len(used) + 4 <= indent:
            lines.append(f"  {used:<{indent - 2}}{body[0]}")
            body = body[1:]
        else:
            lines.append(f"  {used}")
        lines += [" " * indent + line for line in body]
    return "\n".join(lines)
