"""Conversations: which tokens count, where they may be cut, and what records are taken for."""

import pytest

import jaxgpt
from jaxgpt.chat import encode_chats, messages_of, prepare_chat, render
from jaxgpt.convert.errors import InputError

TWO_TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho, ho"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good  night "},
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|endoftext|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    return jaxgpt.load_tokenizer("tiny")


def pieces(tokenizer, encoded) -> list[tuple[str, bool]]:
    return [(tokenizer.decode([i]), counts) for i, counts in zip(encoded.ids, encoded.counts, strict=True)]


def test_only_what_the_assistant_says_counts_token_by_token(tokenizer):
    assert prepare_chat(tokenizer) == ("<|user|>", "<|assistant|>")
    (encoded,) = encode_chats(tokenizer, [TWO_TURNS])
    assert pieces(tokenizer, encoded) == [
        ("<|user|>", False), (" Be", False), (" b", False), ("ri", False), ("ef", False), (".", False),
        ("\n", False), ("\n", False), ("H", False), ("i", False), (" ", False), ("<|assistant|>", False),
        (" H", True), ("o", True), (",", True), (" ho", True), ("<|endoftext|>", True),
        ("<|user|>", False), (" By", False), ("e", False), (" ", False), ("<|assistant|>", False),
        (" G", True), ("ood", True), (" ", True), (" night", True), (" ", True), ("<|endoftext|>", True),
    ]  # fmt: skip
    assert encoded.turns == [17, 28]


def test_the_form_of_the_lesson_is_what_is_rendered(tokenizer):
    prepare_chat(tokenizer)
    assert render(tokenizer, TWO_TURNS) == (
        "<|user|> Be brief.\n\nHi <|assistant|> Ho, ho<|endoftext|><|user|> Bye <|assistant|> Good  night <|endoftext|>"
    )
    assert render(tokenizer, TWO_TURNS[:2], answer=True) == "<|user|> Be brief.\n\nHi <|assistant|>"


def test_a_template_of_the_tokenizer_s_own_is_used_and_white_space_after_its_end_does_not_count(tokenizer):
    tokenizer.chat_template = CHATML
    assert prepare_chat(tokenizer) == ()
    (encoded,) = encode_chats(tokenizer, [TWO_TURNS[1:]])
    said = "".join(piece for piece, counts in pieces(tokenizer, encoded) if counts)
    assert said == "Ho, ho<|endoftext|>Good  night <|endoftext|>"
    assert tokenizer.decode(encoded.ids[: encoded.turns[0]]).endswith("Ho, ho<|endoftext|>\n")
    assert encoded.turns[-1] == len(encoded.ids)


def test_a_batch_is_each_conversation_alone(tokenizer):
    prepare_chat(tokenizer)
    chats = [TWO_TURNS, TWO_TURNS[1:3], ({"role": "assistant", "content": ""},)]
    assert encode_chats(tokenizer, chats) == [encode_chats(tokenizer, [chat])[0] for chat in chats]


def test_text_beyond_ascii_counts_whole(tokenizer):
    prepare_chat(tokenizer)
    chat = ({"role": "user", "content": "Grüße 🙂"}, {"role": "assistant", "content": "中文 🙂é"})
    (encoded,) = encode_chats(tokenizer, [chat])
    said = [i for i, counts in zip(encoded.ids, encoded.counts, strict=True) if counts]
    assert tokenizer.decode(said) == " 中文 🙂é<|endoftext|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="renders a turn differently once others follow"):
        encode_chats(tokenizer, [TWO_TURNS])
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(InputError, match=r"chat template fails .*no system"):
        encode_chats(tokenizer, [TWO_TURNS])


def test_a_template_is_a_sandboxed_program(tokenizer):
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="chat template fails"):
        encode_chats(tokenizer, [TWO_TURNS])


EXCHANGE = ({"role": "user", "content": "Add.\n\n1 + 1"}, {"role": "assistant", "content": "2"})


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": list(EXCHANGE)}, EXCHANGE),
        (
            {"conversations": [{"from": "human", "value": "Add.\n\n1 + 1"}, {"from": "gpt", "value": "2"}], "id": 1},
            EXCHANGE,
        ),
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, EXCHANGE),
        ({"instruction": "Add.\n\n1 + 1", "input": "", "output": "2"}, EXCHANGE),
        ({"prompt": "Add.\n\n1 + 1", "completion": "2"}, EXCHANGE),
        ({"question": "Add.\n\n1 + 1", "input": None, "answer": "2"}, EXCHANGE),
    ],
)
def test_records_of_all_known_forms_are_the_same_conversation(record, messages):
    assert messages_of(record) == messages


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "neither a text nor a conversation.*fields are none"),
        ({"body": "x"}, "fields are 'body'"),
        ({"instruction": "x"}, "neither a text nor a conversation"),
        ({"instruction": "x", "output": 3}, "output must be a text, not int"),
        ({"messages": "hi"}, "messages must be a list, not str"),
        ({"messages": ["hi"]}, "must be an object with role and content, not str"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "system, user or assistant, not 'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "system, user or assistant, not"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content must be a text, not list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "has no message from the assistant"),
        ({"messages": []}, "has no message from the assistant"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(record, message):
    with pytest.raises(InputError, match=message):
        messages_of(record)


def test_a_tokenizer_that_cannot_hold_conversations_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="need a tokenizer with an end-of-text token"):
        prepare_chat(tokenizer)
