"""Loss on a text: transformers' numbers for every window and stride, and each token predicted exactly once."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, call, random_tokens
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt.commands.evaluate import EvalCommand, run
from jaxgpt.evaluation.perplexity import evaluate


@pytest.mark.parametrize("n", [2, 9, 41, 42, 43, 200])
@pytest.mark.parametrize(("context", "stride"), [(41, 41), (41, 40), (41, 7), (10, 1), (1, 1)])
def test_loss_is_that_of_transformers_however_windows_lie(hf_folder, n, context, stride):
    folder, theirs = hf_folder()
    tokens = random_tokens((n,), seed=n)
    result = evaluate(jaxgpt.from_pretrained(folder), tokens, context=context, stride=stride, batch_size=3)
    assert result.tokens == n - 1
    assert abs(result.loss - expected_loss(theirs, tokens, context, stride)) <= 1e-4


def expected_loss(model, tokens, context, stride):
    """A window at a time, as transformers' guide to perplexity does it, but with every token predicted once."""
    nats, done = 0.0, 1
    for begin in range(0, len(tokens), stride):
        window = torch.tensor(tokens[begin : begin + context + 1], dtype=torch.long)
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(window[None, :-1]).logits[0], window[1:], reduction="none")
        nats += losses[done - begin - 1 :].sum().item()
        done = begin + len(window)
        if done == len(tokens):
            return nats / (done - 1)
    raise AssertionError


@pytest.mark.parametrize("stride", [1, 4, 10])
def test_each_token_is_predicted_once_with_the_context_that_the_stride_promises(hf_folder, monkeypatch, stride):
    module, seen = sys.modules["jaxgpt.evaluation.perplexity"], []

    def note(model, ids, counts):
        for row, counted in zip(ids, counts, strict=True):
            where = np.flatnonzero(counted)
            assert all(at >= T - stride or row[0] == 0 for at in where)
            seen.extend(row[1:][where].tolist())
        return 0.0

    monkeypatch.setattr(module, "_nats", note)
    model, T = jaxgpt.from_pretrained(hf_folder()[0]), 10
    for n in range(2, 40):
        seen.clear()
        T = min(10, n - 1)
        evaluate(model, np.arange(n), context=10, stride=stride, batch_size=4)
        assert seen == list(range(1, n))


def test_the_command_line_gives_the_loss_of_transformers_and_bits_per_byte(tmp_path, capsys):
    text = "In the beginning God created the heaven and the earth. Naïve café.\n" * 20
    (tmp_path / "text.txt").write_text(text)
    out = call("jaxgpt", "eval", "tiny", f"--data={tmp_path / 'text.txt'}", "--stride=64", "--json").stdout
    found = json.loads(out)
    tokenizer, theirs = jaxgpt.load_tokenizer("tiny"), GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32).eval()
    tokens = np.asarray([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    loss = expected_loss(theirs, tokens, 256, 64)
    assert abs(found["loss"] - loss) <= 1e-4
    assert (found["tokens"], found["bytes"]) == (len(tokens) - 1, len(text.encode()))
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(
        loss * (len(tokens) - 1) / math.log(2) / len(text.encode()), rel=1e-4
    )
    run(EvalCommand("tiny", str(tmp_path / "text.txt"), stride=64))
    assert f"{found['loss']:.4f} nats per token" in capsys.readouterr().out
    with pytest.raises(jaxgpt.InputError, match="is neither a file nor a folder"):
        run(EvalCommand("tiny", str(tmp_path / "nothing")))


def test_token_ids_have_no_bytes_and_conversations_are_refused(tmp_path, capsys):
    np.arange(300, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    run(EvalCommand("tiny", str(tmp_path / "ids.bin"), json=True))
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["bytes"], found["bits_per_byte"]) == (299, None, None)
    (tmp_path / "chat.jsonl").write_text('{"instruction": "Say hi", "output": "hi"}')
    with pytest.raises(jaxgpt.InputError, match=r"chat\.jsonl holds conversations; eval reads plain texts only"):
        run(EvalCommand("tiny", str(tmp_path / "chat.jsonl")))


def test_records_are_read_as_the_flags_say_and_what_is_not_read_is_named_beside_the_numbers(tmp_path):
    (tmp_path / "a.json").write_text(
        '{"body": "In the beginning", "id": 1}\n{"body": null}\n{"body": "was the word."}\n'
    )
    (tmp_path / "b.csv").write_text("body,id\nIn the beginning,1\nx\nwas the word.,2\n")
    (tmp_path / "c.jsonl").write_text('{"text": "In the beginning"}\n{"text": "was the word."}\n')
    expected = json.loads(call("jaxgpt", "eval", "tiny", f"--data={tmp_path}/c.jsonl", "--json").stdout)
    for name, n in (("a.json", 1), ("b.csv", 2)):
        flags = (f"--data={tmp_path}/{name}", "--text-field=body", f"--cache={tmp_path}/cache", "--json")
        done = call("jaxgpt", "eval", "tiny", *flags, "--skip-bad-records")
        assert json.loads(done.stdout) == expected
        said = " ".join(done.stderr.split())
        assert f"jaxgpt: fields that are not read: 'id' in {n} record" in said
        assert f"jaxgpt: 1 bad record is left out: {tmp_path}/{name}, line {1 + n}: " in said
        refused = call("jaxgpt", "eval", "tiny", *flags, check=False)
        assert refused.returncode == 2
        assert "(--skip-bad-records leaves bad records out)" in " ".join(refused.stderr.split())
    (tmp_path / "c.jsonl").write_text('{"title": "x"}')
    refused = call("jaxgpt", "eval", "tiny", f"--data={tmp_path}/c.jsonl", check=False).stderr
    says = "If another field has the text, name it with --text-field=NAME (--skip-bad-records"
    assert says in " ".join(refused.split())


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        ([1], {}, "one sequence of at least two token ids"),
        ([[1, 2]], {}, "one sequence of at least two token ids"),
        ([1, 97], {}, "ids must be from 0 to 96, but range from 1 to 97"),
        ([1, 2], {"context": 42}, "context must be from 1 to 41"),
        ([1, 2], {"context": 10, "stride": 11}, "stride must be from 1 to 10, not 11"),
        ([1, 2], {"context": 2.5}, "context must be an integer, not 2.5"),
        ([1, 2], {"stride": 1.0}, "stride must be an integer, not 1.0"),
        ([1, 2], {"stride": 0}, "stride must be"),
        ([1, 2], {"batch_size": 0}, "batch_size must be"),
    ],
)
def test_what_can_not_be_evaluated_is_refused(hf_folder, tokens, settings, message):
    with pytest.raises(jaxgpt.InputError, match=message):
        evaluate(jaxgpt.from_pretrained(hf_folder()[0]), np.asarray(tokens), **settings)
