"""python -m jaxgpt check|eval|generate MODEL: whether it is loaded right, its loss on a text, and text from it."""

import json
import os
import sys

import tyro

from jaxgpt.commands import Check, Eval, Generate
from jaxgpt.convert.errors import InputError, one_clear_line


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is not there
    fine = True
    with one_clear_line("jaxgpt"):
        command = tyro.extras.subcommand_cli_from_dict(
            {"check": Check, "eval": Eval, "generate": Generate},
            prog="python -m jaxgpt",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        if isinstance(command, Check):
            fine = check(command)
        elif isinstance(command, Eval):
            evaluate(command)
        else:
            generate(command)
    sys.exit(0 if fine else 1)


def check(command: Check) -> bool:
    """Prints what the checks found, and tells whether none failed."""
    import jaxgpt
    from jaxgpt.convert.source import resolve, tokenizer_files

    model = jaxgpt.from_pretrained(command.model)
    tokenizer = jaxgpt.load_tokenizer(command.model) if tokenizer_files(resolve(command.model)) else None
    report = jaxgpt.check(model, tokenizer, command.against, name=command.model)
    print(json.dumps(report.as_json(), indent=2, allow_nan=False) if command.json else report)
    return report.ok


def evaluate(command: Eval) -> None:
    """Prints loss, perplexity and bits per byte."""
    import jaxgpt
    from jaxgpt.data.corpus import tokenise
    from jaxgpt.data.sources import find, peek
    from jaxgpt.sanity.verdict import finite

    source = find(command.data)
    if peek(source) == "chat":
        raise InputError(f"--data: {source.name} holds conversations, and eval reads texts")
    tokenizer = jaxgpt.load_tokenizer(command.model)
    corpus = tokenise(source, tokenizer, cache=command.cache, progress=True)
    tokens, n_bytes = corpus.tokens, corpus.n_bytes
    model = jaxgpt.vocab.mark_padding(jaxgpt.from_pretrained(command.model), tokenizer)
    jaxgpt.tokenizer.check_vocabulary(tokenizer, model.config, tokens)
    result = jaxgpt.evaluate(
        model,
        tokens,
        context=command.context,
        stride=command.stride,
        batch_size=command.batch_size,
        progress=sys.stderr.isatty(),
    )
    bits = result.bits_per_byte(n_bytes) if n_bytes else None  # of token ids nobody knows the bytes
    if command.json:
        numbers = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": bits}
        print(json.dumps(finite({**numbers, "tokens": result.tokens, "bytes": n_bytes or None}), allow_nan=False))
        return
    print(f"loss           {result.loss:.4f} nats per token, of {result.tokens:,} tokens")
    print(f"perplexity     {result.perplexity:,.3f}")
    if bits is not None:
        print(f"bits per byte  {bits:.4f}, of {n_bytes:,} bytes")


def generate(command: Generate) -> None:
    """Prints a text as it comes, or several when all have come."""
    import jaxgpt
    from jaxgpt.chat import render
    from jaxgpt.generation.sampling import make_samplers
    from jaxgpt.generation.text import write

    texts = [sys.stdin.read().removesuffix("\n") if text == "-" else text for text in command.prompt]
    for text in texts:
        check_prompt(text)
    if not texts:
        raise InputError("--prompt is empty")
    samplers = make_samplers(
        command.temperature, command.top_k, command.top_p, command.min_p, command.repetition_penalty
    )
    model, tokenizer = jaxgpt.from_pretrained(command.model), jaxgpt.load_tokenizer(command.model)
    model = jaxgpt.vocab.mark_padding(model, tokenizer)
    if command.chat:
        if tokenizer.chat_template is None:
            raise InputError(
                f"--chat: the tokenizer of {command.model} has no chat template; train it on conversations"
            )
        asked = [render(tokenizer, [{"role": "user", "content": text}], answer=True) for text in texts]
        ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in asked]
        texts = [""] * len(texts) if len(texts) == 1 else [f"{text}\n" for text in texts]
    else:
        ids = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    prompts = [fit(row, command, model.config.n_positions, f"prompt {i}") for i, row in enumerate(ids, 1)]
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
        begun = bool(heads[0])
        for (piece,) in pieces:
            print(piece if begun else piece.lstrip(), end="", flush=True)
            begun = begun or bool(piece.strip())
        print()
        return
    for i, (head, *parts) in enumerate(zip(heads, *pieces, strict=True), 1):
        said = "".join(parts)
        print(f"--- {i} of {len(heads)}\n{head}{said.lstrip() if command.chat else said}")


def check_prompt(text: str) -> None:
    """Refuses what no tokenizer can read."""
    if not text:
        raise InputError("--prompt is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt is not valid UTF-8") from None


def fit(ids: list[int], command: Generate, n_positions: int, name: str) -> list[int]:
    """The prompt, or as much of its end as leaves room for the new tokens; what is cut is said."""
    room = n_positions - command.max_new_tokens
    if room < 1:
        raise InputError(
            f"--max-new-tokens must be below the context of {n_positions:,}, not {command.max_new_tokens:,}"
        )
    if len(ids) <= room:
        return ids
    if command.truncate is None:
        raise InputError(
            f"{name} has {len(ids):,} tokens and --max-new-tokens is {command.max_new_tokens:,}, the context has "
            f"{n_positions:,}: ask for less, or use --truncate=left to keep the end of the prompt"
        )
    print(f"jaxgpt: {name}: the model reads its last {room:,} of {len(ids):,} tokens", file=sys.stderr)
    return ids[-room:]


if __name__ == "__main__":
    main()
