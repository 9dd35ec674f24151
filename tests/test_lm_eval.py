"""The evaluation harness: scores, texts and metrics are those of its own model `hf` on the same weights."""

import json
import math
import re

import forked
import lm_eval
import numpy as np
import pytest
from conftest import ROOT, TINY, write_cut
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import jaxgpt
import jaxgpt.lm_eval
from jaxgpt.convert.errors import InputError
from jaxgpt.evaluation import score as scoring

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}a:{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT

BIBLE = "In the beginning God created the heaven and the earth. And the earth was without form, and void. "
PLAY = "ROMEO: But, soft! what light through yonder window breaks? It is the east, and Juliet is the sun.\n"


@pytest.fixture(scope="module")
def tokenizer():
    return jaxgpt.load_tokenizer("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model cut down to three of its blocks and a context of 64."""
    return write_cut(tmp_path_factory.mktemp("cut") / "hf", 64)


@pytest.fixture(scope="module")
def hf(folder):
    # without its cache of logits: with it, 0.4.13 reads the wrong positions where two requests with the same inputs
    # have continuations of different lengths
    return HFLM(str(folder), dtype="float32", device="cpu", batch_size=3, logits_cache=False)


@pytest.fixture(scope="module")
def ours(folder):
    model = jaxgpt.from_pretrained(folder)
    return jaxgpt.lm_eval.JaxGPT(model, jaxgpt.load_tokenizer(folder), batch_size=8)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def of_length(tokenizer, n: int, text: str = BIBLE + PLAY) -> str:
    """A text of n tokens."""
    ids = tokenizer.encode(text * (n // 20 + 1))[:n]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    return text


def continuations(tokenizer) -> list[tuple[str, str]]:
    """Pairs of all lengths: too long for the context of 64 by a bit or by far, and just not; empty contexts; …"""
    pairs = [
        ("In the beginning", " God created the heaven"),
        ("", "And it came to pass"),
        ("And ", " it came"),
        ("a", " b"),
    ]
    pairs += [
        ("", "<|endoftext|> And"),
        ("<|endoftext|>The", " king"),
        ("The king of", " Israel"),
        ("The king", " of Israel"),
    ]
    pairs += [("The king of", f" {word}") for word in ("Judah", "Babylon", "the", "a")]
    pairs += [
        (of_length(tokenizer, n), " and the sun") for n in (17, 63, 64, 200, 251, 252, 253, 254, 255, 256, 257, 700)
    ]
    pairs += [("The", of_length(tokenizer, n)) for n in (1, 5, 30, 62, 63, 64)]
    return pairs


def test_continuations_have_hfs_likelihoods(hf, ours, tokenizer):
    asked = requests("loglikelihood", *continuations(tokenizer))
    theirs, found = hf.loglikelihood(asked, disable_tqdm=True), ours.loglikelihood(asked, disable_tqdm=True)
    assert np.abs(np.subtract([x for x, _ in theirs], [x for x, _ in found])).max() <= 1e-4
    assert [greedy for _, greedy in theirs] == [greedy for _, greedy in found]
    likeliest = hf.generate_until(requests("generate_until", ("And it came", {"max_gen_toks": 5})), disable_tqdm=True)
    asked = requests("loglikelihood", ("And it came", likeliest[0]), ("And it came", likeliest[0] + " zebra"))
    assert [greedy for _, greedy in ours.loglikelihood(asked)] == [True, False]


def test_a_score_depends_on_nothing_else_in_the_batch(ours, tokenizer):
    model = ours.model
    pairs = [(tokenizer.encode(a) or [4095], tokenizer.encode(b)) for a, b in continuations(tokenizer)]
    found = {i: x for batch in scoring.score(model, pairs, batch_size=8) for i, *x in batch}
    assert sorted(found) == list(range(len(pairs)))
    for i in (0, 3, 9, 14, 20, 22):
        [[(_, logprob, greedy)]] = scoring.score(model, [pairs[i]], batch_size=1)
        assert abs(logprob - found[i][0]) <= 1e-4
        assert greedy == found[i][1]


def test_rows_of_padding_have_no_probability(ours, tokenizer):
    padded = jaxgpt.resize_vocab(ours.model, 4096, pad_multiple=4100)
    assert padded.config.n_padding == 4
    table = jaxgpt.named_params(padded)["tok_emb.embedding"].at[4096:].set(9.0)
    padded = jaxgpt.with_params(padded, jaxgpt.named_params(padded) | {"tok_emb.embedding": table})
    asked = requests("loglikelihood", *continuations(tokenizer)[:8])
    theirs = jaxgpt.lm_eval.JaxGPT(padded, tokenizer, batch_size=4).loglikelihood(asked, disable_tqdm=True)
    for (a, _), (b, _) in zip(theirs, ours.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert abs(a - b) <= 1e-4


def test_many_lengths_compile_few_programs(ours):
    scoring._score.clear_cache()
    pairs = [([1] * n, [2] * (1 + n % 4)) for n in range(1, 60)]
    assert sum(len(batch) for batch in scoring.score(ours.model, pairs, batch_size=16)) == 59
    assert scoring._score._cache_size() <= 5


def test_whole_texts_have_hfs_likelihoods_in_windows(hf, ours, tokenizer):
    texts = ["", "The", BIBLE, PLAY * 3, *(of_length(tokenizer, n) for n in (63, 64, 65, 127, 128, 129, 300))]
    asked = requests("loglikelihood_rolling", *((text,) for text in texts))
    theirs = hf.loglikelihood_rolling(asked, disable_tqdm=True)
    found = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    windows = np.maximum(1, np.ceil([len(tokenizer.encode(text)) / 64 for text in texts]))
    assert (np.abs(np.subtract(theirs, found)) <= 1e-4 * windows).all()  # both sum each window in float32
    assert found[0] == 0 > found[1]


def test_texts_are_hfs(hf, ours, tokenizer):
    """Prompts of all lengths, too long ones, stop strings, stop strings over several tokens, a repetition penalty."""
    prompts = ["The", "And God said,", BIBLE, "ROMEO:", PLAY, of_length(tokenizer, 44), of_length(tokenizer, 100)]
    settings = [
        {"until": ["\n"], "max_gen_toks": 24},
        {"until": [",", " and", "the L"], "max_gen_toks": 24, "do_sample": False},
        {"until": [], "max_gen_toks": 24, "temperature": 0.0, "num_beams": 1},
        {"until": "of", "max_new_tokens": 24, "repetition_penalty": 1.3},
    ]
    asked = requests("generate_until", *((prompt, given) for given in settings for prompt in prompts))
    theirs, found = hf.generate_until(asked, disable_tqdm=True), ours.generate_until(asked, disable_tqdm=True)
    assert found == theirs
    assert all(not any(stop in text for stop in ("\n",)) for text in found[:7])


def test_a_text_does_not_depend_on_its_batch(ours):
    """And an empty prompt is the end token's, which begins texts."""
    prompts = ["The", "And God said,", "ROMEO: But, soft!", "", "<|endoftext|>"]
    asked = requests("generate_until", *((prompt, {"until": [".", "the"], "max_gen_toks": 24}) for prompt in prompts))
    one = jaxgpt.lm_eval.JaxGPT(ours.model, ours.tokenizer, batch_size=1)
    texts = ours.generate_until(asked, disable_tqdm=True)
    assert texts == one.generate_until(asked, disable_tqdm=True)
    assert texts[3] == texts[4] != texts[0]


def test_draws_differ_between_batches_and_not_between_runs(ours):
    asked = requests("generate_until", *[("The", {"max_gen_toks": 12, "temperature": 1.0, "top_k": 0})] * 6)
    texts = [
        jaxgpt.lm_eval.JaxGPT(ours.model, ours.tokenizer, batch_size=4, seed=seed).generate_until(asked, True)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "jaxgpt has no num_beams"),
        ({"typical_p": 0.5, "max_length": 9}, "jaxgpt has no max_length, typical_p"),
        ({"until": [""]}, "a stop string must not be empty"),
        ({"max_gen_toks": 64}, "max_gen_toks must be from 1 to 63"),
        ({"max_gen_toks": 0}, "max_gen_toks must be from 1 to 63"),
        ({"do_sample": True}, "needs a temperature above 0"),
        ({"temperature": 1.0, "top_p": 2.0}, "top_p must be from 1e-30 to 1"),
    ],
)
def test_settings_that_are_not_ours_are_refused_before_anything_runs(ours, settings, message):
    settings = {"max_gen_toks": 4} | settings
    asked = requests("generate_until", ("The", {"max_gen_toks": 4}), ("The", settings))
    with pytest.raises(InputError, match=message):
        ours.generate_until(asked, disable_tqdm=True)


def test_requests_and_models_that_make_no_sense_are_refused(ours, tokenizer):
    for context, continuation, message in (
        ("The", "", r"the context or the continuation has no tokens, so it can't be scored \(1 of 2 requests\)"),
        ("a", "b", "the context or the continuation has no tokens"),  # "ab" is one token
        (" ", "The", "the context or the continuation has no tokens"),
        ("The", of_length(tokenizer, 65), "65 tokens does not fit into a context of 64"),
    ):
        with pytest.raises(InputError, match=message):
            ours.loglikelihood(requests("loglikelihood", ("The", " king"), (context, continuation)))
    for pair, message in (
        (([], [1]), "the context must not be empty"),
        (([1], []), "the continuation must not be empty"),
    ):
        with pytest.raises(InputError, match=message):
            next(scoring.score(ours.model, [pair]))
    with pytest.raises(InputError, match="ids must be from 0 to 4095, but range from -1 to 4096"):
        next(scoring.score(ours.model, [([4096], [-1])]))
    endless = jaxgpt.load_tokenizer("tiny")
    endless.eos_token = None
    for settings, message in (
        ({"batch_size": "auto"}, "batch_size must be an integer"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"max_length": 65}, "max_length is 65, but must be from 1 to the model's context of 64"),
        ({"n_head": 4}, "a loaded model takes no n_head"),
        ({"tokenizer": None}, "a loaded model needs tokenizer="),
        ({"tokenizer": endless}, "the tokenizer has no end-of-text token"),
    ):
        with pytest.raises(InputError, match=message):
            jaxgpt.lm_eval.JaxGPT(ours.model, **{"tokenizer": tokenizer} | settings)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, dict]:
    """A task of each kind, from local files."""
    folder = tmp_path_factory.mktemp("tasks")
    choices = [
        ["Israel", "cheese", "the whole earth"],
        ["the LORD", "Rome", "a"],
        [" light", " dark", "ness and night"],
    ]
    questions = ["And he became the king of", "And they said unto", BIBLE * 14 + "And God said, Let there be"]
    rows = {
        "choice": [{"q": questions[i], "choices": choices[i], "label": i} for i in range(3)],
        "perplexity": [{"text": BIBLE}, {"text": PLAY * 12}, {"text": "Hackers hack."}],
        "writing": [{"q": "And the king", "a": " said"}, {"q": PLAY + "JULIET:", "a": "my lord"}],
    }
    ask = {"doc_to_text": "{{q}}", "test_split": "test", "dataset_path": "json"}
    metrics = {
        "choice": ["acc", "acc_norm"],
        "perplexity": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
        "writing": ["exact_match"],
    }
    configs = {
        "choice": ask | {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"},
        "perplexity": ask | {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
        "writing": ask
        | {"output_type": "generate_until", "doc_to_target": "{{a}}"}
        | {"generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 20}},
    }
    for name, config in configs.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        config |= {"task": name, "dataset_kwargs": files, "metric_list": [{"metric": m} for m in metrics[name]]}
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # which is YAML too
    return configs | {"folder": folder}


def evaluate(model, tasks, **settings) -> dict:
    names = [tasks[name] for name in ("choice", "perplexity", "writing") if name in tasks]
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=names, bootstrap_iters=0, task_manager=manager, **settings)


def assert_equal(theirs: dict, found: dict, names=("choice", "perplexity", "writing")) -> None:
    for name in names:
        for metric, value in theirs["results"][name].items():
            other = found["results"][name][metric]
            if "perplexity" in metric and isinstance(value, float):
                # in nats, as they were summed in float32: a millionth of exp(12) is less than the last bit of 12
                value, other = math.log(value), math.log(other)
            assert other == value or other == pytest.approx(value, rel=1e-6), (name, metric)
        for a, b in zip(theirs["samples"][name], found["samples"][name], strict=True):
            assert a["arguments"] == b["arguments"]
            for (x,), (y,) in zip(a["resps"], b["resps"], strict=True):
                if isinstance(x, tuple):
                    assert abs(x[0] - y[0]) <= 1e-4
                    assert x[1] == y[1]
                else:
                    # of a long text more than 2,000 nats, whose last bit in float32 is 2.4e-4
                    assert x == y if isinstance(x, str) else x == pytest.approx(y, abs=2e-4, rel=2e-7)


def test_whole_tasks_give_hfs_metrics(hf, ours, tasks):
    theirs, found = evaluate(hf, tasks), evaluate(ours, tasks)
    assert_equal(theirs, found)
    assert found["config"]["model_num_parameters"] == jaxgpt.count_params(ours.model)
    assert found["config"]["model_dtype"] == "float32"
    assert any(sample["resps"][0][0] for sample in found["samples"]["writing"])


@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM], ids=["system role", "no system role"])
def test_chats_are_hfs(hf, ours, tasks, template, monkeypatch):
    for model in (hf, ours):
        monkeypatch.setattr(model.tokenizer, "chat_template", template)
    settings = {"apply_chat_template": True, "system_instruction": "Speak as a king."}
    chat = {name: tasks[name] for name in ("choice", "writing")}
    theirs, found = evaluate(hf, chat, **settings), evaluate(ours, chat, **settings)
    assert_equal(theirs, found, ["choice", "writing"])
    prompt = found["samples"]["writing"][0]["arguments"][0][0]
    assert prompt.endswith("user: And the king\na:")
    assert prompt.startswith("system: Speak as a king.") == (template == CHAT)
    assert hf.chat_template(True) == ours.chat_template(True) == template
    assert hf.tokenizer_name == ours.tokenizer_name


HOSTILE = {
    "memory": ("{{ 'a' * 10**10 }}", "takes more than 512 MB of memory"),
    "a long text": ("{{ 'a'.ljust(10**8) }}", "writes more than"),
    "a long text behind system": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('') }}{% endif %}{{ 'a'.ljust(10**8) }}",
        "writes more",
    ),
    "nothing of Python": ("{{ ().__class__.__base__.__subclasses__() }}", "fails (SecurityError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_has_the_limits_that_all_have(ours, name, monkeypatch):
    template, message = HOSTILE[name]
    monkeypatch.setattr(ours.tokenizer, "chat_template", template + "{{ messages[-1].content }}")
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    for begins_answer in (True, False):
        with pytest.raises(jaxgpt.InputError, match=re.escape(message)):
            ours.apply_chat_template(chat, add_generation_prompt=begins_answer)


@pytest.mark.parametrize("last", ["So ", "So", ""])
def test_a_last_message_is_gone_on_with_as_hf_does(hf, ours, last, monkeypatch):
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": last}]
    for model in (hf, ours):
        monkeypatch.setattr(model.tokenizer, "chat_template", CHAT)
    found = [model.apply_chat_template(chat, add_generation_prompt=False) for model in (hf, ours)]
    assert found[0] == found[1]
    assert found[0].endswith(f"assistant: {last}")


def test_answers_are_kept_in_the_harnesss_cache(ours, tasks, tmp_path, monkeypatch):
    settings = {"use_cache": str(tmp_path / "answers")}
    first = evaluate(ours, tasks, **settings)
    monkeypatch.setattr(jaxgpt.lm_eval, "score", None)
    monkeypatch.setattr(jaxgpt.lm_eval, "write", None)
    assert_equal(first, evaluate(ours, tasks, **settings))


def test_the_model_is_known_from_the_shell(ours, folder, tasks, tmp_path):
    as_module = 'import runpy; runpy.run_module("jaxgpt.lm_eval", run_name="__main__", alter_sys=True)'
    done = forked.run(
        as_module, "--model=jaxgpt", f"--model_args=pretrained={folder}", "--tasks=choice", "--batch_size=4",
        f"--include_path={tasks['folder']}", f"--output_path={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|choice" in done.stdout
    [written] = tmp_path.rglob("results_*.json")
    found = evaluate(ours, {"choice": tasks["choice"]})["results"]["choice"]
    for metric in ("acc,none", "acc_norm,none"):
        assert json.loads(written.read_text())["results"]["choice"][metric] == found[metric]


def test_the_bundled_model_is_known_by_name(tasks):
    settings = {"tasks": [tasks["choice"]], "bootstrap_iters": 0, "task_manager": TaskManager(include_defaults=False)}
    theirs = lm_eval.simple_evaluate(HFLM(str(TINY), dtype="float32", device="cpu"), **settings)
    found = lm_eval.simple_evaluate("jaxgpt", "pretrained=tiny,batch_size=9", **settings)
    assert_equal(theirs, found, ["choice"])
    with pytest.raises(InputError, match="nothing"):
        lm_eval.simple_evaluate("jaxgpt", "pretrained=nothing", **settings)


def test_only_this_needs_the_harness():
    """What everyone imports does not."""
    for path in (file for floor in ("convert", "jaxgpt", "train") for file in (ROOT / floor).rglob("*.py")):
        if path.stem not in ("lm_eval", "lm_eval_text"):
            assert not re.search(r"^\s*(import|from) .*\blm_eval\b", path.read_text(), re.M), path
