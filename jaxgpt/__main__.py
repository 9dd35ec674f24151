"""python -m jaxgpt check MODEL: whether it is loaded right. python -m jaxgpt generate MODEL: text from it."""

import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from convert.errors import InputError, one_clear_line


@dataclass(frozen=True)
class Generate:
    """Continues prompts with a model's own words, which appear as they come."""

    model: Annotated[str, tyro.conf.Positional]
    """tiny, a Hugging Face folder, a .safetensors file, an Orbax checkpoint, a training run, or a hub name."""
    prompt: tuple[str, ...] = ("The",)
    """Texts to begin with, side by side in one batch; - is standard input."""
    max_new_tokens: int = 100
    """Tokens to add at most: a text also ends at the model's end token."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings."""
    truncate: Literal["left"] | None = None
    """left: of a prompt that is too long for the context only the end is used; otherwise it is refused."""
    temperature: float = 0.8
    """0 takes the likeliest token each time; larger is more surprising."""
    top_k: int | None = 40
    """Draw among the k likeliest tokens only; None: all."""
    top_p: float | None = None
    """Draw among the fewest tokens whose probabilities sum to at least this; None: all."""
    min_p: float | None = None
    """Draw among tokens at least this times as probable as the likeliest; None: all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens less likely that the text holds already; 1 does nothing."""
    num_samples: int = 1
    """Texts to write for each prompt."""
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
            generate(command)
    sys.exit(0 if fine else 1)


def check(command: Check) -> bool:
    """Prints what the checks found, and tells whether none failed."""
    import jaxgpt
    from convert.source import resolve, tokenizer_files

    model = jaxgpt.from_pretrained(command.model)
    tokenizer = jaxgpt.load_tokenizer(command.model) if tokenizer_files(resolve(command.model)) else None
    report = jaxgpt.check(model, tokenizer, command.against, name=command.model)
    print(json.dumps(report.as_json(), indent=2, allow_nan=False) if command.json else report)
    return report.ok


def generate(command: Generate) -> None:
    """Prints a text as it comes, or several when all have come."""
    import jaxgpt
    from jaxgpt.sampling import make_samplers
    from jaxgpt.text import write

    texts = [sys.stdin.read() if text == "-" else text for text in command.prompt]
    for text in texts:
        check_prompt(text)
    if not texts:
        raise InputError("--prompt is empty")
    samplers = make_samplers(
        command.temperature, command.top_k, command.top_p, command.min_p, command.repetition_penalty
    )
    model, tokenizer = jaxgpt.from_pretrained(command.model), jaxgpt.load_tokenizer(command.model)
    model = jaxgpt.vocab.mark_padding(model, tokenizer)
    prompts = [fit(tokenizer(text, verbose=False)["input_ids"], command, model.config.n_positions) for text in texts]
    pieces = write(
        model,
        tokenizer,
        prompts,
        max_new_tokens=command.max_new_tokens,
        samplers=samplers,
        stop=command.stop,
        seed=command.seed,
        num_samples=command.num_samples,
    )
    heads = [text for text in texts for _ in range(command.num_samples)]
    if len(heads) == 1:
        print(heads[0], end="", flush=True)
        for (piece,) in pieces:
            print(piece, end="", flush=True)
        print()
        return
    for i, (head, *parts) in enumerate(zip(heads, *pieces, strict=True), 1):
        print(f"--- {i} of {len(heads)}\n{head}{''.join(parts)}")


def check_prompt(text: str) -> None:
    """Refuses what no tokenizer can read."""
    if not text:
        raise InputError("--prompt is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt is not valid UTF-8") from None


def fit(ids: list[int], command: Generate, n_positions: int) -> list[int]:
    """The prompt, or as much of its end as leaves room for the new tokens; what is cut is said."""
    room = max(n_positions - command.max_new_tokens, 0)
    if len(ids) <= room:
        return ids
    if command.truncate is None or not room:
        raise InputError(
            f"the prompt has {len(ids):,} tokens and --max-new-tokens is {command.max_new_tokens:,}, the context has "
            f"{n_positions:,}: ask for less, or use --truncate=left to keep the end of the prompt"
        )
    print(f"jaxgpt: the prompt's first {len(ids) - room:,} of {len(ids):,} tokens were cut off", file=sys.stderr)
    return ids[-room:]


if __name__ == "__main__":
    main()
