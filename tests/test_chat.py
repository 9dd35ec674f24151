"""Conversations: which tokens count, where they may be cut, and what records are taken for."""

import json
import random
import re
import resource

import numpy as np
import pytest

import jaxgpt
from jaxgpt import chat as chat_module
from jaxgpt import chat_templates
from jaxgpt.chat import OPTIONAL_FIELDS, encode_chats, prepare_chat, render
from jaxgpt.convert.errors import InputError
from jaxgpt.data.conversations import ANSWERS, LISTS, MATERIAL, QUESTIONS, SYSTEMS, conversation_of
from jaxgpt.data.corpus import tokenise

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


@pytest.mark.bounded
def test_a_template_is_a_sandboxed_program(tokenizer):
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="chat template fails"):
        encode_chats(tokenizer, [TWO_TURNS])


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "much text": "{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}",
}


@pytest.mark.bounded
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_has_limits(name, tokenizer):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer.chat_template = HOSTILE[name] + CHATML
    for _ in range(2):  # the second time it is not run
        with pytest.raises(InputError, match=r"the tokenizer's chat template (takes|writes) (more than|too much)"):
            encode_chats(tokenizer, [TWO_TURNS])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    tokenizer.chat_template = CHATML  # others are not affected
    assert encode_chats(tokenizer, [TWO_TURNS])[0].turns


def test_the_process_of_the_templates_is_kept_and_comes_back(tokenizer):
    tokenizer.chat_template = CHATML
    expected = encode_chats(tokenizer, [TWO_TURNS])
    child = chat_templates._PROCESS._child
    assert encode_chats(tokenizer, [TWO_TURNS]) == expected
    assert chat_templates._PROCESS._child is child
    chat_templates._PROCESS.close()
    assert encode_chats(tokenizer, [TWO_TURNS]) == expected


def long_chat(n: int, *, system: bool = False, tool: bool = False) -> list[dict]:
    found = [{"role": "system", "content": "Be brief."}] if system else []
    for i in range(n):
        found += [{"role": "user", "content": f" ask {i} 🙂 "}]
        if tool and i % 3 == 0:
            call = {"type": "function", "function": {"name": "now", "arguments": {"i": i}}}
            found += [
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": f"{i}"},
            ]
        found += [{"role": "assistant", "content": f"say {i}", "weight": int(i % 5 > 0)}]
    return found


@pytest.mark.parametrize("name", ["ours", "chatml", "marked", "gpts", "system", "begins", "twice", "tools", "rewrites"])
def test_a_long_conversation_has_the_spans_of_looking_at_all_of_its_beginnings(name, tokenizer, monkeypatch):
    prepare_chat(tokenizer)
    kinds = {
        "chatml": CHATML,
        "marked": CHATML_MARKED,
        "gpts": GPTS,
        "system": CHATML,
        "begins": CHATML,
        "tools": KNOWING,
    }
    numbered = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    kinds |= {"rewrites": numbered, "twice": CHATML, "tools": KNOWING}
    tokenizer.chat_template = kinds.get(name, tokenizer.chat_template)
    messages = long_chat(20, system=name in ("ours", "system"), tool=name == "tools")
    if name == "begins":
        messages = messages[1:]
    if name == "twice":
        messages[9:9] = [{"role": "assistant", "content": "again"}] * 2
    n_asked = []
    ask = chat_templates._PROCESS.ask
    monkeypatch.setattr(
        chat_templates._PROCESS, "ask", lambda a, r: n_asked.append(max(len(q.chat) for q in r)) or ask(a, r)
    )

    def encoded():
        try:
            return encode_chats(tokenizer, [messages])
        except InputError as error:
            return str(error)

    found = encoded()
    assert name in ("tools", "rewrites") or sum(n > 20 for n in n_asked) == 1, n_asked  # the whole, once
    monkeypatch.setattr(chat_module, "MANY", 10**6)
    assert encoded() == found


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
        ({"instruction": "Add.", "context": "1 + 1", "response": "2", "category": "sum"}, EXCHANGE),
        ({"conversation": list(EXCHANGE)}, EXCHANGE),
        ({"conversations": list(EXCHANGE)}, EXCHANGE),
        ({"messages": None, "conversations": [], "conversation": list(EXCHANGE)}, EXCHANGE),
        (
            {"conversations": [{"from": "user", "value": "Add.\n\n1 + 1"}, {"from": "chatgpt", "value": "2"}]},
            EXCHANGE,
        ),
        ({"conversation": [{"from": "human", "value": "Add.\n\n1 + 1"}, {"from": "bard", "value": "2"}]}, EXCHANGE),
        ({"prompt": [EXCHANGE[0]], "completion": [EXCHANGE[1]]}, EXCHANGE),
        ({"prompt": [EXCHANGE[0]], "completion": "2"}, EXCHANGE),
        ({"prompt": "Add.\n\n1 + 1", "response": [EXCHANGE[1]]}, EXCHANGE),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "Add.\n\n"}, {"type": "text", "text": "1 + 1"}],
                    },
                    {"role": "assistant", "content": [{"type": "output_text", "text": "2"}]},
                ]
            },
            EXCHANGE,
        ),
        ({"messages": [EXCHANGE[0], {**EXCHANGE[1], "weight": 1, "train": None}]}, EXCHANGE),
        ({"messages": list(EXCHANGE), "system": "", "system_prompt": None, "history": [], "tools": "[]"}, EXCHANGE),
    ],
)
def test_records_of_all_known_forms_are_the_same_conversation(record, messages):
    assert conversation_of(record).messages == messages


SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
QUESTION = {"instruction": "Add.", "input": "1 + 1", "output": "2"}


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({**QUESTION, "system": "Be brief."}, (SYSTEM, *EXCHANGE)),
        ({"system_prompt": "Be brief.", "question": "Add.\n\n1 + 1", "response": "2"}, (SYSTEM, *EXCHANGE)),
        ({"messages": list(EXCHANGE), "system_prompt": "Be brief."}, (SYSTEM, *EXCHANGE)),
        ({"messages": [SYSTEM, *EXCHANGE], "system": "Be brief."}, (SYSTEM, *EXCHANGE)),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "Be brief."},
         (SYSTEM, *EARLIER)),
        ({**QUESTION, "history": [["Hi", "Ho"]]}, (*EARLIER, *EXCHANGE)),
        ({**QUESTION, "history": [("Hi", "Ho"), ["Hi", "Ho"]], "system": "Be brief."},
         (SYSTEM, *EARLIER, *EARLIER, *EXCHANGE)),
        ({**QUESTION, "history": list(EARLIER)}, (*EARLIER, *EXCHANGE)),
        ({"messages": [SYSTEM, *EXCHANGE], "history": [["Hi", "Ho"]]}, (SYSTEM, *EARLIER, *EXCHANGE)),
        ({"prompt": [SYSTEM, EXCHANGE[0]], "completion": [EXCHANGE[1]]}, (SYSTEM, *EXCHANGE)),
        # what is said in a prompt is not trained on, nor a message of weight 0
        ({"prompt": [*EARLIER, EXCHANGE[0]], "completion": [EXCHANGE[1]]},
         (EARLIER[0], EARLIER[1] | {"weight": 0}, *EXCHANGE)),
        ({"messages": [EARLIER[0], {**EARLIER[1], "weight": 0}, *EXCHANGE]},
         (EARLIER[0], EARLIER[1] | {"weight": 0}, *EXCHANGE)),
        ({"messages": [EARLIER[0], {**EARLIER[1], "train": False}, *EXCHANGE]},
         (EARLIER[0], EARLIER[1] | {"weight": 0}, *EXCHANGE)),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "weight": 0.0},
                            {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "weight": 1.0}]},
         (EARLIER[0], EARLIER[1] | {"weight": 0}, *EARLIER)),
        ({"messages": [{"role": "developer", "content": "Be brief."}, *EXCHANGE]},
         ({"role": "developer", "content": "Be brief."}, *EXCHANGE)),
    ],
)  # fmt: skip
def test_all_that_belongs_to_a_conversation_is_in_it(record, messages):
    found = conversation_of(record)
    assert found.messages == messages
    assert found.unread == ()


