"""jaxgpt report RUN …: write the report of a run again, or compare several runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.convert.command_line.console import say
from jaxgpt.convert.command_line.flags import flag
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.disk import local_path, target_path
from jaxgpt.convert.errors import InputError, about

COMPARISON = "comparison.html"


@dataclass(frozen=True)
class ReportCommand:
    """The flags of `jaxgpt report`."""

    runs: tuple[Path, ...] = flag(
        help="The folder of a run, or of several runs to compare.", metavar="RUN", is_positional=True
    )
    out: Path | None = flag(
        None, "The HTML file to write.", metavar="PATH",
        default_text=f"report.html in the run's folder, with its pictures drawn again; with several runs, {COMPARISON} "
        "in the current folder",
    )  # fmt: skip
    force: bool = flag(False, "Replace --out if it is there already.")


HELP = Help(
    program="jaxgpt report",
    summary="Write the report of a run again, also of one that is still running or was killed; or compare several "
    "runs: their losses, results, and the settings that differ.",
    examples=(("runs/demo", ""), ("runs/a runs/b --out=ab.html", "")),
)

PARSER = Parser(ReportCommand, HELP)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line, and return its exit code."""
    return run(PARSER.parse(arguments))


def run(command: ReportCommand) -> int:
    """Write the page, and return the exit code."""
    from jaxgpt.training.report.comparison import write_comparison
    from jaxgpt.training.report.page import write_report

    folders = [local_path(folder) for folder in command.runs]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: name the folder of a run")
    if command.out is None and len(folders) == 1:
        path = write_report(folders[0])
    else:
        with about("--out"):
            path = target_path(command.out or COMPARISON)
            check_free(path, command.force)
        path = write_report(folders[0], path) if len(folders) == 1 else write_comparison(folders, path)
    say(f"wrote {path}")
    return 0


def check_free(path: Path, force: bool) -> None:
    """Refuse a path that is taken, unless it is a file that may be replaced."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it, such as {path / COMPARISON}")
    if path.is_symlink() or (path.exists() and not force):
        advice = "" if path.is_symlink() else ", or replace it with force=True"
        raise InputError(f"{path} exists already: choose another name{advice}")
