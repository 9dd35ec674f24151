"""`jaxgpt.complete`: from a text, or a conversation, to the text that follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxgpt.chat import render
from jaxgpt.convert.errors import InputError
from jaxgpt.generation.sampling import make_samplers
from jaxgpt.generation.text import write
from jaxgpt.model.gpt import GPT
from jaxgpt.tokenizer import encode_prompt, encode_text
from jaxgpt.vocab import match_tokenizer

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or the messages of a conversation: `[{"role": "user", "content": "…"}]`."""

PROMPT = "prompt must be a text, a conversation (a list of messages), or a list of either"


def complete(
    model: GPT,
    tokenizer: Any,
    prompt: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = 40,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> Any:
    """Return the text that a model writes after a prompt, with the defaults of `jaxgpt generate`.

    It ends before the end token or a stop string, or after `max_new_tokens`. `jaxgpt.generate` does the same in token
    ids, and takes the likeliest token by default.

    Args:
        tokenizer: the model's own, as `jaxgpt.load_tokenizer` returns it.
        prompt: a text; or the messages of a conversation, for the assistant's answer; or a list of either, for a list
            of texts.
        stop: texts before which an answer ends.

    Other arguments are those of `jaxgpt.generate`.

    Raises:
        InputError: a prompt of no tokens, more tokens than the model's context, or no chat template for a conversation.
    """
    is_one = isinstance(prompt, str) or _is_conversation(prompt)
    if not is_one and not isinstance(prompt, (list, tuple)):
        raise InputError(f"{PROMPT}, not {prompt!r}")
    prompts: list[Any] = [prompt] if is_one else list(prompt)
    if not prompts:
        return []
    model, _ = match_tokenizer(model, tokenizer)
    samplers = make_samplers(temperature, top_k, top_p, min_p, repetition_penalty)
    rows = [_ids(tokenizer, item) for item in prompts]
    pieces = write(
        model, tokenizer, rows, max_new_tokens=max_new_tokens, samplers=samplers, stop=stop, seed=seed
    )  # fmt: skip
    texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
    answers = [text if isinstance(item, str) else text.strip() for item, text in zip(prompts, texts, strict=True)]
    return answers[0] if is_one else answers


def _is_conversation(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        if not encode_text(tokenizer, prompt):
            raise InputError(f"prompt {prompt!r} gives no tokens with this tokenizer")
        return encode_prompt(tokenizer, prompt)
    if not _is_conversation(prompt):
        raise InputError(f"{PROMPT}, not {prompt!r}")
    if tokenizer.chat_template is None:
        raise InputError("the tokenizer has no chat template; training on conversations adds one")
    return encode_text(tokenizer, render(tokenizer, [dict(message) for message in prompt], answer=True))