@pytest.mark.parametrize(
    ("record", "unread"),
    [
        ({**QUESTION, "category": "sum", "empty": "", "null": None, "none": []}, ("category",)),
        ({**QUESTION, "prompt": "Add", "system": "a", "system_prompt": "b"}, ("prompt", "system_prompt")),
        ({"messages": list(EXCHANGE), "prompt": "Add.", "context": "x"}, ("prompt", "context")),
        ({"messages": [EXCHANGE[0] | {"id": 3}, EXCHANGE[1] | {"id": 4, "likes": None}]}, ("messages.id",)),
        ({"conversations": [{"from": "human", "value": "a", "md": 1}, {"from": "gpt", "value": "b"}], "score": 0.5},
         ("score", "conversations.md")),
        ({"prompt": [EXCHANGE[0] | {"id": 1}], "completion": [EXCHANGE[1] | {"n": 1}], "input": "x"},
         ("input", "prompt.id", "completion.n")),
        ({**QUESTION, "history": [EARLIER[0] | {"when": "now"}, EARLIER[1]]}, ("history.when",)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "annotations": ["b"], "id": None}]},
                       EXCHANGE[1]]}, ("messages.content.annotations",)),
    ],
)  # fmt: skip
def test_what_is_not_read_of_a_record_is_named(record, unread):
    assert conversation_of(record).unread == unread


