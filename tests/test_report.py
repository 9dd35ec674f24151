"""The report of a run, and the comparison of several: whole, self-contained, harmless, readable at any width."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import call

from jaxgpt.convert.errors import InputError
from jaxgpt.training.report.comparison import remarks, run_names, write_comparison
from jaxgpt.training.report.embedding import NewRows
from jaxgpt.training.report.outcome import Outcome, duration, what_trains
from jaxgpt.training.report.page import write_report
from jaxgpt.training.report.samples import looks_like_code, moments, read_turns
from jaxgpt.training.run.run_json import PhaseInfo, RunInfo
from jaxgpt.training.settings import Settings

EVIL = (
    "<script>alert(1)</script> </pre><img src=x onerror=alert(2)> \"' & ${title} $page {{ title }} {% raw %} "
    "\x00\x1b[31m \ud800 " + "W" * 300
)
MODULES = ["tok_emb", "pos_emb", "blocks.0", "blocks.1", "blocks.2", "ln_f"]


def make_run(folder: Path, evil: str = "", **changes) -> Path:
    """The files of a run of 60 steps in two phases."""
    settings = json.loads(json.dumps(asdict(Settings()), default=str))
    settings |= {"freeze": "gradual", "steps": 60, "prompt": f"Once {evil}".strip(), "out": str(folder)} | changes
    phases = [
        {"start": 0, "name": "head", "trainable": 524_288, "trains": dict.fromkeys(MODULES, 0.0) | {"ln_f": 1.0}},
        {"start": 20, "name": f"full{evil}", "trainable": 3_400_000, "trains": dict.fromkeys(MODULES, 1.0)},
    ]
    facts = {
        "settings": settings,
        "command": f"python -m train --freeze=gradual --steps=60 {evil}".strip(),
        "sanity": f"model       tiny: 3 blocks, width 128\nloss        4.2 nats per held-out token {'x' * 150}\n{evil}",
        "data": {"source": f"book.txt{evil}", "sha256": "ab" * 32, "train": 90_000, "held_out": 10_000},
        "parameters": {"all": 3_400_000, "trainable": 524_288},
        "phases": phases,
        "machine": {"python": "3.11", "platform": f"Linux{evil}", "devices": ["cpu"], "packages": {"jax": "0.10.2"}},
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts))
    rng = np.random.default_rng(0)
    with (folder / "metrics.jsonl").open("w") as metrics, (folder / "updates.jsonl").open("w") as updates:
        for step in range(61):
            fresh = {"loss": None, "lr": None, "grad_norm": None, "tokens_per_s": None} if step == 0 else {
                "loss": 4 - step / 40 + 0.1 * rng.normal(), "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1e4 + step
            }  # fmt: skip
            line = {
                "step": step,
                "eval_loss": 4.2 - step / 40 if step % 20 == 0 else None,
                "peak_memory": 2**30,
            } | fresh
            metrics.write(json.dumps(line) + "\n")
            if step:
                trains = phases[step > 20]["trains"]
                moves = {name: 1e-3 * rng.random() * trains[name] for name in MODULES}
                updates.write(json.dumps({"step": step, "updates": moves}) + "\n")
    (folder / "samples.md").write_text(
        f"## Before training\n\nThe cat\n## not a heading\n{evil}\n\n## After 60 steps\n\nThe dog {evil}\n",
        "utf-8", errors="replace",
    )  # fmt: skip
    matrix = rng.normal(size=(20, 36))
    NewRows.of(matrix[:18], matrix, [f"<|user|>{evil}"]).write(folder / "plots")
    return folder


class Page(HTMLParser):
    """Elements and their attributes; whatever isn't closed in order is a mistake."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.open, self.text, self.cells = [], [], "", []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
        if {"th", "td"} & set(self.open[-2:]):
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]

    def classes(self, name: str) -> list[dict]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]


def table_row(page: Page, name: str, n: int = 2) -> list[str]:
    """The cells after the heading of a flag's row."""
    i = page.cells.index(f"--{name}")
    return page.cells[i + 1 : i + 1 + n]


def read(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.rglob("*.tmp"))
    return Page(path.read_text("utf-8"))


# without a browser


