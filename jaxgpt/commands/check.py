"""jaxgpt check MODEL: whether a model is loaded right."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.commands import COMPILE_CACHE, MODEL
from jaxgpt.convert.command_line.console import busy, terminal_width
from jaxgpt.convert.command_line.flags import flag
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.errors import InputError, about, escaped
from jaxgpt.convert.exit_codes import ExitCode

MOST_BYTES, MOST_TEXTS = 1_000_000, 32
"""How much of a file of texts is read, and how many of its lines are used."""


@dataclass(frozen=True)
class CheckCommand(ModelFlags):
    """The flags of `jaxgpt check`."""

    model: str = flag(help=f"The model: {MODEL}.", metavar="MODEL", is_positional=True)
    against: str | None = flag(
        None, "Compare every layer's output with PyTorch's, and name the first that differs. PATH is the same model, "
        "as a Hugging Face folder or hub name. Needs jaxgpt[torch].", metavar="PATH", default_text="no comparison",
    )  # fmt: skip
    text: Path | None = flag(
        None, "Texts such as the model was trained on, one a line, for the checks of its loss and of what it writes. "
        "Needed if it was not trained on English: on another language, code, molecules …",
        metavar="FILE", default_text="English sentences",
    )  # fmt: skip
    json: bool = flag(False, "Print one JSON object instead of tables.")
    compile_cache: bool = flag(True, COMPILE_CACHE)


HELP = Help(
    program="jaxgpt check",
    summary="Check that a model was loaded right: its loss, what it writes, parameter counts and tokenizer, and, with "
    "--against, its parity with PyTorch.",
    examples=(("gpt2", ""), ("runs/mine --against=mine-hf", "compare every layer with PyTorch")),
    notes="Exit codes: 0 nothing failed; 1 a check failed; 2 a mistake in the command.",
)

PARSER = Parser(CheckCommand, HELP)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line, and return its exit code."""
    return run(PARSER.parse(arguments))


def run(command: CheckCommand) -> int:
    """Print what the checks found, and return the exit code."""
    import jaxgpt
    from jaxgpt import convert
    from jaxgpt.compile_cache import use_compile_cache
    from jaxgpt.convert.source import tokenizer_files

    use_compile_cache(command.compile_cache)
    with busy(f"loading {command.model}"):
        checkpoint = convert.read(command.model, **command.how_to_read)
        model = jaxgpt.from_pretrained(checkpoint)
        tokenizer = jaxgpt.load_tokenizer(checkpoint.path) if tokenizer_files(checkpoint.path) else None
    texts = None if command.text is None else read_texts(command.text)
    with busy("checking"):
        report = jaxgpt.check(model, tokenizer, command.against, name=command.model, texts=texts)
    if command.json:
        print(json.dumps(report.as_json(), indent=2, allow_nan=False))
    else:
        print(escaped(report.rendered(terminal_width()), keep="\n"))
    return ExitCode.OK if report.ok else ExitCode.FAILED


def read_texts(path: Path) -> list[str]:
    """Return the first lines of a file that hold anything.

    Raises:
        InputError: there are none, or the file is not UTF-8.
    """
    with about("--text"):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    with about("--text"), path.open("rb") as file:
        try:
            lines = file.read(MOST_BYTES).decode("utf-8", "strict" if path.stat().st_size <= MOST_BYTES else "ignore")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error})") from None
        texts = [line.strip() for line in lines.splitlines() if line.strip()][:MOST_TEXTS]
        if not texts:
            raise InputError(f"{path} holds no text")
        return texts
