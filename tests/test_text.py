"""Text as it comes: pieces add up to the whole, halves are held back, and stop strings end it."""

import numpy as np
import pytest
from conftest import ROOT, run

import jaxgpt
from jaxgpt.sampling import make_samplers
from jaxgpt.text import Text, write


@pytest.fixture(scope="module")
def tiny():
    return jaxgpt.from_pretrained("tiny"), jaxgpt.load_tokenizer("tiny")


def pieces_of(tokenizer, prompt: str, follows: str, stop=(), size: int = 1):
    """What is given when the tokens of `follows` come `size` at a time."""
    head, ids = tokenizer(prompt)["input_ids"], tokenizer(follows)["input_ids"]
    text = Text(tokenizer, np.asarray(head), stop, tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    return [*(text.add(np.asarray(ids[i : i + size])) for i in range(0, len(ids), size)), text.rest()], text


@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_are_the_text_and_never_hold_half_a_character(tiny, size):
    follows = " naïve 日本語 — 👩🏽‍🚀 é\n\ttail  "
    pieces, _ = pieces_of(tiny[1], "The", follows, size=size)
    assert "".join(pieces) == follows
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces[:-1])


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([], "one two three\n\nfour<x>five"),
        (["\n\n"], "one two three"),
        (["four", "two"], "one "),
        (["two three\n", "one"], ""),
        (["<x>"], "one two three\n\nfour"),
        (["<xyz>", "five!"], "one two three\n\nfour<x>five"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_stop_string_ends_the_text_before_it_however_the_tokens_come(tiny, stop, expected, size):
    pieces, text = pieces_of(tiny[1], "zero ", "one two three\n\nfour<x>five", stop, size)
    assert "".join(pieces) == expected
    assert text.ended == (expected != "one two three\n\nfour<x>five")


def test_the_end_token_ends_the_text_and_is_not_part_of_it(tiny):
    pieces, text = pieces_of(tiny[1], "The", " end<|endoftext|> of", size=10)
    assert ("".join(pieces), text.ended) == (" end", True)


def test_written_texts_are_those_of_generate_and_stop_row_by_row(tiny):
    model, tokenizer = tiny
    prompts = tokenizer(["In the beginning", "A"])["input_ids"]
    settings = {"max_new_tokens": 40, "seed": 5}
    rows = jaxgpt.generate(model, prompts, num_samples=2, temperature=0.9, top_k=20, **settings)
    heads = [prompt for prompt in prompts for _ in range(2)]
    whole = [tokenizer.decode(row[len(head) :]) for row, head in zip(rows, heads, strict=True)]
    samplers = make_samplers(0.9, 20)
    pieces = list(write(model, tokenizer, prompts, samplers=samplers, num_samples=2, **settings))
    assert [*map("".join, zip(*pieces, strict=True))] == whole
    stop = whole[0][10:14]
    stopped = list(write(model, tokenizer, prompts, samplers=samplers, num_samples=2, stop=[stop], **settings))
    assert [*map("".join, zip(*stopped, strict=True))] == [text.split(stop)[0] for text in whole]


def test_an_empty_stop_string_is_refused(tiny):
    """At once, and not when the first piece is asked for."""
    for stop in (["a", ""], "ab"):
        with pytest.raises(jaxgpt.InputError, match="none of them empty"):
            write(*tiny, [[1]], max_new_tokens=3, stop=stop)


def test_the_command_line_writes_several_texts_stops_and_cuts_prompts(tmp_path):
    settings = ("--max-new-tokens=20", "--temperature=0")
    alone = run("jaxgpt", "generate", "tiny", "--prompt=In the beginning", *settings).stdout
    both = run("jaxgpt", "generate", "tiny", "--prompt", "A", "In the beginning", *settings).stdout
    assert both.startswith("--- 1 of 2\nA")
    assert both.endswith(f"--- 2 of 2\n{alone}")
    word = alone.split()[6]
    stopped = run("jaxgpt", "generate", "tiny", "--prompt=In the beginning", f"--stop={word}", *settings).stdout
    assert stopped == alone.split(word)[0] + "\n"
    long = (ROOT / "README.md").read_text()
    refused = run("jaxgpt", "generate", "tiny", "--prompt", long, *settings, check=False)
    assert refused.returncode == 2
    assert "the context has 256: ask for less, or use --truncate=left" in refused.stderr
    cut = run("jaxgpt", "generate", "tiny", "--prompt", long, "--truncate=left", *settings)
    assert "prompt 1: the model reads its last 236 of" in cut.stderr
    assert cut.stdout.startswith(long)
