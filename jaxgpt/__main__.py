"""python -m jaxgpt generate MODEL: text from a checkpoint. python -m jaxgpt check MODEL: whether it is all right."""

import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from convert.errors import InputError, one_clear_line


@dataclass(frozen=True)
class Generate:
    """Continues a prompt with a model's own words."""

    model: Annotated[str, tyro.conf.Positional]
    """tiny, a Hugging Face folder, a .safetensors file, an Orbax checkpoint, a training run, or a hub name."""
    prompt: str = "The"
    """Text to begin with."""
    max_new_tokens: int = 100
    """Tokens to add."""
    temperature: float = 0.8
    """0 takes the likeliest token each time; larger is more surprising."""
    top_k: int | None = 40
    """Draw among the k likeliest tokens only; None: all."""
    top_p: float | None = None
    """Draw among the fewest tokens whose probabilities sum to at least this; None: all."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True)
class Check:
    """Checks loss, text, parameter counts and tokenizer of a model, and its parity with PyTorch.

    Exit code 0: nothing failed. 1: a check failed. 2: a mistake in the command.
    """

    model: Annotated[str, tyro.conf.Positional]
    """tiny, a Hugging Face folder, a .safetensors file, an Orbax checkpoint, a training run, or a hub name."""
    against: str | None = None
    """The same model for PyTorch, a Hugging Face folder or a hub name: the output of every layer is compared with its
    own, and the first that differs is named; needs the extra jaxgpt[torch]. None: no comparison."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"check": Check, "generate": Generate}, prog="python -m jaxgpt", config=(tyro.conf.FlagCreatePairsOff,)
    )
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is not there
    fine = True
    with one_clear_line("jaxgpt"):
        if isinstance(command, Check):
            fine = check(command)
        else:
            print(generate(command))
    sys.exit(0 if fine else 1)


def check(command: Check) -> bool:
    """Prints what the checks found, and tells whether none failed."""
    import jaxgpt
    from convert.source import resolve, tokenizer_files

    model = jaxgpt.from_pretrained(command.model)
    tokenizer = jaxgpt.load_tokenizer(command.model) if tokenizer_files(resolve(command.model)) else None
    report = jaxgpt.check.check(model, tokenizer, command.against, name=command.model)
    print(json.dumps(report.as_json(), indent=2, allow_nan=False) if command.json else report)
    return report.ok


def generate(command: Generate) -> str:
    """The prompt and what follows it."""
    import numpy as np

    import jaxgpt

    try:
        command.prompt.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt is not valid UTF-8") from None
    if not command.prompt:
        raise InputError("--prompt is empty")
    model, tokenizer = jaxgpt.from_pretrained(command.model), jaxgpt.load_tokenizer(command.model)
    model = jaxgpt.vocab.mark_padding(model, tokenizer)
    ids = np.asarray([tokenizer(command.prompt)["input_ids"]], np.int32)
    tokens = jaxgpt.generate(
        model,
        ids,
        max_new_tokens=command.max_new_tokens,
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
        eos_id=model.config.eos_token_id,
    )
    return tokenizer.decode(np.asarray(tokens[0]), skip_special_tokens=True)


if __name__ == "__main__":
    main()
