"""What can be asked of `python -m jaxgpt`: a dataclass for each command, a field for each flag."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Generate:
    """Continues prompts with a model's own words: one text appears as it comes, several when all are written."""

    model: Annotated[str, tyro.conf.Positional]
    """tiny, a Hugging Face folder, a .safetensors file, an Orbax checkpoint, a training run, or a hub name."""
    prompt: tuple[str, ...] = ("The",)
    """Texts to begin with, side by side in one batch; - is standard input, without its last line end."""
    chat: bool = False
    """Ask the prompts of a model that was trained on conversations, in its tokenizer's chat template."""
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
    """Draw among tokens that have at least this share of the likeliest one's probability; None: all."""
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


@dataclass(frozen=True)
class Eval:
    """Measures how well a model predicts a text: loss, perplexity and bits per byte."""

    model: Annotated[str, tyro.conf.Positional]
    """tiny, a Hugging Face folder, a .safetensors file, an Orbax checkpoint, a training run, or a hub name."""
    data: str
    """Texts: a file (.jsonl, .json, .parquet, token ids in a .bin, any other as text; .gz and .zst too), a folder of
    them, a gs:// URL, or hf:OWNER/NAME[:SPLIT]. An end token follows each text."""
    cache: Path | None = None
    """Folder that keeps the tokens for the next time; None: ~/.cache/jaxgpt/tokens."""
    context: int | None = None
    """The most tokens that come before one that is predicted; None: the model's own."""
    stride: int | None = None
    """Tokens by which windows advance. Less than the context gives each more before it, a lower loss, and takes longer;
    None: the context."""
    batch_size: int = 8
    """Windows side by side."""
    json: bool = False
    """Print one JSON object instead of lines."""