@pytest.mark.bounded
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": None}, "text is null: expected a string"),
        ({"messages": list(EXCHANGE), "system": ["x"]}, "system must be a text, not list"),
        ({"messages": [SYSTEM, *EXCHANGE], "system": "Talk."}, "system and the first message are two different system"),
        ({**QUESTION, "context": {"title": "x"}}, "context must be a text, not dict"),
        ({**QUESTION, "history": "Hi"}, "history must be a list of pairs, not str"),
        ({**QUESTION, "history": [["Hi"]]}, "history must be a list of pairs: each a question and its answer"),
        ({**QUESTION, "history": [["Hi", None]]}, "history must be a text, not NoneType"),
        ({"messages": [EXCHANGE[0], EXCHANGE[1] | {"weight": 0.5}]}, "the weight of a message must be 0 or 1, not 0.5"),
        ({"messages": [EXCHANGE[0], EXCHANGE[1] | {"train": "no"}]}, "the train of a message must be 0 or 1, not 'no'"),
        ({"messages": [EXCHANGE[0], EXCHANGE[1] | {"weight": 0}]}, "no message of the assistant is trained on"),
        ({"prompt": list(EXCHANGE), "completion": [EXCHANGE[0]]}, "no message of the assistant is trained on"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
         "content has a part of the type 'image_url'; only text can be read"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}]},
         "content has a part of the type 'input_audio'; only text can be read"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "of a part of content must be a"),
        ({"messages": [{"role": "user", "content": []}]}, "content must be a text, not list"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be a text, not NoneType"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "tool_calls must be a list of objects"),
        ({"messages": list(EXCHANGE), "tools": "{"}, "tools is a string, but not valid JSON"),
        ({"messages": list(EXCHANGE), "tools": [3]}, "tools must be a list of objects"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "the from of a message must be system, user"),
        ({"conversations": ["x"]}, "must be an object with from and value, not str"),
        ({}, "neither a text nor a conversation.*fields are none"),
        ({"body": "x"}, "fields are 'body'"),
        ({"instruction": "x"}, "neither a text nor a conversation"),
        ({"instruction": "x", "output": 3}, "output must be a text, not int"),
        ({"messages": "hi"}, "messages must be a list, not str"),
        ({"messages": ["hi"]}, "must be an object with role and content, not str"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "system, user or assistant, or developer or tool if the chat template has it, not 'robot'",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "has no message from the assistant"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "or assistant, or developer or .*, not \\['user'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content must be a text, not list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "has no message from the assistant"),
        ({"messages": []}, "has no message from the assistant"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_by_name(record, message):
    with pytest.raises(InputError, match=message):
        conversation_of(record)


FIELDS = (
    *LISTS, *QUESTIONS, *ANSWERS, *MATERIAL, *SYSTEMS, "history", "tools", "text", "category", "chosen", "functions",
)  # fmt: skip


def random_record(rng: random.Random) -> dict:
    """A record in which each text is another word, and anything may be anywhere."""
    words = iter(f"word{i}." for i in range(10_000))

    def message():
        names = rng.choice([("role", "content")] * 3 + [("from", "value")])
        found = {names[0]: rng.choice(["user", "assistant", "human", "gpt", "system", "developer"])}
        found[names[1]] = (
            next(words)
            if rng.random() < 0.9
            else [{"type": "text", "text": next(words), "note": next(words) if rng.random() < 0.5 else None}]
        )
        for name in rng.sample(
            ["name", "id", "tool_calls", "weight", "mood", "reasoning", "train"], rng.choice([0, 0, 1])
        ):
            found[name] = {"tool_calls": [{"name": next(words)}], "weight": 0, "train": True}.get(name, next(words))
        return found

    def value():
        return rng.choice([
            lambda: next(words), lambda: next(words), lambda: next(words), lambda: None, lambda: "", lambda: [],
            lambda: [message() for _ in range(rng.randrange(1, 4))], lambda: [[next(words), next(words)]],
            lambda: {"a": next(words)}, lambda: 0, lambda: True, lambda: [{"a": next(words)}],
        ])()  # fmt: skip

    record = {name: value() for name in rng.sample(FIELDS, rng.randrange(1, 7))}
    if rng.random() < 0.7:
        record |= rng.choice([
            {"messages": [message(), {"role": "assistant", "content": next(words)}]},
            {"instruction": next(words), "output": next(words)},
            {"prompt": [message()], "completion": [{"role": "assistant", "content": next(words)}]},
        ])  # fmt: skip
    return record


def test_every_word_of_a_record_is_read_or_its_field_is_named_or_the_record_is_refused():
    rng, n_read, n_refused = random.Random(0), 0, 0
    for _ in range(5000):
        record = random_record(rng)
        try:
            found = conversation_of(record)
        except InputError:
            n_refused += 1
            continue
        n_read += 1
        kept = json.dumps([found.messages, found.tools])
        for field, value in record.items():
            items = value if isinstance(value, list) else [value]
            for item in items:
                inner = item.items() if isinstance(item, dict) else [("", item)]
                for name, part in inner:
                    for word in re.findall(r"word\d+\.", json.dumps(part)):
                        assert word in kept or {field, f"{field}.{name}", f"{field}.{name}.note"} & {*found.unread}, (
                            record,
                            word,
                        )
        assert {"role", "content"} >= set().union(*found.messages) - {*OPTIONAL_FIELDS, "weight"}
    assert min(n_read, n_refused) > 500


def test_a_tokenizer_that_cannot_hold_conversations_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="need a tokenizer with an end-of-text token"):
        prepare_chat(tokenizer)


# transformers' masks

GPTS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %} {{ m['content'] }}"
    "<|endoftext|>{% endgeneration %}{% else %}<|{{ m['role'] }}|> {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|endoftext|>' }}{% endgeneration %}{% else %}"
    "{{ m['content'] + '<|endoftext|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{%- generation -%}{{ m['content'] }}"
    "{%- endgeneration -%}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)
FORGETFUL = (  # leaves out what was thought in earlier turns
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] if loop.last else m['content'].split(' ')[-1] }}<|endoftext|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
)
MARKED = {"gpts": GPTS, "chatml": CHATML_MARKED, "without end": WITHOUT_END, "forgetful": FORGETFUL}
TURNS = ("first of all", "in the middle 🙂", "and last, naïve.")
CHATS = {
    "the assistant begins": [("assistant", 0), ("user", 0), ("assistant", 1), ("user", 1), ("assistant", 2)],
    "the user begins": [("user", 0), ("assistant", 0), ("user", 1), ("assistant", 1), ("user", 2), ("assistant", 2)],
    "a system message": [("system", 0), ("user", 1), ("assistant", 1)],
    "system, then the assistant": [("system", 0), ("assistant", 1), ("user", 1), ("assistant", 0)],
    "the user has the last word": [("user", 0), ("assistant", 0), ("user", 1)],
    "the assistant alone": [("assistant", 0)],
    "twice in a row": [("user", 0), ("assistant", 0), ("assistant", 2)],
}


def chat(name: str) -> tuple[dict, ...]:
    return tuple({"role": role, "content": f"{role}: {TURNS[i]}"} for role, i in CHATS[name])