def test_the_report_says_what_the_run_did(tmp_path):
    page = read(make_run(tmp_path / "a run"))
    assert page.elements[0] == ("html", {"lang": "en"})
    for words in (
        "The held-out loss fell from 4.200 to 2.700 by step 60.", "4.200 → 2.700", "perplexity 66.7 → 14.9",
        "60 of 60 steps", "3.4M", "100.0%: 3,400,000 of 3,400,000", "524,288 in the first of 2 phases", "10,030",
        "1.00 GiB", "The cat\n## not a heading", "The dog", "model       tiny",
        "python -m train --freeze=gradual --steps=60", "0.10.2", "--batch-size", "held-out loss 2.700, the last one",
        f"jaxgpt train --resume '{tmp_path}/a run'", f"jaxgpt generate '{tmp_path}/a run' --prompt=Once",
        f"jaxgpt convert '{tmp_path}/a run' '{tmp_path}/a run-hf' --to=hf",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.index("The held-out loss fell") < page.text.index("perplexity") < page.text.index("The dog")
    assert page.text.index("The dog") < page.text.index("--resume") < page.text.index("model       tiny")


PICTURES = {"loss", "updates", "freeze", "embedding", "gradient", "rate", "throughput", "memory"}


def test_each_picture_is_there_wide_and_narrow_and_as_a_file(tmp_path):
    folder = make_run(tmp_path / "run")
    page = read(folder)
    assert len(page.classes("wide")) == len(page.all("svg")) / 2 + 1  # and the checks
    assert len(page.classes("narrow")) == len(PICTURES)
    assert all(svg["aria-label"] and svg["viewbox"] for svg in page.all("svg"))
    assert {path.name for path in (folder / "plots").iterdir()} == {f"{name}.svg" for name in PICTURES} | {
        "embedding.json"
    }
    (folder / "plots" / "rewards.svg").write_text("of an earlier time")
    (folder / "plots" / "loss.png").write_text("of an earlier version")
    read(folder)
    assert not {"rewards.svg", "loss.png"} & {path.name for path in (folder / "plots").iterdir()}


def test_a_page_elsewhere_leaves_the_run_as_it_is(tmp_path):
    folder = make_run(tmp_path / "run")
    before = sorted(folder.rglob("*"))
    assert write_report(folder, tmp_path / "page.html").is_file()
    assert sorted(folder.rglob("*")) == before


def test_the_report_is_small(tmp_path):
    assert write_report(make_run(tmp_path / "run")).stat().st_size < 150_000


def test_settings_that_differ_come_first_and_the_others_are_folded(tmp_path):
    html = write_report(make_run(tmp_path / "run")).read_text()
    marked = re.findall(r'<tr class="changed"><th scope="row">(.*?)</th>', html)
    assert marked == ["--freeze", "--steps", "--out", "--prompt"]
    assert html.rindex('class="changed"') < html.index("at their defaults</summary>") < html.index(">--model<")
    page = Page(html)
    assert table_row(page, "freeze") == ["gradual", "full"]
    assert table_row(page, "steps") == ["60", "150, unless --epochs is given"]


def test_settings_that_the_run_resolved_are_shown_with_their_values(tmp_path):
    folder = make_run(tmp_path / "run", patience=None, lr=None, mesh=None, dropout=0.2)
    assert table_row(read(folder), "lr", 1) == ["0.128 / n_embd: 1e-3 for tiny, 1.7e-4 for gpt2"]
    facts = json.loads((folder / "run.json").read_text())
    resolved = {"lr": 0.001, "mesh": "data=1,fsdp=1,tensor=1", "dropout": 0.2, "context": 0, "prompt": EVIL}
    (folder / "run.json").write_text(json.dumps(facts | {"resolved": resolved}))
    page = read(folder)
    assert table_row(page, "lr", 1) == ["0.001"]
    assert table_row(page, "mesh", 1) == ["data=1,fsdp=1,tensor=1"]
    assert table_row(page, "context", 1) == ["0"]
    assert table_row(page, "dropout") == ["0.2", "the checkpoint's config, 0.1 for gpt2"]
    assert table_row(page, "prompt", 1) == ["Once"]
    assert table_row(page, "patience", 1) == ["never"]
    for odd in (None, 3, ["lr"], "lr"):
        (folder / "run.json").write_text(json.dumps(facts | {"resolved": odd}))
        assert table_row(read(folder), "lr", 1)[0].startswith("0.128 / n_embd")


def test_a_command_that_resumes_is_not_told_to_twice(tmp_path):
    folder = make_run(tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"command": "python -m train --resume"}))
    assert "--resume --resume" not in read(folder).text


