"""jaxgpt push SRC OWNER/NAME: a run or a checkpoint to the hub."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgpt.convert.checkpoint import read
from jaxgpt.convert.command_line.console import busy, say
from jaxgpt.convert.command_line.flags import flag
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.disk import local_path
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.convert.export import write
from jaxgpt.convert.hub import check_upload, set_license, upload
from jaxgpt.convert.source import tokenizer_files


@dataclass(frozen=True)
class PushCommand(ModelFlags):
    """The flags of `jaxgpt push`."""

    src: str = flag(
        help="A training run, whose newest checkpoint is uploaded, or any other checkpoint.", metavar="SRC",
        is_positional=True,
    )  # fmt: skip
    repo: str = flag(help="The repository on the hub; it is made if it is not there.", metavar="OWNER/NAME",
                     is_positional=True)  # fmt: skip
    license: str = flag(
        help="The licence of the model in the hub's words, such as mit, apache-2.0, other or unknown. The base's "
        "licence binds you too.", metavar="LICENSE", is_common=True,
    )  # fmt: skip
    to: Literal["hf", "peft"] = flag(
        "hf", "hf: the whole model, for transformers, adapters merged. peft: only what a LoRA run adds to --base.",
        is_common=True,
    )  # fmt: skip
    base: str | None = flag(
        None, "With --to=peft: the model that SRC began as.", metavar="MODEL", default_text="the run's --model"
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = flag(
        None, "The type of the numbers.", default_text="that of SRC"
    )
    public: bool = flag(False, "Make a new repository public. Without this flag it is private.", is_common=True)
    message: str = flag("", "The message of the commit.", metavar="TEXT", default_text="Upload a model with jaxgpt")
    force: bool = flag(False, "Replace the model that is in the repository, in a new commit.", is_common=True)


HELP = Help(
    program="jaxgpt push",
    summary="Upload a run to the Hugging Face hub, with a model card made from the run. Log in first: hf auth login.",
    examples=(
        ("runs/mine me/my-gpt2 --license=mit", "the whole model, private"),
        ("runs/lora me/my-adapter --to=peft --license=apache-2.0", "an adapter, for PEFT"),
    ),
)

PARSER = Parser(PushCommand, HELP)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line, and return its exit code."""
    command: PushCommand = PARSER.parse(arguments)
    say(f"{command.src} -> {push(command)}")
    return ExitCode.OK


def push(command: PushCommand) -> str:
    """Upload what a command says, and return the address of the repository.

    Raises:
        InputError: the checkpoint can't be written in that form, or the hub refuses something; nothing was uploaded.
    """
    from jaxgpt.convert.__main__ import base_of

    check_upload(command.repo, command.license, is_login_needed=False)
    with busy(f"reading {command.src}"):
        checkpoint = read(command.src, **command.how_to_read)
    check_upload(command.repo, command.license)
    base_name = base_of(command.src, command.base) if command.to == "peft" else ""
    with tempfile.TemporaryDirectory(prefix="jaxgpt-push-") as parent:
        folder = Path(parent) / "model"
        write(
            folder, checkpoint.params, checkpoint.config, to=command.to, dtype=command.dtype,
            tokenizer=tokenizer_files(checkpoint.path), base=read(base_name) if base_name else None,
            base_name=base_name,
        )  # fmt: skip
        if (local_path(command.src) / "run.json").is_file():
            from jaxgpt.training.push.card import write_card
            from jaxgpt.training.run.run import Run

            write_card(folder / "README.md", Run(command.src), command.repo, command.to, command.license)
        else:
            set_license(folder / "README.md", command.license)
        return upload(folder, command.repo, private=not command.public, message=command.message, force=command.force)
