"""Preferences: DPO and SimPO against their formulas in PyTorch, records as TRL has them, runs and resuming."""

import json
import math
import re
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import call, random_hf, random_tokens
from runs import assert_same_run, metrics
from torch.nn.functional import log_softmax, logsigmoid

import jaxgpt
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.hf_config import config_from_hf
from jaxgpt.convert.mapping import to_theirs
from jaxgpt.data.corpus import tokenise
from jaxgpt.data.preferences import preference_of
from jaxgpt.data.sources import find
from jaxgpt.params import named_params
from jaxgpt.training.data.packing import make_pairs
from jaxgpt.training.data.rows import Pairs
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.step import Objective, Preference, TrainState, make_eval_step, make_reference_step

B, T = 4, 12


@pytest.fixture(scope="module")
def models():
    """A policy and a reference, in PyTorch and here."""
    theirs = [random_hf(seed) for seed in (0, 1)]
    ours = []
    for model in theirs:
        config = config_from_hf(model.config.to_dict())
        state = {name: p.detach().numpy() for name, p in model.state_dict().items()}
        params, config = jaxgpt.convert.mapping.to_ours(HF, state, config)
        ours.append(
            jaxgpt.with_params(jaxgpt.model.gpt.abstract(config), {n: jnp.asarray(p) for n, p in params.items()})
        )
    return theirs, ours


def some_batch() -> Batch:
    """Answers of different lengths, some of which begin late, and prompts that do not count."""
    tokens, weights = random_tokens((B, 2, T + 1)), np.zeros((B, 2, T), np.float32)
    for i in range(B):
        for j in range(2):
            weights[i, j, 2 + i : 5 + 2 * i - j] = 1
    return Batch(jnp.asarray(tokens), jnp.asarray(weights))


def torch_sums(model, batch: Batch) -> torch.Tensor:
    """The log-likelihoods of the answers (B, 2)."""
    tokens = torch.tensor(np.asarray(batch.tokens), dtype=torch.long).reshape(2 * B, T + 1)
    logps = log_softmax(model(tokens[:, :-1]).logits, -1).gather(-1, tokens[:, 1:, None])[..., 0]
    return (logps * torch.tensor(np.asarray(batch.weights)).reshape(2 * B, T)).sum(1).reshape(B, 2)


def theirs_of(kind: str, policy, reference, batch: Batch, beta: float, smoothing: float, margin: float):
    """The mean loss and the rewards, as the papers and TRL have them."""
    sums = torch_sums(policy, batch)
    if kind == "dpo":
        with torch.no_grad():
            start = torch_sums(reference, batch)
        rewards = beta * (sums - start)
    else:
        rewards = beta * sums / torch.tensor(np.asarray(batch.weights)).sum(2)
    logits = rewards[:, 0] - rewards[:, 1] - margin
    return (-logsigmoid(logits) * (1 - smoothing) - logsigmoid(-logits) * smoothing).mean(), rewards.detach()


@pytest.mark.parametrize(
    ("kind", "beta", "smoothing", "margin"),
    [("dpo", 0.1, 0.0, 0.0), ("dpo", 0.7, 0.2, 0.0), ("simpo", 2.0, 0.0, 1.0), ("simpo", 1.3, 0.1, 0.0)],
)
def test_loss_rewards_and_gradients_are_those_of_the_formula(models, kind, beta, smoothing, margin):
    (policy, reference), (ours, our_reference) = models
    batch = some_batch()
    policy.zero_grad()
    expected, rewards = theirs_of(kind, policy, reference, batch, beta, smoothing, margin)
    expected.backward()
    if kind == "dpo":
        found = make_reference_step(our_reference)(named_params(our_reference), batch)
        np.testing.assert_allclose(found, torch_sums(reference, batch).detach(), rtol=1e-5)
        batch = replace(batch, reference=found)
    objective = Objective(label_smoothing=smoothing, preference=Preference(beta, margin))
    state = TrainState(0, named_params(ours), {}, None)
    (loss, measured), grads = objective.loss_and_grads(ours, state, batch, None)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert float(measured["reward_margin"]) == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), rel=1e-4)
    assert float(measured["reward_accuracy"]) == float((rewards[:, 0] > rewards[:, 1]).float().mean())
    grads = to_theirs(HF, {name: np.asarray(g) for name, g in grads.items()}, ours.config)
    for name, p in policy.named_parameters():
        scale = float(p.grad.abs().max())
        np.testing.assert_allclose(grads[name], p.grad, atol=1e-4 * scale, err_msg=name)
    parts = replace(objective, accumulate=2).loss_and_grads(ours, state, batch, None)
    np.testing.assert_allclose(parts[0][0], loss, rtol=1e-6)
    assert float(parts[0][1]["reward_accuracy"]) == float(measured["reward_accuracy"])