def assert_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert not re.search(r"https?://|@import|url\(", html)
    for _, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in {"src", "href", "xlink:href"} & attrs.keys():
            assert attrs[name].startswith("data:")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignobject",
        "use",
        "image",
        "animate",
    }
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_the_pages_need_nothing_else_and_run_nothing(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    assert_needs_nothing_else(write_report(folders[0]).read_text())
    assert_needs_nothing_else(write_comparison(folders, tmp_path / "comparison.html").read_text())


def shape(page: Page) -> list:
    """The elements with the names of their attributes, and the classes, none of which comes from a file."""
    return [(tag, attrs.keys(), attrs.get("class")) for tag, attrs in page.elements]


def test_nothing_from_the_files_is_markup(tmp_path):
    page = read(make_run(tmp_path / "evil", EVIL, model=EVIL, **{EVIL: EVIL}))
    assert shape(page) == shape(read(make_run(tmp_path / "tame", model="m", x="y")))
    assert page.text.count("<script>alert(1)</script> </pre><img src=x onerror=alert(2)>") >= 10
    assert "\x00" not in page.text
    assert page.text.count("${title} $page {{ title }} {% raw %}") >= 10


def test_nothing_from_the_files_is_markup_in_a_comparison(tmp_path):
    pages = []
    for name, evil in (("evil", EVIL), ("tame", "")):
        folders = [
            make_run(tmp_path / name / f"<b>{i}&\"' <script>", evil, model=f"m{i}{evil}", freeze=f"f{i}{evil}")
            for i in range(2)
        ]
        pages.append(Page(write_comparison(folders, tmp_path / f"{name}.html").read_text("utf-8")))
    assert shape(pages[0]) == shape(pages[1])
    assert pages[0].text.count("<script>alert(1)</script> </pre><img src=x onerror=alert(2)>") >= 6
    assert "<b>0&\"' <script> and <b>1&\"' <script> reached the same held-out loss" in pages[0].text
    assert "\x00" not in pages[0].text


@pytest.mark.parametrize("name", ["metrics.jsonl", "updates.jsonl", "samples.md", "plots/embedding.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "one line"])
def test_a_killed_runs_report_says_what_is_missing(tmp_path, name, how):
    folder = make_run(tmp_path / "run")
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2 + 3], "one line": whole.splitlines()[0]}[how])
    text = read(folder).text
    says = {
        "metrics.jsonl": ("No picture of the loss: the run recorded no data", "No evaluation was recorded"),
        "updates.jsonl": ("No picture of the updates: ",),
        "samples.md": ("No sample was recorded.",),
        "plots/embedding.json": (),
    }[name]
    for words in says if how in ("missing", "empty") else ():
        assert words in text
    assert ("new rows" in text) == (name != "plots/embedding.json")
    if name == "metrics.jsonl" and how != "missing":
        assert "unfinished" in text


