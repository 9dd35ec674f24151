"""The tokenizer of a checkpoint, and whether it belongs to the model."""

from pathlib import Path
from typing import Any

import numpy as np

from convert.config import GPTConfig
from convert.errors import InputError
from convert.source import resolve, tokenizer_files

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(source: str | Path) -> Any:
    """The transformers tokenizer that lies with a checkpoint; see `from_pretrained` for what `source` may be."""
    path = resolve(source)
    files = tokenizer_files(path)
    if not files:
        raise InputError(f"{source}: no tokenizer lies there (tokenizer.json, or vocab.json and merges.txt)")
    from transformers import AutoTokenizer

    folder = next(iter(files.values())).parent
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a broken file
        raise InputError(f"{folder}: the tokenizer can't be read ({type(error).__name__}: {error})") from None


def check_vocabulary(tokenizer: Any, config: GPTConfig, tokens: np.ndarray | None = None) -> None:
    """Refuses a tokenizer that is not the model's, before any id is looked up: JAX clamps ids that are too large.

    Raises:
        InputError: more tokens than embedding rows, another end of text, or an id in `tokens` that has no row.
    """
    rows, end = config.vocab_size, tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    extend = (
        "extend the model first: jaxgpt.save_pretrained(jaxgpt.resize_vocab(jaxgpt.from_pretrained(MODEL), tokenizer), "
        "NEW, tokenizer=tokenizer), then --model=NEW"
    )
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model only {rows:,} embedding rows; {extend}"
        )
    if end is not None and config.eos_token_id is not None and end != config.eos_token_id:
        raise InputError(
            f"{END_OF_TEXT} is {end} to the tokenizer and {config.eos_token_id} to the model: "
            "they are not of the same vocabulary; use the tokenizer that the model was trained with"
        )
    if tokens is not None and tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < rows:
        raise InputError(f"the data holds token ids up to {int(tokens.max()):,}, the model has {rows:,} rows; {extend}")