def test_rows_that_fill_a_batch_up_count_nothing(models):
    _, (ours, _) = models
    batch = some_batch()
    filled = Batch(*(jnp.concatenate([x, jnp.zeros_like(x[:3])]) for x in (batch.tokens, batch.weights)))
    step = make_eval_step(ours, Objective(label_smoothing=0.3, preference=Preference(2.0, 1.0)))
    for a, b in zip(step(named_params(ours), batch), step(named_params(ours), filled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert float(step(named_params(ours), filled)[1]) == B


# records


def test_texts_have_a_prompt_or_share_a_beginning():
    given = {"prompt": "Who?", "chosen": " Me.", "rejected": " You.", "score": 3}
    found = preference_of(given)
    assert found.pair == (("Who?", " Me."), ("Who?", " You."))
    assert (found.is_chat, found.unread) == (False, ("score",))
    whole = {"chosen": "Human: hi  you\n\nIt: yes", "rejected": "Human: hi  you\n\nIt: yesterday"}
    assert preference_of(whole).pair[0] == ("Human: hi  you\n\nIt:", " yes")
    assert preference_of({"chosen": "abc", "rejected": "abd"}).pair == (("", "abc"), ("", "abd"))


def say(role: str, content: str) -> dict:
    return {"role": role, "content": content}


Q, GOOD, BAD = say("user", "Who?"), say("assistant", "Me."), say("assistant", "You.")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Who?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Who?", "chosen": [Q, GOOD], "rejected": [Q, BAD]},  # as ultrafeedback has it
        {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
        {"prompt": [{"from": "human", "value": "Who?"}], "chosen": [GOOD], "rejected": [BAD]},
    ],
    ids=["lists", "a text", "twice", "shared", "from"],
)
def test_messages_in_every_form_are_the_same_pair(record):
    assert preference_of(record).pair == ((Q, GOOD), (Q, BAD))


def test_only_the_answer_counts_in_a_conversation_of_several_turns():
    first = [say("system", "Be kind."), Q, say("assistant", "Why?"), say("user", "So.")]
    for record in (
        {"prompt": first, "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [*first, GOOD], "rejected": [*first, BAD]},
    ):
        chosen, _ = preference_of(record).pair
        assert [message.get("weight", 1) for message in chosen if message["role"] == "assistant"] == [0, 1]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "a", "chosen": "b"}, "not a preference: expected prompt, chosen and rejected"),
        ({"text": "a"}, "its fields are 'text'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"prompt": "a", "chosen": [GOOD], "rejected": [GOOD | {"id": 3}]}, "are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "two texts, or two lists"),
        ({"prompt": 3, "chosen": [GOOD], "rejected": [BAD]}, "prompt must be a text or a list"),
        ({"prompt": [Q], "chosen": "a", "rejected": "b"}, "prompt must be a text"),
        ({"prompt": [Q], "chosen": [Q], "rejected": [BAD]}, "chosen has no message from the assistant"),
        ({"chosen": [Q, GOOD], "rejected": [Q]}, "rejected has no message from the assistant"),
        ({"prompt": "a", "chosen": 1, "rejected": 2}, "two texts, or two lists"),
        ({"prompt": [Q], "chosen": [{"role": "x", "content": ""}], "rejected": [BAD]}, "the role of a message"),
    ],
)
def test_what_is_no_preference_is_refused(record, says):
    with pytest.raises(InputError, match=says):
        preference_of(record)


def pairs_of(tmp_path, records, context: int):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = jaxgpt.load_tokenizer("tiny")
    jaxgpt.chat.prepare_chat(tokenizer)
    corpus = tokenise(find(tmp_path / "p.jsonl", preferences=True), tokenizer, cache=tmp_path / "cache")
    pieces = make_pairs(corpus, range(len(corpus.ends)), context + 1)
    return tokenizer, corpus, Pairs(corpus.tokens, corpus.counts, pieces, context), pieces


def test_the_tokens_of_a_row_are_both_texts_and_the_answers_count(tmp_path):
    records = [{"prompt": "In the beginning", "chosen": " God created", "rejected": " was nothing at all"}] * 2
    records[1] = records[1] | {"chosen": " God created" * 30}
    tokenizer, corpus, pairs, pieces = pairs_of(tmp_path, records, 20)
    assert (corpus.kind, len(corpus.ends), pieces.left_out, len(pairs)) == ("pairs", 4, 1, 1)
    row = pairs[0]
    assert {name: x.shape for name, x in row.items()} == {"tokens": (2, 21), "weights": (2, 20)}
    for text, tokens, weights in zip(
        (" God created", " was nothing at all"), row["tokens"], row["weights"], strict=True
    ):
        answer = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        prompt = tokenizer("In the beginning")["input_ids"]
        whole = [*prompt, *answer]
        assert tokens[: len(whole)].tolist() == whole
        assert tokens[len(whole) :].tolist() == [0] * (21 - len(whole))
        assert np.flatnonzero(weights).tolist() == list(range(len(prompt) - 1, len(whole) - 1))
    assert corpus.origin(pairs.begins(0)[0]).endswith("p.jsonl, line 1")