def test_numbers_that_are_none(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = [{"step": 0, "eval_loss": 4.0}, {"step": 1, "loss": float("nan")}, {"step": 2, "eval_loss": float("inf")}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    (folder / "updates.jsonl").write_text(
        '{"step": 1, "updates": {"tok_emb": NaN, "blocks.0": null, "ln_f": Infinity}}'
    )
    page = read(folder)
    assert "4.000 → inf" in page.text
    assert "Training broke off at step 2: the held-out loss is inf." in page.text
    assert {"loss.svg", "updates.svg"} <= {path.name for path in (folder / "plots").iterdir()}


def test_odd_numbers_of_every_kind_make_a_page(tmp_path):
    folder = make_run(tmp_path / "run")
    odd = [None, True, "x", [], {}, -1, 0, 1e308, -1e308, 10**30, float("nan"), float("inf"), -float("inf"), 1e-320]
    names = ["loss", "eval_loss", "lr", "grad_norm", "tokens_per_s", "peak_memory", "trainable_params", "ema_eval_loss",
             "reward_margin", "reward_accuracy", "eval_reward_accuracy"]  # fmt: skip
    lines = [{"step": i} | {name: odd[(i + j) % len(odd)] for j, name in enumerate(names)} for i in range(60)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    updates = [
        {"step": i, "updates": {name: odd[(i + j) % len(odd)] for j, name in enumerate(MODULES)}} for i in range(60)
    ]
    (folder / "updates.jsonl").write_text("\n".join(map(json.dumps, updates)))
    facts = json.loads((folder / "run.json").read_text())
    for value in odd:
        facts["settings"] |= dict.fromkeys(("clip", "patience", "batch_size", "context", "prompt", "freeze"), value)
        facts |= {"resolved": {"context": value, "lr": value}, "failure": {"step": value, "what": value}}
        facts |= {"changed": [{"step": value, "what": value}], "machine": {"packages": value, "devices": value}}
        (folder / "run.json").write_text(json.dumps(facts))
        read(folder)
        write_comparison([folder, folder], tmp_path / "comparison.html")


def test_a_run_without_phases_has_a_report(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_text('{"settings": {"model": "tiny"}}')
    page = read(folder)
    assert "No phases were recorded." in page.text
    assert not (folder / "plots" / "freeze.svg").exists()


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", '{"settings": 3}', '{"settings": {}, "phases": [{"start": 0}]}', "\xff"]
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"run\.json can't be read as the run\.json of a run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_of_very_many_modules_and_phases_has_a_page_of_some_size(tmp_path):
    folder = make_run(tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    modules = [f"blocks.{i}" for i in range(3000)]
    facts["phases"] = [
        {"start": i, "name": f"p{i}", "trainable": i, "trains": dict.fromkeys(modules, float(i > 100))}
        for i in range(300)
    ]
    (folder / "run.json").write_text(json.dumps(facts))
    lines = [{"step": i, "updates": dict.fromkeys(modules[:2000], 0.01)} for i in range(1, 200)]
    (folder / "updates.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "samples.md").write_text("## Before training\n" + "<|user|>" * 10**6)
    assert write_report(folder).stat().st_size < 4_000_000


# the verdict


def outcome(losses: dict[int, float], planned: int, last: int | None = None, failure=None, **settings) -> Outcome:
    """A run with these evaluations, and a training loss in each step."""
    last = max(losses, default=0) if last is None else last
    metrics = [{"step": i, "loss": 3.0, "eval_loss": losses.get(i), "tokens_per_s": 100.0} for i in range(last + 1)]
    settings = {"batch_size": 2, "context": 50} | settings
    return Outcome.of(RunInfo(settings, steps=planned, failure=failure or {}), metrics)


NAN, INF = float("nan"), float("inf")
VERDICTS = {
    "improved": (
        outcome({0: 4.5, 10: 3.0, 20: 2.5}, 20),
        ("improved", "good"), "The held-out loss fell from 4.500 to 2.500 by step 20.", [],
    ),
    "overfitted": (
        outcome({0: 4.5, 10: 2.5, 20: 3.0}, 20),
        ("improved", "good"),
        "The held-out loss fell from 4.500 to 2.500 at step 10, and then rose to 3.000 by step 20.",
        ["The commands below use the best checkpoint, that of step 10."],
    ),
    "worse": (
        outcome({0: 2.5, 10: 2.8, 20: 3.5}, 20),
        ("worse", "bad"), "The held-out loss rose from 2.500 to 3.500 by step 20.",
        ["No evaluation was better than the one before training: a smaller --lr may help."],
    ),
    "better, then worse": (
        outcome({0: 2.5, 10: 2.0, 20: 3.5}, 20),
        ("worse", "bad"),
        "The held-out loss fell from 2.500 to 2.000 at step 10, and then rose above where it began, to 3.500 by "
        "step 20.",
        ["The commands below use the best checkpoint, that of step 10."],
    ),
    "unchanged": (
        outcome({0: 2.5, 20: 2.5}, 20), ("no change", "fair"),
        "The held-out loss did not change overall: 2.500 by step 20.", [],
    ),
    "stopped early": (
        outcome({0: 4.5, 10: 2.5, 20: 2.6, 30: 2.7}, 100, patience=2),
        ("stopped early", "good"),
        "The held-out loss fell from 4.500 to 2.500 at step 10, and then rose to 2.700 by step 30.",
        [
            "Training stopped early, at step 30 of 100: 2 evaluations in a row were no better.",
            "The commands below use the best checkpoint, that of step 10.",
        ],
    ),
    "unfinished": (
        outcome({0: 4.5, 10: 3.0}, 100, last=14, patience=5),
        ("unfinished", "fair"), "The held-out loss fell from 4.500 to 3.000 by step 14.",
        ["Training is not finished: 14 of 100 steps are done."],
    ),
    "killed early": (
        outcome({0: 4.5}, 100, last=3),
        ("unfinished", "fair"), "The held-out loss was 4.500 at step 0, and was not measured again.",
        ["Training is not finished: 3 of 100 steps are done."],
    ),
    "never evaluated": (
        outcome({}, 3, last=3), ("not evaluated", "fair"), "No evaluation was recorded.", [],
    ),
    "a loss that is not finite": (
        outcome({0: 4.5, 10: 3.0}, 100, last=14, failure={"step": 15, "what": "the loss is nan"}),
        ("broke off", "bad"), "Training broke off at step 15: the loss is nan.",
        [
            "The held-out loss fell from 4.500 to 3.000 before.",
            "A smaller --lr or a longer --warmup may help; --resume goes on from the last good checkpoint.",
        ],
    ),
    "an evaluation that is not finite": (
        outcome({0: 4.5, 10: INF}, 100),
        ("broke off", "bad"), "Training broke off at step 10: the held-out loss is inf.",
        [
            "The held-out loss went from 4.500 to inf before.",
            "A smaller --lr or a longer --warmup may help; --resume goes on from the last good checkpoint.",
        ],
    ),
    "went on after a failure": (
        outcome({0: 4.5, 20: 3.0}, 20, failure={"step": 15, "what": "the loss is nan"}),
        ("improved", "good"), "The held-out loss fell from 4.500 to 3.000 by step 20.", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_says_how_it_went(name):
    found, badge, verdict, remarks = VERDICTS[name]
    assert found.badge == badge
    assert found.verdict == verdict
    assert found.remarks == remarks


def test_the_time_of_the_steps_is_theirs():
    assert outcome({0: 1.0}, 5, last=4).seconds == pytest.approx(5 * 100 / 100)  # 2 x 50 tokens at 100 per second
    assert outcome({0: 1.0}, 5, last=4, context=None).seconds is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (12.4, "12 s"), (59.9, "60 s"), (125, "2 min 5 s"), (7260, "2 h 1 min"), (200_000, "2 d 7 h"),
     (INF, "unknown")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("trains", "words"),
    [
        ({"tok_emb": 0.0, "blocks.0": 0.0, "blocks.1": 1.0, "blocks.2": 1.0, "ln_f": 1.0}, "blocks 1–2, ln_f"),
        ({"tok_emb": 1.0, "blocks.0": 1.0}, "every layer"),
        ({"tok_emb": 0.5, "blocks.0": 1.0}, "a part of every layer"),
        ({"tok_emb": 0.0, "blocks.0": 1.0, "blocks.1": 0.0, "blocks.2": 0.2}, "blocks 0, 2"),
        ({"tok_emb": 1.0, "blocks.3": 0.0}, "tok_emb"),
        ({"tok_emb": 0.0}, "nothing"),
    ],
)
def test_what_trains_in_words(trains, words):
    assert what_trains(PhaseInfo(0, "x", 1, trains)) == words


# samples

CHATS = {
    "our own": "<|user|> Who was king? <|assistant|> It was Saul.<|endoftext|>",
    "ChatML": "<|im_start|>user\nWho was king?<|im_end|>\n<|im_start|>assistant\nIt was Saul.<|im_end|>\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho was king?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nIt was Saul.<|eot_id|>",
    "Gemma": "<bos><start_of_turn>user\nWho was king?<end_of_turn>\n<start_of_turn>model\nIt was Saul.<end_of_turn>\n",
    "Mistral": "<s>[INST] Who was king? [/INST] It was Saul.</s>",
}


@pytest.mark.parametrize("name", CHATS)
def test_conversations_are_read_as_turns(name):
    turns = read_turns(CHATS[name])
    assert [(turn.role, turn.text) for turn in turns] == [("user", "Who was king?"), ("assistant", "It was Saul.")]


def test_what_is_no_conversation_has_no_turns():
    for text in ("", "The king", "As in <|user|> and so on", "[INST", "user: hi"):
        assert read_turns(text) == ()


def test_code_looks_like_code_and_prose_does_not():
    assert looks_like_code("def f(x):\n    y = x + 1\n    return y\n\nprint(f(3))\n")
    assert looks_like_code("int main() {\n  int x = 3;\n  return x;\n}\n")
    assert not looks_like_code(
        "The burden of the LORD, and not for ever.\nAnd the LORD shall bless; and\nfor he shall."
    )
    assert not looks_like_code("x = 3")
    assert not looks_like_code("a" * 10**6)


def test_samples_of_several_prompts_are_shown_beside_each_other():
    text = "## Before training\n\nA b\n\n### Sample 2\n\nC d\n\n"
    text += (
        "## After 60 steps\n\nA x\n\n### Sample 2, in which the model continues the beginning of a held-out text\n\n"
    )
    text += "C y\n### Sample 4\n"
    before, after = moments(text, ["A", "B"])
    assert [(sample.prompt, sample.text) for sample in before.samples] == [("A", " b"), ("", "C d")]
    assert [(sample.prompt, sample.text) for sample in after.samples] == [("A", " x"), ("", "C y\n### Sample 4")]
    assert after.when == "After 60 steps"


def test_a_page_shows_conversations_as_bubbles_and_code_as_code(tmp_path):
    folder = make_run(tmp_path / "run")
    code = "def f(x):\n    return x\n\nprint(f(3))"
    (folder / "samples.md").write_text(f"## Before training\n\n{code}\n\n## After 60 steps\n\n{CHATS['our own']}\n")
    page = read(folder)
    assert [attrs["class"] for attrs in page.classes("turn")] == ["turn user", "turn assistant"]
    assert len(page.classes("code")) == 1
    assert "<|endoftext|>" not in page.text


# the command


def test_the_command_writes_the_report_again(tmp_path):
    folder = make_run(tmp_path / "run")
    for _ in range(2):  # what it made itself it replaces
        assert call("jaxgpt", "report", folder).stdout == f"wrote {folder}/report.html\n"
        Page((folder / "report.html").read_text())
    out = tmp_path / "page.html"
    call("jaxgpt", "report", folder, f"--out={out}")
    done = call("jaxgpt", "report", folder, f"--out={out}", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--out: {out} exists already: choose another name, or replace it with --force" in done.stderr
    call("jaxgpt", "report", folder, f"--out={out}", "--force")


def test_the_command_compares_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, changes in (("a", {"lr": 0.1}), ("b", {"lr": 0.2, "freeze": "first1"})):
        make_run(tmp_path / name, **changes)
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    worse = [json.loads(line) for line in lines]
    for line in worse:
        line["eval_loss"] = None if line["eval_loss"] is None else line["eval_loss"] + 1
    (tmp_path / "b" / "metrics.jsonl").write_text("\n".join(map(json.dumps, worse)))
    assert call("jaxgpt", "report", "b", "a").stdout == "wrote comparison.html\n"
    page = Page((tmp_path / "comparison.html").read_text())
    assert "a reached the lowest held-out loss, 2.700; next is b with 3.700." in page.text
    assert "2 settings differ" in page.text
    assert table_row(page, "lr", 3)[:2] == ["0.2", "0.1"]
    assert table_row(page, "freeze", 3) == ["first1", "gradual", "full"]
    assert "--steps" not in page.cells
    i = page.cells.index("Tokens/s") + 2
    assert page.cells[i : i + 9] == ["b", "3.700", "60", "3.700", "60", "3,400,000", "–", "10,030", "improved"]
    done = call("jaxgpt", "report", "a", "b", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "comparison.html exists already" in done.stderr


def test_the_command_refuses_what_is_no_run_in_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("x")
    damaged = make_run(tmp_path / "damaged")
    (damaged / "run.json").write_text('{"settings": ')
    linked = make_run(tmp_path / "linked")
    (linked / "plots").rename(tmp_path / "elsewhere")
    (linked / "plots").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in (
        ([], "RUN is missing"),
        ([tmp_path / "nothing"], "is not a folder: name the folder of a run"),
        ([tmp_path / "file"], "is not a folder: name the folder of a run"),
        ([tmp_path / "other"], "other/run.json can't be read as the run.json of a run"),
        ([damaged], "damaged/run.json can't be read as the run.json of a run"),
        ([linked], "linked/plots is a file or a link that leads elsewhere"),
        ([run, damaged, f"--out={tmp_path}/x.html"], "damaged/run.json can't be read"),
        ([run, run, f"--out={tmp_path}/other"], "--out: "),
        ([*[run] * 9, f"--out={tmp_path}/x.html"], "from 2 to 8 runs are compared, not 9"),
        ([run, "--out=gs://bucket/x.html"], "is a URL"),
    ):
        done = call("jaxgpt", "report", *arguments, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), arguments
        assert words in done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_are_compared_have_different_names():
    assert run_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert run_names([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "b/y"]
    assert len(run_names([Path("/a/x"), Path("/a/x")])) == 2


def test_a_comparison_says_what_makes_it_unfair(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    facts = json.loads((folders[1] / "run.json").read_text())
    facts["data"] |= {"sha256": "cd" * 32, "tokenizer": "x"}
    (folders[1] / "run.json").write_text(json.dumps(facts | {"steps": 1000}))
    text = Page(write_comparison(folders, tmp_path / "comparison.html").read_text()).text
    for words in ("different data", "tokenizers differ", "Not finished: b."):
        assert words in text


# in a browser


class Browser:
    """Headless Chromium, spoken to through two pipes in its DevTools protocol."""

    FLAGS = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
    ).split()

    def __init__(self, program: str, profile: Path):
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        pipes = 'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"'  # the protocol wants them to be 3 and 4
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, program, *self.FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out), env=os.environ | {"IN": str(theirs_in), "OUT": str(theirs_out)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._read())

    def _read(self):
        end = time.monotonic() + 60
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], max(end - time.monotonic(), 0))[0], "Chromium doesn't answer"
            piece = os.read(self._in, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def value(self, expression: str):
        return self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)["result"][
            "value"
        ]

    def show(self, path: Path, width: int, scheme: str) -> None:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def close(self) -> None:
        for pipe in (self._in, self._out):
            os.close(pipe)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def evil_report(tmp_path_factory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("evil") / "run", EVIL, model=EVIL))


@pytest.fixture(scope="module")
def evil_comparison(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    runs = [make_run(folder / f"{i} {'W' * 60}", EVIL, model=EVIL, freeze=f"{i}{EVIL}") for i in range(3)]
    return write_comparison(runs, folder / "comparison.html")


OVERLAPS = """[...document.querySelectorAll('svg')].flatMap(svg => {
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()])
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
        && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4).map(([b, q]) => [a, b]))
})"""
"""Texts of a picture that lie on one another; the boxes of lines have some space above and below their letters."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 768, 1280])
@pytest.mark.parametrize(("page", "n_pictures"), [("evil_report", len(PICTURES)), ("evil_comparison", 1)])
def test_a_browser_shows_it_without_a_complaint(browser, page, n_pictures, width, scheme, request):
    evil_report = request.getfixturevalue(page)
    browser.show(evil_report, width, scheme)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelectorAll('details').forEach(d => d.open = true), innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = browser.value("[...document.querySelectorAll('svg')].filter(s => s.clientWidth).map(s => s.classList[0])")
    assert shown == ["narrow" if width < 704 else "wide"] * n_pictures
    sticking_out = """[...document.querySelectorAll('main *')].filter(e => !e.closest('pre.wide, pre.code, .scroll')
        && e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.value(sticking_out) == []
    assert browser.value(OVERLAPS) == []
    sizes = browser.value("""[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)
        .filter(height => height)""")
    assert min(sizes) >= (10 if width >= 400 else 8)  # pixels, with the space above and below the letters
    dark = browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert dark == (scheme == "dark")
    complaints = (
        "Log.entryAdded",
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
        "Page.javascriptDialogOpening",
    )
    assert [event for event in browser.events if event["method"] in complaints] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [evil_report.as_uri()]


def test_a_comparison_says_that_contexts_differ():
    def run(context):
        data = SimpleNamespace(held_out_sha256="a", sha256="b", held_out=9, tokenizer="t")
        info = SimpleNamespace(data=data, resolved={"context": context})
        return SimpleNamespace(name="r", info=info, outcome=SimpleNamespace(badge=("improved", "good")))

    assert remarks([run(64), run(64)]) == []
    (said,) = remarks([run(64), run(256)])
    assert said.startswith("Their contexts differ, 64 to 256 tokens")
    assert remarks([run("x"), run(None)]) == []
