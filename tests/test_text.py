"""Text as it comes: pieces add up to the whole, halves are held back, and stop strings end it."""

import io

import numpy as np
import pytest
from conftest import ROOT

import jaxgpt
from jaxgpt.commands.generate import GenerateCommand
from jaxgpt.commands.generate import run as write_texts
from jaxgpt.generation.sampling import make_samplers
from jaxgpt.generation.text import Text, write


@pytest.fixture(scope="module")
def tiny(cut):
    return jaxgpt.from_pretrained(cut), jaxgpt.load_tokenizer("tiny")


def pieces_of(tokenizer, prompt: str, follows: str, stop=(), size: int = 1):
    """What is given when the tokens of `follows` come `size` at a time."""
    head, ids = tokenizer(prompt)["input_ids"], tokenizer(follows)["input_ids"]
    text = Text(tokenizer, np.asarray(head), stop, [tokenizer.convert_tokens_to_ids("<|endoftext|>")])
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


@pytest.fixture
def said(capsys):
    """What the command prints, without a process of its own."""

    def run(*prompts, **settings):
        write_texts(GenerateCommand("tiny", prompts, **{"max_new_tokens": 20, "temperature": 0.0, **settings}))
        return capsys.readouterr()

    return run


def test_the_command_writes_several_texts_and_stops(said):
    alone = said("In the beginning").out
    both = said("A", "In the beginning").out
    assert both.startswith("--- 1 of 2\nA")
    assert both.endswith(f"--- 2 of 2\n{alone}")
    word = alone.split()[6]
    assert said("In the beginning", stop=(word,)).out == alone.split(word)[0] + "\n"


def test_the_command_cuts_a_prompt_that_is_too_long_only_when_told(said):
    long = (ROOT / "README.md").read_text()
    with pytest.raises(
        jaxgpt.InputError, match=r"prompt 1 has .* the context has 256: ask for less, or use --truncate"
    ):
        said(long)
    with pytest.raises(jaxgpt.InputError, match="--max-new-tokens is 256, but must be below the context of 256"):
        said(long, truncate="left", max_new_tokens=256)
    cut = said(long, truncate="left")
    assert "prompt 1: only the last 236 of its" in cut.err
    assert cut.out.startswith(long)


def test_the_command_reads_standard_input(said, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("In the beginning\n"))
    assert said("-") == said("In the beginning")