def their_mask(tokenizer, messages, **options) -> tuple[list[int], list[bool]]:
    theirs = tokenizer.apply_chat_template(
        list(messages), return_assistant_tokens_mask=True, return_dict=True, **options
    )
    return theirs["input_ids"], [bool(counted) for counted in theirs["assistant_masks"]]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("template", MARKED)
def test_a_template_that_marks_generation_gives_transformers_mask(template, name, tokenizer):
    prepare_chat(tokenizer)
    tokenizer.chat_template = MARKED[template]
    (encoded,) = encode_chats(tokenizer, [chat(name)])
    ids, mask = their_mask(tokenizer, chat(name))
    assert (encoded.ids, encoded.counts) == (ids, mask)
    assert any(mask)
    if template == "forgetful":
        return
    said = [i for i, (role, _) in enumerate(CHATS[name]) if role == "assistant"]
    ends = [len(tokenizer.apply_chat_template(list(chat(name)[: i + 1]))["input_ids"]) for i in said]
    assert encoded.turns == ends
    # a message of weight 0, first, in the middle or last, loses its tokens, and nothing else does
    for k, i in enumerate(said):
        without = [m | {"weight": 0} if j == i else m for j, m in enumerate(chat(name))]
        (found,) = encode_chats(tokenizer, [without])
        begin = len(tokenizer.apply_chat_template(list(chat(name)[:i]))["input_ids"]) if i else 0
        expected = [counted and not begin <= at < ends[k] for at, counted in enumerate(mask)]
        assert (found.ids, found.counts) == (ids, expected)
        assert found.turns == ends[:k] + ends[k + 1 :]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize(("plain", "marked"), [(CHATML, CHATML_MARKED), (None, GPTS)], ids=["chatml", "ours"])
def test_a_template_without_marks_counts_what_transformers_would_with_them(plain, marked, name, tokenizer):
    """A conversation that the assistant begins, too: the words that ask for an answer never count."""
    prepare_chat(tokenizer)
    if plain is not None:
        tokenizer.chat_template = plain
    elif name in ("a system message", "system, then the assistant"):
        return  # which our template writes into the user's message
    (encoded,) = encode_chats(tokenizer, [chat(name)])
    tokenizer.chat_template = marked
    ids, mask = their_mask(tokenizer, chat(name))
    assert encoded.ids == ids
    assert encoded.counts == mask


def test_a_conversation_that_the_assistant_begins_counts_eight_tokens_and_not_its_header(tokenizer):
    tokenizer.chat_template = CHATML
    messages = ({"role": "assistant", "content": "Ho, ho"}, {"role": "user", "content": "Bye"})
    (encoded,) = encode_chats(tokenizer, [messages])
    assert tokenizer.decode([i for i, c in zip(encoded.ids, encoded.counts, strict=True) if c]) == "Ho, ho<|endoftext|>"
    tokenizer.chat_template = "{% if messages[0]['role'] != 'system' %}<|system|> Help.\n{% endif %}" + CHATML
    (encoded,) = encode_chats(tokenizer, [messages])  # a template that needs a message, and writes one of its own
    assert tokenizer.decode([i for i, c in zip(encoded.ids, encoded.counts, strict=True) if c]) == "Ho, ho<|endoftext|>"
    tokenizer.chat_template = (
        "{{ messages[0]['role'] }}{% for m in messages %}{{ m['content'] }}{% endfor %}"  # nothing asks for an answer
    )
    with pytest.raises(InputError, match="does not show where the assistant's first message begins"):
        encode_chats(tokenizer, [messages])


