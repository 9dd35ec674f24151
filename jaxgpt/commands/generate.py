"""jaxgpt generate MODEL: text from a model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxgpt.commands import COMPILE_CACHE, MODEL
from jaxgpt.convert.command_line.console import busy, for_terminal, say
from jaxgpt.convert.command_line.flags import flag
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.errors import InputError


@dataclass(frozen=True)
class GenerateCommand(ModelFlags):
    """The flags of `jaxgpt generate`."""

    model: str = flag(
        help=f"The model: {MODEL}.",
        metavar="MODEL",
        is_positional=True,
        group="text",
        brief="a folder, a file, a training run, a hub name, or tiny, the bundled model",
    )
    prompt: tuple[str, ...] = flag(
        ("The",), "Prompts to continue, as one batch. --prompt=- reads standard input, less one newline at its end.",
        metavar="TEXT", group="text", is_common=True, default_text="'The'",
    )  # fmt: skip
    chat: bool = flag(
        False, "Write each prompt as a user's message in the tokenizer's chat template, for models trained on "
        "conversations.",
        group="text", is_common=True,
    )  # fmt: skip
    max_new_tokens: int = flag(
        100, "Tokens to add at most. A text also ends at the model's end-of-text (EOS) token.", metavar="N",
        group="text", is_common=True, low=0, high=10**9,
    )  # fmt: skip
    num_samples: int = flag(
        1, "Texts to write for each prompt.", metavar="N", group="text", is_common=True, low=1, high=10**6
    )
    stop: tuple[str, ...] = flag((), "A text ends before the first of these strings.", metavar="TEXT", group="text")
    truncate: Literal["left"] | None = flag(
        None, "left: if a prompt is too long for the context, keep only its end. Without this flag, it is refused.",
        group="text",
    )  # fmt: skip
    temperature: float = flag(
        0.8, "0 always takes the likeliest token; larger values give more random text. (In Python, the default of "
        "jaxgpt.generate is 0.)", metavar="NUMBER", group="sampling", is_common=True, low=0, high=1e30,
        brief="0 always takes the likeliest token; larger is more random",
    )  # fmt: skip
    top_k: int | None = flag(
        40, "Sample from the N likeliest tokens only. --top-k=None: from "
        "all.", metavar="N", group="sampling", is_common=True,
        low=1, high=2**31 - 1,
    )  # fmt: skip
    top_p: float | None = flag(
        None, "Sample from the fewest tokens whose probabilities sum to at least this.", metavar="FRACTION",
        group="sampling", is_common=True, default_text="all", low=0, is_above=True, high=1,
    )  # fmt: skip
    min_p: float | None = flag(
        None, "Sample from tokens that have at least this share of the likeliest one's probability.",
        metavar="FRACTION", group="sampling", default_text="all", low=0, is_above=True, high=1,
    )  # fmt: skip
    repetition_penalty: float = flag(
        1.0, "Above 1, tokens that the text already holds become less likely. 1 has no effect.", metavar="NUMBER",
        group="sampling", low=1e-6, high=1e6,
    )  # fmt: skip
    seed: int = flag(0, "Seed of the sampling.", metavar="N", group="sampling", low=0, high=2**32 - 1)
    compile_cache: bool = flag(True, COMPILE_CACHE, group="sampling")
    weights: Literal["float", "int8"] = flag(
        "float", "int8: keep the kernels (weight matrices) in 8 bits. On a CPU a single text is faster then, and "
        "several at once are slower.", group="model",
    )  # fmt: skip


HELP = Help(
    program="jaxgpt generate",
    summary="Generate text from prompts. A single text is printed as it comes, several when all are complete.",
    examples=(
        ("tiny --prompt='In the beginning'", "text as it comes"),
        ("runs/chat --chat --prompt='Who was king?'", "an answer"),
        ("gpt2 --prompt A B --num-samples=2 --seed=7", "four texts"),
    ),
    groups={
        "text": "prompts, and how much to write",
        "sampling": "how each token is chosen",
        "model": "what the checkpoint does not say itself",
    },
)

PARSER = Parser(GenerateCommand, HELP)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line, and return its exit code."""
    return run(PARSER.parse(arguments))


