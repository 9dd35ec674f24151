"""Fine-tuning on conversations, from a file of instructions to an answer that ends."""

import json
import random
import re

import numpy as np
import pytest
from conftest import TINY, call
from runs import metrics
from transformers import AutoTokenizer

import jaxgpt
from jaxgpt.chat import CHAT_TEMPLATE

NAMES = "Adam Ruth Saul David Jonathan Samuel Esther Daniel Moses Aaron".split()
WORDS = "king house water bread light stone".split()


@pytest.fixture(scope="module")
def trained(cut, tmp_path_factory):
    """Three blocks of the bundled model after a hundred and twenty exchanges, four passes over them."""
    folder, draw = tmp_path_factory.mktemp("chat"), random.Random(0)
    records = [
        {"instruction": "Repeat the word.", "input": word, "output": f"{word} {word}, {name}."}
        for name in NAMES for word in WORDS
    ] * 2  # fmt: skip
    draw.shuffle(records)
    (folder / "chat.json").write_text(json.dumps(records))
    said = call(
        "train", f"--model={cut}", f"--data={folder}/chat.json", f"--out={folder}/run", "--epochs=4",
        "--batch-size=4", "--context=64", "--lr=3e-3", "--eval-every=1000", "--log-every=5",
    ).stdout  # fmt: skip
    return folder / "run", said


def test_the_loss_of_what_the_assistant_says_falls(trained):
    run, said = trained
    assert "nats per held-out token of the assistant at step" in said
    assert re.search(r"rows +\d+ conversations in \d+ rows of 64: \d+\.\d% is padding", said)
    assert "<|user|>, <|assistant|>: new; their embeddings start at the mean of the others" in said
    evaluations = [line["eval_loss"] for line in metrics(run) if line["eval_loss"] is not None]
    assert evaluations[-1] < evaluations[0] - 3


def test_the_samples_are_held_out_questions_and_their_answers(trained):
    text = (trained[0] / "samples.md").read_text()
    questions = re.findall(r"<\|user\|> Repeat the word\.\n\n(\w+) <\|assistant\|>", text)
    n_prompts = len(json.loads((trained[0] / "run.json").read_text())["resolved"]["prompts"])
    assert 1 < n_prompts <= 3
    assert len(questions) == 2 * n_prompts
    assert questions[:n_prompts] == questions[n_prompts:]
    assert len(set(questions)) == n_prompts
    assert text.rstrip().endswith("<|endoftext|>")


def test_generate_answers_in_the_format_and_stops_at_the_end_token(trained):
    run, said = trained
    assert "--chat --prompt=" in said
    answers = []
    for word in WORDS[:3]:
        done = call(
            "jaxgpt", "generate", run, "--chat", f"--prompt=Repeat the word.\n\n{word}", "--temperature=0",
            "--max-new-tokens=60",
        )  # fmt: skip
        answers.append(done.stdout)
        assert len(jaxgpt.load_tokenizer(run)(done.stdout)["input_ids"]) < 30  # the end token came long before
        assert re.fullmatch(r"(\w+ )?\w+, [A-Z]\w+\.\n", done.stdout), done.stdout
    assert len(set(answers)) > 1  # the question is read
    together = call(
        "jaxgpt", "generate", run, "--chat", "--temperature=0", "--max-new-tokens=60",
        "--prompt", *(f"Repeat the word.\n\n{word}" for word in WORDS[:3]),
    ).stdout  # fmt: skip
    for word, answer in zip(WORDS, answers, strict=False):
        assert f"Repeat the word.\n\n{word}\n{answer}" in together


def test_the_template_and_the_tokens_go_with_the_model(trained, tmp_path):
    call("convert", trained[0], tmp_path / "hf", "--to=hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.chat_template == CHAT_TEMPLATE
    asked = [{"role": "user", "content": "Hi"}]
    assert theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == "<|user|> Hi <|assistant|>"
    assert theirs.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]) == [4096, 4097]
    rows = np.asarray(jaxgpt.named_params(jaxgpt.from_pretrained(tmp_path / "hf"))["tok_emb.embedding"])
    assert rows.shape == (4224, 128)


def test_a_model_without_a_template_can_not_be_asked():
    done = call("jaxgpt", "generate", TINY, "--chat", "--prompt=Hi", check=False)
    assert done.returncode == 2
    assert "has no chat template; training on conversations adds one" in done.stderr


def test_samples_begin_somehow_where_the_assistant_begins(small, tmp_path):
    """Of a template that writes nothing before what the assistant says first."""
    tokenizer = jaxgpt.load_tokenizer(small)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    jaxgpt.save_pretrained(jaxgpt.from_pretrained(small), tmp_path / "m", tokenizer=tokenizer)
    turns = [{"role": "assistant", "content": "Ask me."}, {"role": "user", "content": "Who was king?"}]
    chat = {"messages": [*turns, {"role": "assistant", "content": "Saul."}]}
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps(chat)] * 30))
    flags = ("--steps=2", "--batch-size=4", "--eval-every=2", "--context=32", f"--cache={tmp_path}/cache")
    call("train", f"--model={tmp_path}/m", f"--data={tmp_path}/chat.jsonl", f"--out={tmp_path}/run", *flags)
    assert "The" in (tmp_path / "run" / "samples.md").read_text()