OPENING = {
    "in the loop, as Zephyr's": "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "a system message of its own, as Qwen's": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|endoftext|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "another name for the assistant, as Gemma's": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{% for m in messages %}{{ '<turn>' + ('model' if m['role'] == "
    "'assistant' else m['role']) + '\n' + m['content'] | trim + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}",
    "no header, as DialoGPT's": "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}",
    "no header, as Mistral's": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", OPENING)
def test_what_opens_a_conversation_never_counts_whoever_begins_it(name, tokenizer):
    tokenizer.chat_template = OPENING[name]
    for messages in (TWO_TURNS[2:], TWO_TURNS[1:], TWO_TURNS[2:3]):
        (encoded,) = encode_chats(tokenizer, [messages])
        said = "".join(piece for piece, counts in pieces(tokenizer, encoded) if counts)
        expected = "".join(m["content"] + "<|endoftext|>" for m in messages if m["role"] == "assistant")
        assert said.replace(" <|", "<|") == expected.replace(" <|", "<|")  # Gemma's trims


def test_a_forgetful_template_can_be_cut_where_its_marks_end_and_knows_weights(tokenizer):
    tokenizer.chat_template = FORGETFUL
    messages = chat("the user begins")
    (encoded,) = encode_chats(tokenizer, [messages])
    ends = [i for i, token in enumerate(encoded.ids, 1) if token == tokenizer.eos_token_id and encoded.counts[i - 1]]
    assert encoded.turns == ends
    (weighed,) = encode_chats(tokenizer, [[m | {"weight": 0} if i == 1 else m for i, m in enumerate(messages)]])
    assert weighed.counts == [c and i >= ends[0] for i, c in enumerate(encoded.counts)]
    tokenizer.chat_template = FORGETFUL.replace("<|endoftext|>{% endgeneration %}", "{% endgeneration %}") + (
        "!{% generation %}.{% endgeneration %}"
    )
    (encoded,) = encode_chats(tokenizer, [messages])
    assert encoded.turns == []
    with pytest.raises(InputError, match="so that a message of weight 0 can't be located"):
        encode_chats(tokenizer, [[m | {"weight": 0} if i == 1 else m for i, m in enumerate(messages)]])


def test_weight_0_does_not_count_with_a_template_without_marks(tokenizer):
    prepare_chat(tokenizer)
    (whole,) = encode_chats(tokenizer, [TWO_TURNS])
    for i, kept in ((2, " Good  night <|endoftext|>"), (4, " Ho, ho<|endoftext|>")):
        (encoded,) = encode_chats(tokenizer, [[m | {"weight": 0} if j == i else m for j, m in enumerate(TWO_TURNS)]])
        assert encoded.ids == whole.ids
        assert tokenizer.decode([t for t, c in zip(encoded.ids, encoded.counts, strict=True) if c]) == kept
        assert encoded.turns == [whole.turns[1] if i == 2 else whole.turns[0]]


# what a template knows

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLS = (
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "1 + 1"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
    {"role": "tool", "name": "add", "content": "2"},
    {"role": "assistant", "content": "2", "reasoning_content": "I was told."},
)
KNOWING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m['role'] }}|> "
    "{% if m['role'] == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}<|endoftext|>{% endgeneration %}"
    "{% else %}{{ m.name }}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["a list", "a text"])