def run(command: GenerateCommand) -> int:
    """Write texts, and return the exit code."""
    texts = [read_prompt() if text == "-" else text for text in command.prompt]
    for text in texts or [""]:
        check_prompt(text)
    from jaxgpt.compile_cache import use_compile_cache
    from jaxgpt.generation.sampling import make_samplers
    from jaxgpt.generation.text import write

    use_compile_cache(command.compile_cache)
    samplers = make_samplers(
        command.temperature, command.top_k, command.top_p, command.min_p, command.repetition_penalty
    )
    with busy(f"loading {command.model}"):
        model, tokenizer = load(command)
    heads, ids = encode(command, tokenizer, texts)
    n_positions = model.config.n_positions
    prompts = [fit(row, command, n_positions, f"prompt {i}") for i, row in enumerate(ids, 1)]
    pieces = write(
        model, tokenizer, prompts, max_new_tokens=command.max_new_tokens, samplers=samplers, stop=command.stop,
        seed=command.seed, num_samples=command.num_samples,
    )  # fmt: skip
    heads = [head for head in heads for _ in range(command.num_samples)]
    if len(heads) == 1:
        print_as_it_comes(heads[0], pieces)
        return 0
    with busy("writing"):
        texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
    for i, (head, said) in enumerate(zip(heads, texts, strict=True), 1):
        text = f"{head}{said.lstrip() if command.chat else said}"
        print(f"--- {i} of {len(heads)}\n{for_terminal(text, sys.stdout)}")
    return 0


def read_prompt() -> str:
    """Read a prompt from standard input, without one newline at its end."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError("--prompt=-: standard input is not valid UTF-8") from None


def load(command: GenerateCommand) -> tuple[Any, Any]:
    """Return a model and its tokenizer, which are looked for once and belong together."""
    import jaxgpt
    from jaxgpt import chat_templates, convert

    if command.chat:
        chat_templates.start()
    checkpoint = convert.read(command.model, **command.how_to_read)
    model, tokenizer = (
        jaxgpt.from_pretrained(checkpoint, weights=command.weights),
        jaxgpt.load_tokenizer(checkpoint.path),
    )
    matched, said = jaxgpt.vocab.match_tokenizer(model, tokenizer)
    if matched.config.end_ids != model.config.end_ids:
        say(f"jaxgpt: {said}", sys.stderr)
    return matched, tokenizer


def encode(command: GenerateCommand, tokenizer: Any, texts: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Return what is printed before each text, and the prompts in tokens.

    Raises:
        InputError: a chat is asked for, and the tokenizer has no template for it.
    """
    if not command.chat:
        return list(texts), [prompt_ids(tokenizer, text) for text in texts]
    from jaxgpt.chat import render

    if tokenizer.chat_template is None:
        raise InputError(
            f"--chat: the tokenizer of {command.model} has no chat template; training on conversations adds one"
        )
    asked = [render(tokenizer, [{"role": "user", "content": text}], answer=True) for text in texts]
    ids = [prompt_ids(tokenizer, text, is_whole=True) for text in asked]
    return ([""] if len(texts) == 1 else [f"{text}\n" for text in texts]), ids


def prompt_ids(tokenizer: Any, text: str, *, is_whole: bool = False) -> list[int]:
    """Return the tokens of a prompt.

    Args:
        is_whole: nothing is put before it, as before what a chat template has written.

    Raises:
        InputError: there are none: a tokenizer may leave out what it does not know.
    """
    from jaxgpt.tokenizer import begin_ids, encode_text

    ids = encode_text(tokenizer, text)
    if not ids:
        raise InputError(f"--prompt={text!r} gives no tokens with this tokenizer")
    return ids if is_whole else [*begin_ids(tokenizer), *ids]


def print_as_it_comes(head: str, pieces: Any) -> None:
    """Print a text piece by piece; a text that follows nothing begins without white space."""
    print(for_terminal(head, sys.stdout), end="", flush=True)
    has_begun = bool(head)
    for (piece,) in pieces:
        print(for_terminal(piece if has_begun else piece.lstrip(), sys.stdout), end="", flush=True)
        has_begun = has_begun or bool(piece.strip())
    print()


def check_prompt(text: str) -> None:
    """Refuse a text that no tokenizer can read."""
    if not text:
        raise InputError("--prompt is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt is not valid UTF-8") from None


def fit(ids: list[int], command: GenerateCommand, n_positions: int, name: str) -> list[int]:
    """Return the prompt, or as much of its end as leaves room for the new tokens; say what is cut."""
    room = n_positions - command.max_new_tokens
    if room < 1:
        raise InputError(
            f"--max-new-tokens is {command.max_new_tokens:,}, but must be below the context of {n_positions:,}"
        )
    if len(ids) <= room:
        return ids
    if command.truncate is None:
        raise InputError(
            f"{name} has {len(ids):,} tokens and --max-new-tokens is {command.max_new_tokens:,}, the context has "
            f"{n_positions:,}: ask for less, or use --truncate=left to keep the end of the prompt"
        )
    print(f"jaxgpt: {name}: only the last {room:,} of its {len(ids):,} tokens are used", file=sys.stderr)
    return ids[-room:]
