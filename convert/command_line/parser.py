"""From arguments to a command: only what was given, checked; and help, versions and mistakes."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxgpt.convert.command_line.console import show
from jaxgpt.convert.command_line.flags import Flag, Value, defaults_of, flags_of, from_text, spelled, values_of
from jaxgpt.convert.command_line.help import Help, help_text
from jaxgpt.convert.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Parser:
    """A command line: its command, and what its help says beside the flags."""

    command: type
    help: Help

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the values of the flags that were given, by the names of their fields.

        `--help`, `--help=GROUP`, `--help-all` and `--version` print what they ask for, and end the program.

        Raises:
            InputError: an unknown flag, or a value that is none.
        """
        flags, values = flags_of(self.command), values_of(self.command)
        self._answer(arguments)
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for name, described in flags.items():
            _add(parser, name, described, values[name])
        found, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise InputError(_unknown(unknown[0], flags, self.help.program))
        given: dict[str, Any] = {}
        for name, texts in vars(found).items():
            described, value = flags[name], values[name]
            if isinstance(texts, list):
                given[name] = tuple(from_text(name, text, described, value) for text in texts)
            elif isinstance(texts, bool):
                given[name] = texts
            else:
                given[name] = from_text(name, texts, described, value)
        return given

    def parse(self, arguments: Sequence[str]) -> Any:
        """Return the command that the arguments describe, with defaults for all that was not given.

        Raises:
            InputError: a mistake in the arguments, or one that is missing.
        """
        given, defaults = self.given(arguments), defaults_of(self.command)
        needed = [item for item in flags_of(self.command) if item not in given and item not in defaults]
        if needed:
            described = flags_of(self.command)[needed[0]]
            what = described.metavar if described.is_positional else f"{spelled(needed[0])}={described.metavar}"
            raise InputError(f"{what} is missing; {self.help.program} --help shows what it may be")
        return self.command(**given)

    def _answer(self, arguments: Sequence[str]) -> None:
        before = arguments[: arguments.index("--")] if "--" in arguments else arguments
        for argument in before:
            name, _, group = argument.partition("=")
            if name in ("--help", "-h", "--help-all"):
                show(help_text(self.command, self.help, "all" if name == "--help-all" else group or None))
                sys.exit(0)
            if argument == "--version":
                print(version())
                sys.exit(0)


def version() -> str:
    """Return the name and version of the package."""
    return f"jaxgpt {importlib.metadata.version('jaxgpt')}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def _add(parser: argparse.ArgumentParser, name: str, described: Flag, value: Value) -> None:
    if described.is_positional:
        parser.add_argument(name, nargs="*" if value.is_tuple else "?")
    elif value.of is bool:
        parser.add_argument(spelled(name), dest=name, action=argparse.BooleanOptionalAction)
    elif described.may_stand_alone:
        parser.add_argument(spelled(name), dest=name, nargs="?", const=True)
        parser.add_argument(f"--no-{name}", dest=name, action="store_false")
    elif value.is_tuple:
        parser.add_argument(spelled(name), dest=name, nargs="*", action="extend")
    else:
        parser.add_argument(spelled(name), dest=name)


def _unknown(argument: str, flags: dict[str, Flag], program: str) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"{argument!r} is not expected here; flags begin with --, and {program} --help lists them"
    names = [spelled(flag) for flag, described in flags.items() if not described.is_positional]
    close = did_you_mean(name, names)
    return f"{name} is no flag of {program}{close or '; --help-all lists them'}"