def test_a_template_that_knows_tools_gets_all_of_them(tools, tokenizer):
    tokenizer.chat_template = KNOWING
    found = conversation_of({"messages": list(CALLS), "tools": tools})
    assert found.messages == CALLS
    assert found.tools == tuple(TOOLS)
    (encoded,) = encode_chats(tokenizer, [found.messages], [found.tools])
    assert (encoded.ids, encoded.counts) == their_mask(tokenizer, CALLS, tools=TOOLS)
    assert "(I was told.)2" in tokenizer.decode(encoded.ids)
    assert encoded.unread == ()


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            None,
            CALLS[:2] + CALLS[4:],
            "must be system, user or assistant, not 'developer', which the tokenizer's chat t",
        ),
        (
            None,
            CALLS[1:2] + CALLS[3:],
            "must be system, user or assistant, not 'tool', which the tokenizer's chat temp",
        ),
        (None, CALLS[1:3], "a message has tool_calls, which the tokenizer's chat template does not know"),
        (CHATML, CALLS[1:3], "a message has tool_calls, which the tokenizer's chat template does not know"),
        (KNOWING.replace("m.tool_calls", "[]"), CALLS, "a message has tool_calls, which the tokenizer's chat template"),
        (
            KNOWING.replace("tools | tojson", "''"),
            CALLS,
            "the conversation has tools, which the tokenizer's chat templ",
        ),
        (KNOWING.replace("<|{{ m['role'] }}|>", ""), CALLS, "must be system, user or assistant, not 'developer'"),
    ],
)
def test_a_template_that_does_not_know_a_role_or_a_call_is_refused(template, messages, message, tokenizer):
    prepare_chat(tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    tools = [TOOLS] if messages == CALLS else None
    with pytest.raises(InputError, match=message):
        encode_chats(tokenizer, [messages], tools)


@pytest.mark.parametrize(
    ("template", "messages", "unread"),
    [
        (None, TWO_TURNS, ()),
        # ours writes a system message where a user's follows
        (None, (*TWO_TURNS, SYSTEM | {"content": "Stop."}), ("messages.content of system",)),
        (None, (TWO_TURNS[0], TWO_TURNS[2]), ("messages.content of system",)),
        (CHATML, (*TWO_TURNS, TWO_TURNS[0]), ()),
        (CHATML.replace("m['content']", "m['content'] | trim"), TWO_TURNS, ()),
        (CHATML.replace("m['content']", "(m['content'] | tojson)"),
         ({"role": "user", "content": 'a "b"\n'}, TWO_TURNS[2]), ()),
        (FORGETFUL, chat("the user begins"), ("messages.content of assistant",)),
        ("{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}", TWO_TURNS,
         ("messages.content of system",)),
    ],
)  # fmt: skip
def test_a_message_that_the_template_leaves_out_is_named(template, messages, unread, tokenizer):
    prepare_chat(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template if template is None else template
    (encoded,) = encode_chats(tokenizer, [messages])
    assert encoded.unread == unread


def test_a_template_of_its_own_for_tools_is_used_for_them_alone(tokenizer):
    tokenizer.chat_template = {"default": CHATML, "tool_use": KNOWING}
    without = CALLS[:2] + CALLS[4:]
    both = encode_chats(tokenizer, [without, CALLS, without], [[], TOOLS, []])
    assert (both[1].ids, both[1].counts) == their_mask(tokenizer, CALLS, tools=TOOLS)
    tokenizer.chat_template = CHATML
    assert both[::2] == encode_chats(tokenizer, [without]) * 2
    assert sum(both[0].counts) == 2  # which CHATML does not mark
    tokenizer.chat_template = {"tool_use": KNOWING}
    with pytest.raises(InputError, match=r"chat template fails \(ValueError: This model has multiple chat templates"):
        encode_chats(tokenizer, [TWO_TURNS])


def test_a_role_is_known_where_the_template_writes_its_name(tokenizer):
    tokenizer.chat_template = CHATML
    (encoded,) = encode_chats(tokenizer, [CALLS[:2] + CALLS[4:]])
    assert tokenizer.decode(encoded.ids).startswith("<|im_start|>developer\nBe brief.<|endoftext|>")
    assert encoded.unread == ("messages.reasoning_content",)


def test_a_conversation_in_a_file_keeps_weights_and_tools_and_says_what_is_not_read(tokenizer, tmp_path):
    tokenizer.chat_template = KNOWING
    rows = [
        {"messages": list(CALLS), "tools": TOOLS, "id": 7},
        {"messages": [*CALLS[:2], CALLS[4] | {"weight": 0}, *CALLS[1:2], CALLS[4]], "context": "x"},
        {"messages": [{"role": "user", "content": "a", "mood": "good"}, {"role": "assistant", "content": "b"}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for _ in range(2):  # written, and read back
        corpus = tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache")
        assert corpus.unread == (
            "fields that are not read: 'context' in 1 record, 'id' in 1 record, 'messages.mood' in 1 record"
        )
        ids, mask = their_mask(tokenizer, CALLS, tools=TOOLS)
        assert corpus.tokens[: corpus.ends[0]].tolist() == ids
        assert corpus.counts[: corpus.ends[0]].tolist() == mask
        said = corpus.tokens[corpus.ends[0] : corpus.ends[1]][corpus.counts[corpus.ends[0] : corpus.ends[1]] == 1]
        assert tokenizer.decode(said) == " (I was told.)2<|endoftext|>"
        assert len(corpus.turns(1)) == 1
    tokenizer.chat_template = CHATML
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 1: a message has tool_calls, which .* \(skip_bad_records=True"
    ):
        tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache")
    corpus = tokenise(tmp_path / "a.jsonl", tokenizer, cache=tmp_path / "cache", skip_bad_records=True)
    assert len(corpus.ends) == 2
    assert corpus.left_out.startswith("1 bad record is left out: ")
    assert np.asarray(corpus.numbers).tolist() == [2, 3]
    assert "'messages.reasoning_content' in 1 record" in corpus.unread
