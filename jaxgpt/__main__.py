"""python -m jaxgpt generate MODEL: text from a checkpoint."""

import os
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


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    command = tyro.extras.subcommand_cli_from_dict({"generate": Generate}, prog="python -m jaxgpt")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is not there
    with one_clear_line("jaxgpt"):
        print(generate(command))


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
