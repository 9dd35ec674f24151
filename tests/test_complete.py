"""`jaxgpt.complete`: the command's texts, from Python, for texts, conversations and lists of them."""

import numpy as np
import pytest
from conftest import call

import jaxgpt


@pytest.fixture(scope="module")
def pair():
    return jaxgpt.from_pretrained("tiny"), jaxgpt.load_tokenizer("tiny")


def test_it_writes_what_the_command_writes(pair):
    said = call("jaxgpt", "generate", "tiny", "--prompt=In the", "--max-new-tokens=12", "--seed=3").stdout
    assert f"In the{jaxgpt.complete(*pair, 'In the', max_new_tokens=12, seed=3)}\n" == said


def test_the_likeliest_text_is_that_of_generate_and_ends_before_stop(pair):
    model, tokenizer = pair
    ids = np.asarray(tokenizer(["In the beginning"])["input_ids"])
    out = jaxgpt.generate(model, ids, max_new_tokens=9)[0]
    text = jaxgpt.complete(model, tokenizer, "In the beginning", max_new_tokens=9, temperature=0)
    assert "In the beginning" + text == tokenizer.decode(out)
    several = jaxgpt.complete(model, tokenizer, ["In the beginning", "A"], max_new_tokens=9, temperature=0)
    assert several[0] == text
    stop = text[4:7]
    cut = jaxgpt.complete(model, tokenizer, "In the beginning", max_new_tokens=9, temperature=0, stop=[stop])
    assert cut == text[: text.index(stop)]
    assert jaxgpt.complete(model, tokenizer, []) == []


def test_a_conversation_is_answered_by_its_template(pair):
    model, tokenizer = pair
    with pytest.raises(jaxgpt.InputError, match="no chat template"):
        jaxgpt.complete(model, tokenizer, [{"role": "user", "content": "Who?"}])
    tokenizer = jaxgpt.load_tokenizer("tiny")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    asked = [{"role": "user", "content": "Who was king?"}]
    answer = jaxgpt.complete(model, tokenizer, asked, max_new_tokens=6, temperature=0)
    plain = jaxgpt.complete(model, tokenizer, "Who was king?\n", max_new_tokens=6, temperature=0)
    assert answer == plain.strip()
    assert jaxgpt.complete(model, tokenizer, [asked, asked], max_new_tokens=6, temperature=0) == [answer, answer]


@pytest.mark.parametrize(
    ("prompt", "how", "says"),
    [
        (3, {}, "prompt must be a text, a conversation .*, or a list of either, not 3"),
        ([3], {}, "prompt must be a text, .* not 3"),
        ("", {}, "prompt '' gives no tokens"),
        ("a", {"temperature": -1}, "temperature must be"),
        ("a", {"max_new_tokens": 10**6}, "max_new_tokens must be from 0 to"),
        ("a", {"stop": [""]}, "stop must be a list of strings"),
    ],
)
def test_mistakes_are_named(pair, prompt, how, says):
    with pytest.raises(jaxgpt.InputError, match=says):
        jaxgpt.complete(*pair, prompt, **how)
