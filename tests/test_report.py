"""The report of a run: whole, self-contained, harmless, and readable in a browser at any width."""

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

import numpy as np
import pytest

from jaxgpt.convert.errors import InputError
from jaxgpt.training.report import plots
from jaxgpt.training.report.page import write_report
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
    plots.save(plots.embedding_rows(matrix[:18], matrix, ["<|user|>"]), folder / "plots" / "embedding.png")
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
        if self.open[-1:] in (["th"], ["td"]):
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


def table_row(page: Page, name: str) -> list[str]:
    """The cells after the heading of a flag's row."""
    i = page.cells.index(f"--{name}")
    return page.cells[i + 1 : i + 3]


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
        "4.200 → 2.700", "perplexity 66.7 → 14.9", "of 60", "3.4M", "100.0%: 3,400,000 of 3,400,000",
        "524,288 in the first of 2 phases", "10,030", "1.00 GiB", "The cat\n## not a heading", "The dog",
        "model       tiny", "python -m train --freeze=gradual --steps=60\n", "0.10.2", "--batch-size",
        f"jaxgpt train --resume '{tmp_path}/a run'", f"jaxgpt generate '{tmp_path}/a run' --prompt=Once",
        f"jaxgpt convert '{tmp_path}/a run' '{tmp_path}/a run-hf' --to=hf",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("img")) == 4
    assert all(image["alt"] and int(image["width"]) > 1000 for image in page.all("img"))
    for name in ("updates", "loss", "freeze"):
        assert (tmp_path / "a run" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_changed_settings_come_first(tmp_path):
    html = write_report(make_run(tmp_path / "run")).read_text()
    marked = re.findall(r'<tr class="changed"><th scope="row">(.*?)</th>', html)
    assert marked == ["--freeze", "--steps", "--out", "--prompt"]
    assert html.rindex('class="changed"') < html.index(">--model<")


def test_settings_that_the_run_resolved_are_shown_with_their_values(tmp_path):
    folder = make_run(tmp_path / "run", patience=None, lr=None, mesh=None, dropout=0.2)
    assert table_row(read(folder), "lr") == ["none", "none"]
    facts = json.loads((folder / "run.json").read_text())
    resolved = {"lr": 0.001, "mesh": "data=1,fsdp=1,tensor=1", "dropout": 0.2, "context": 0, "prompt": EVIL}
    (folder / "run.json").write_text(json.dumps(facts | {"resolved": resolved}))
    page = read(folder)
    assert table_row(page, "lr") == ["0.001 (default)", "chosen by the run"]
    assert table_row(page, "mesh") == ["data=1,fsdp=1,tensor=1 (default)", "chosen by the run"]
    assert table_row(page, "context") == ["0 (default)", "chosen by the run"]
    assert table_row(page, "dropout") == ["0.2", "chosen by the run"]
    assert table_row(page, "prompt") == ["Once", "chosen by the run"]
    assert table_row(page, "patience") == ["none", "none"]
    for odd in (None, 3, ["lr"], "lr"):
        (folder / "run.json").write_text(json.dumps(facts | {"resolved": odd}))
        assert table_row(read(folder), "lr") == ["none", "none"]


def test_a_command_that_resumes_is_not_told_to_twice(tmp_path):
    folder = make_run(tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"command": "python -m train --resume"}))
    assert "--resume --resume" not in read(folder).text


def test_the_report_needs_nothing_else_and_runs_nothing(tmp_path):
    folder = make_run(tmp_path / "run")
    page, html = read(folder), (folder / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", html)
    for _, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in {"src", "href"} & attrs.keys():
            assert attrs[name].startswith("data:")
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_nothing_from_the_files_is_markup(tmp_path):
    folder = make_run(tmp_path / "evil", EVIL, model=EVIL, **{EVIL: EVIL})
    page = read(folder)
    tame = [(tag, attrs.keys()) for tag, attrs in read(make_run(tmp_path / "tame", model="m", x="y")).elements]
    assert [(tag, attrs.keys()) for tag, attrs in page.elements] == tame
    assert page.text.count("<script>alert(1)</script> </pre><img src=x onerror=alert(2)>") >= 10
    assert "\x00" not in page.text
    assert page.text.count("${title} $page {{ title }} {% raw %}") >= 10


@pytest.mark.parametrize("name", ["metrics.jsonl", "updates.jsonl", "samples.md", "plots/embedding.png"])
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
        "metrics.jsonl": ("No plot loss: the run recorded no data", "no evaluation was recorded"),
        "updates.jsonl": ("No plot updates: ",),
        "samples.md": ("No sample was recorded.",),
        "plots/embedding.png": ("No plot embedding: ",) if how == "empty" else (),
    }[name]
    for words in says if how in ("missing", "empty") else ():
        assert words in text
    assert "What trains" not in text or "No plot freeze: " not in text


def test_numbers_that_are_none(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = [{"step": 0, "eval_loss": 4.0}, {"step": 1, "loss": float("nan")}, {"step": 2, "eval_loss": float("inf")}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    (folder / "updates.jsonl").write_text(
        '{"step": 1, "updates": {"tok_emb": NaN, "blocks.0": null, "ln_f": Infinity}}'
    )
    page = read(folder)
    assert "4.000 → inf" in page.text
    assert len(page.all("img")) == 4


def test_a_run_without_phases_has_a_report(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_text('{"settings": {"model": "tiny"}}')
    page = read(folder)
    assert "No plot freeze: " in page.text
    assert len(page.all("img")) == 3
    assert not (folder / "plots" / "freeze.png").exists()


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", '{"settings": 3}', '{"settings": {}, "phases": [{"start": 0}]}', "\xff"]
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"run\.json can't be read as the run\.json of a run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 768, 1280])
def test_a_browser_shows_it_without_a_complaint(browser, evil_report, width, scheme):
    browser.show(evil_report, width, scheme)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    sizes = browser.value("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 4
    assert all(complete and natural > 1000 and shown >= 600 for complete, natural, shown in sizes)
    if width < 600:  # pictures scroll in their own boxes
        assert browser.value("[...document.querySelectorAll('.picture')].every(b => b.scrollWidth > b.clientWidth)")
    sticking_out = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.picture, pre.wide')
        && e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.value(sticking_out) == []
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
