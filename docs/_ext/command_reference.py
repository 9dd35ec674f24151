"""The reference of a command as Markdown, out of the parser that reads its flags."""

import importlib
import re

from jaxgpt.__main__ import COMMANDS
from jaxgpt.convert.command_line.flags import Flag, Value, defaults_of, flags_of, spelled, values_of
from jaxgpt.convert.command_line.help import default_in_words, usage
from jaxgpt.convert.command_line.parser import Parser

CODE = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:=[^\s,;:()]*[^\s,;:().])?|'[^']+'|\b[A-Z]{2,}=[^\s,;]+|\S*[\\|<>*_@]\S*")
"""Words of a help text that are typed as they are: flags, quoted texts, and what has signs of Markdown in it."""


def parser_of(command: str) -> Parser:
    """Return the parser of a command, which its `--help` and its mistakes come from."""
    module = "jaxgpt.training.command" if command == "train" else COMMANDS[command][0]
    return importlib.import_module(module).PARSER


def typed(name: str, flag: Flag, value: Value) -> list[str]:
    """Return all forms of a flag, as Sphinx's `option` wants them: `--remat`, `--no-remat`."""
    if value.of is bool:
        return [spelled(name), f"--no-{spelled(name).removeprefix('--')}"]
    if flag.may_stand_alone:
        return [f"{spelled(name)} [{flag.metavar}]", f"--no-{name}"]
    return [usage(name, flag, value)]


def as_markdown(text: str) -> str:
    """Return a help text as Markdown: what is typed is code, and no other sign has a meaning."""
    parts, end = [], 0
    for found in CODE.finditer(text):
        code, after = found[0], ""
        while code[-1] in ".,;:)" and not code.endswith(".*"):
            code, after = code[:-1], code[-1] + after
        before = "(" if code.startswith("(") else ""
        parts += [_plain(text[end : found.start()]), before, f"`` {code.removeprefix('(').strip(chr(39))} ``", after]
        end = found.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>$~])", r"\\\1", text)


def introduction(command: str) -> str:
    """Return what a command is for, as Markdown."""
    parser = parser_of(command)
    about, flags, values = parser.help, flags_of(parser.command), values_of(parser.command)
    defaults = defaults_of(parser.command)
    needed = [name for name, flag in flags.items() if flag.is_positional or name not in defaults]
    words = " ".join([about.program, *(usage(name, flags[name], values[name]) for name in needed), "[FLAGS]"])
    examples = [f"{about.program} {line}{f'    # {says}' if says else ''}" for line, says in about.examples]
    lines = [as_markdown(about.summary), "", "```text", f"usage: {words}", "```", ""]
    lines += ["```sh", *examples, "```", ""] if examples else []
    return "\n".join([*lines, as_markdown(about.notes), "", f"```{{program}} {about.program}", "```"])


def groups_of(command: str) -> dict[str, list[str]]:
    """Return the flags of a command by the titles of their groups."""
    parser = parser_of(command)
    flags, groups = flags_of(parser.command), parser.help.groups
    if not groups:
        return {"Flags": list(flags)}
    unknown = {flag.group for flag in flags.values()} - groups.keys()
    assert not unknown, f"{command}: no title for the groups {unknown}"
    return {
        f"{group.capitalize()}: {title}": [name for name in flags if flags[name].group == group]
        for group, title in groups.items()
    }


def describe(command: str, name: str) -> str:
    """Return the description of a flag as Markdown."""
    of = parser_of(command).command
    flag, value, default = flags_of(of)[name], values_of(of)[name], defaults_of(of).get(name)
    words = default_in_words(flag, default)
    words = as_markdown(words) if flag.default_text else words and f"`{words}`"
    lines = [f"````{{option}} {', '.join(typed(name, flag, value))}", as_markdown(flag.help)]
    lines += ["", f"*Default:* {words}"] if words else []
    return "\n".join([*lines, "````"])
