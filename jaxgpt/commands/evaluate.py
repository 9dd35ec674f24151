"""jaxgpt eval MODEL --data=PATH: how well a model predicts a text."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.commands import COMPILE_CACHE, MODEL
from jaxgpt.convert.command_line.console import busy, say
from jaxgpt.convert.command_line.flags import flag
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.errors import InputError, about


@dataclass(frozen=True)
class EvalCommand(ModelFlags):
    """The flags of `jaxgpt eval`."""

    model: str = flag(help=f"The model: {MODEL}.", metavar="MODEL", is_positional=True)
    data: str = flag(
        help="Texts: a file (.jsonl, .json, .csv, .tsv, .parquet, token ids in a .bin, any other as text; .gz and .zst "
        "too), a folder of them, a gs:// URL, or hf:OWNER/NAME[:SPLIT]. An end-of-text (EOS) token follows each text.",
        metavar="PATH",
    )  # fmt: skip
    text_field: str | None = flag(
        None, "The field or column of records that holds the text.", metavar="NAME", default_text="text"
    )
    skip_bad_records: bool = flag(
        False, "Leave out records that can't be read, and print how many. Without this flag, the first is an error."
    )
    cache: Path | None = flag(
        None, "The folder of the cache of tokenised texts.", metavar="PATH", default_text="~/.cache/jaxgpt/tokens"
    )
    context: int | None = flag(
        None, "Tokens in a window.", metavar="N", default_text="the model's, at most 1024",
        low=1, high=2**31 - 1,
    )  # fmt: skip
    stride: int | None = flag(
        None, "Tokens by which each window advances. A stride below the context gives each token more context: a lower "
        "loss, but slower.", metavar="N", default_text="the context", low=1, high=2**31 - 1,
    )  # fmt: skip
    batch_size: int = flag(8, "Windows per batch.", metavar="N", low=1, high=10**6)
    json: bool = flag(False, "Print one JSON object instead of lines.")
    compile_cache: bool = flag(True, COMPILE_CACHE)


HELP = Help(
    program="jaxgpt eval",
    summary="Measure how well a model predicts a text: loss, perplexity and bits per byte.",
    examples=(("runs/mine --data=held-out.txt", ""), ("gpt2 --data=held-out.txt --stride=128", "")),
)

PARSER = Parser(EvalCommand, HELP)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line, and return its exit code."""
    return run(PARSER.parse(arguments))


def run(command: EvalCommand) -> int:
    """Print the loss of a text, and return the exit code."""
    import jaxgpt
    from jaxgpt import convert
    from jaxgpt.compile_cache import use_compile_cache
    from jaxgpt.data.corpus import tokenise
    from jaxgpt.data.sources import check_text_field, find, peek
    from jaxgpt.sanity.verdict import finite

    use_compile_cache(command.compile_cache)
    with about("--data"):
        source = find(command.data, text_field=command.text_field, skip_bad_records=command.skip_bad_records)
        check_text_field(command.text_field, source)
        if peek(source) == "chat":
            raise InputError(
                f"{source.name} holds conversations; eval reads plain texts only: for conversations, see the "
                "evaluations of jaxgpt train"
            )
    checkpoint = convert.read(command.model, **command.how_to_read)
    tokenizer = jaxgpt.load_tokenizer(checkpoint.path)
    jaxgpt.tokenizer.check_vocabulary(tokenizer, checkpoint.config)
    with about("--data"):
        corpus = tokenise(source, tokenizer, cache=command.cache, progress=True)
    for remark in corpus.remarks:
        say(f"jaxgpt: {remark}", sys.stderr)
    with busy(f"loading {command.model}"):
        model, _ = jaxgpt.vocab.match_tokenizer(jaxgpt.from_pretrained(checkpoint), tokenizer)
    jaxgpt.tokenizer.check_vocabulary(tokenizer, model.config, corpus.tokens)
    result = jaxgpt.evaluate(
        model, corpus.tokens, context=command.context, stride=command.stride, batch_size=command.batch_size,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    bits = result.bits_per_byte(corpus.n_bytes) if corpus.n_bytes else None  # of token ids nobody knows the bytes
    if command.json:
        numbers = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": bits}
        counts = {"tokens": result.tokens, "bytes": corpus.n_bytes or None}
        print(json.dumps(finite(numbers | counts), allow_nan=False))
        return 0
    print(f"loss           {result.loss:.4f} nats per token, over {result.tokens:,} tokens")
    print(f"perplexity     {result.perplexity:,.3f}")
    if bits is not None:
        print(f"bits per byte  {bits:.4f}, over {corpus.n_bytes:,} bytes")
    return 0