def test_conversations_are_written_by_the_template(tmp_path):
    tokenizer, corpus, pairs, _ = pairs_of(tmp_path, [{"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}], 40)
    assert corpus.kind == "chat pairs"
    for answer, tokens, weights in zip((GOOD, BAD), pairs[0]["tokens"], pairs[0]["weights"], strict=True):
        text = tokenizer.apply_chat_template([Q, answer], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens[: len(ids)].tolist() == ids
        said = tokenizer.decode(tokens[1:][weights > 0]).strip()
        assert said == f"{answer['content']}{tokenizer.eos_token}"


def test_bad_records_leave_whole_pairs_out(tmp_path):
    good = {"prompt": "a", "chosen": " b", "rejected": " c"}
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, [good, {"prompt": "a", "chosen": "b"}, good])))
    source = find(tmp_path / "p.jsonl", preferences=True, skip_bad_records=True)
    corpus = tokenise(source, jaxgpt.load_tokenizer("tiny"), cache=tmp_path / "cache")
    assert len(corpus.ends) == 4
    assert "1 bad record is left out" in corpus.left_out
    assert corpus.origin(int(corpus.ends[2])).endswith("line 3")


# runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Preferences that are easy to learn: of two verbs the same one is always better."""
    path = tmp_path_factory.mktemp("preferences") / "p.jsonl"
    names = ("Moses", "David", "Sarah", "Ruth", "Noah")
    records = [
        {"prompt": f"And {name} number {i}", "chosen": " said" * (1 + i % 3), "rejected": " went" * (1 + i % 2)}
        for i, name in enumerate(names * 10)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


FLAGS = ("--batch-size=4", "--steps=8", "--eval-every=4", "--checkpoint-every=2", "--context=24", "--keep=9")


@pytest.fixture(scope="module")
def run(small, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("dpo") / "run"
    flags = [f"--model={small}", f"--data={data}", "--objective=dpo", "--freeze=gradual:lora@0,last1@50%"]
    return out, call("train", *flags, *FLAGS, "--lr=3e-3", f"--out={out}", report=True, samples=False).stdout


def test_a_run_learns_what_is_preferred(run):
    out, said = run
    assert "0.693 nats per held-out preference at step 0; a model that favours neither answer has ln(2) = 0.693" in said
    assert "8 steps of 4 pairs of answers x 24 tokens" in said
    assert "dpo, beta 0.1, margin 0" in said
    lines = metrics(out)
    assert lines[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[0]["eval_reward_accuracy"] == 0.5
    assert lines[-1]["eval_loss"] < 0.6
    assert lines[-1]["eval_reward_accuracy"] == 1
    assert lines[-1]["reward_margin"] > lines[2]["reward_margin"] > 0
    assert (out / "plots" / "rewards.svg").exists()
    report = (out / "report.html").read_text()
    assert "nats per preference; the preferred answer is ahead in 50% → 100% of the pairs" in report
    assert "Line charts of the rewards" in report


@pytest.mark.parametrize("step", [2, 4])
def test_it_resumes_bitwise_with_the_same_reference(run, tmp_path, step):
    out = shutil.copytree(run[0], tmp_path / "run")
    for later in range(step + 2, 9, 2):
        shutil.rmtree(out / "checkpoints" / str(later))
    call("train", "--resume", out, samples=False)
    assert_same_run(out, run[0], 8)


def test_simpo_needs_no_reference(small, data, tmp_path):
    said = call(
        "train", f"--model={small}", f"--data={data}", "--objective=simpo", "--freeze=last1", *FLAGS, "--lr=1e-2",
        f"--out={tmp_path}/run", samples=False,
    ).stdout  # fmt: skip
    assert "simpo, beta 2, margin 1" in said
    lines = metrics(tmp_path / "run")
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    assert lines[-1]["eval_reward_accuracy"] == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--objective=dpo"], "--objective=dpo learns from records with prompt, chosen and rejected, not from"),
        (["--objective=dpo", "--rows=packed"], "--rows has no meaning with --objective=dpo"),
        (["--objective=dpo", "--margin=1"], "--margin has no meaning with --objective=dpo"),
        (["--beta=1"], "--beta has no meaning with --objective=next-token"),
        (["--objective=dpo", "--label-smoothing=0.5"], "--label-smoothing"),
        (["--objective=dpo", "--beta=0"], "--beta"),
        (["--objective=dpo", "--context=3", "--data=DATA"], "2 x 3|LEFT OUT"),
        (["--data=DATA"], "neither a text nor a conversation|--objective"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(small, data, tmp_path, flags, says):
    flags = [flag.replace("DATA", str(data)) for flag in flags]
    done = call("train", f"--model={small}", *flags, "--steps=1", f"--out={tmp_path}/run", check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(says, done.stderr), done.stderr
    assert not (tmp_path / "run").exists()
