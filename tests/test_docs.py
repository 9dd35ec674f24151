"""The documentation: its commands parse, its code is Python, and what it says of the code is what the code says.

`make docs` builds the site and runs the lesson; this looks at the sources alone, and takes no packages of the site.
"""

import ast
import importlib.util
import json
import re
import shlex
from dataclasses import fields, replace
from types import ModuleType

import pytest
from conftest import ROOT, TINY, call
from test_house import FILES, execute, random_model, with_two_blocks

import jaxgpt
from jaxgpt.__main__ import COMMANDS
from jaxgpt.convert.command_line.flags import flags_of, spelled
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.dialects.jaxgpt import PARAMETERS
from jaxgpt.convert.dialects.user_table import read_dialect
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.convert.source import BUNDLED
from jaxgpt.training.run.logs import MetricsLine

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
NAMES = [str(path.relative_to(DOCS)) for path in PAGES]


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of a language; the options of an executed cell are not part of it."""
    found = re.findall(rf"^(`{{3,}}){re.escape(language)}\n(.*?)^\1$", text, re.S | re.M)
    return [re.sub(r"\A(:.*\n)+\n?", "", block) for _, block in found]


def command_lines(text: str, language: str, prompt: str = "") -> list[str]:
    lines = [line for block in blocks(text, language) for line in block.splitlines()]
    lines = [line.removeprefix(prompt).split("  #")[0].strip() for line in lines if line.startswith(prompt)]
    return [line for line in lines if re.match(r"(jaxgpt|python -m jaxgpt\.lm_eval) ", line)]


def of_the_site(module: str) -> ModuleType:
    """Import what makes pages of the reference; none of it needs Sphinx."""
    spec = importlib.util.spec_from_file_location(module, DOCS / "_ext" / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(made := importlib.util.module_from_spec(spec))
    return made


COMMAND_PAGES, PARAMETER_PAGES = of_the_site("command_reference"), of_the_site("parameter_reference")


COMMANDS_OF_PAGES = {
    (name, line)
    for name, path in zip([*NAMES, "README.md"], [*PAGES, ROOT / "README.md"], strict=True)
    for line in command_lines(path.read_text(), "sh") + command_lines(path.read_text(), "console", "$ ")
    if line.startswith("jaxgpt ") and "…" not in line and "--help" not in line
}


@pytest.mark.parametrize(("page", "line"), sorted(COMMANDS_OF_PAGES))
def test_every_command_parses(page, line):
    _, command, *arguments = shlex.split(line)
    assert command in COMMANDS
    assert COMMAND_PAGES.parser_of(command).given(arguments), page


def test_the_pages_have_commands():
    assert len(COMMANDS_OF_PAGES) > 30


NOT_HERE = re.compile(r"--model=(gpt2|HuggingFaceTB)")
"""What only the hub has."""


def test_every_command_of_the_readme_and_the_pages_runs(tmp_path, monkeypatch):
    """Each line of a block of shell, once, in one folder: the reference's first, which makes what others read.

    Training has fewer steps, less text and a smaller model with as many blocks fewer in the strategies, and only
    `check` sees the bundled one. Blocks with a prompt need the hub, other machines or a file of the
    reader's; they are parsed above.
    """
    two, twelve = random_model(tmp_path / "two", 2), replace(jaxgpt.convert.read("tiny").config, n_new_tokens=1)
    for name in ("my.txt", "notes.txt"):
        (tmp_path / name).write_text((DOCS / "howto" / "own-text.md").read_text() * 4)
    exchange = {"instruction": "Who was king?", "output": "Saul."}
    (tmp_path / "chat.jsonl").write_text((json.dumps(exchange) + "\n") * 200)
    pair = {"prompt": "Who was king?", "chosen": " Saul.", "rejected": " Nobody."}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 40)
    pages = sorted([*PAGES, ROOT / "README.md"], key=lambda path: path != DOCS / "reference" / "index.md")
    lines = list(dict.fromkeys(line for path in pages for line in command_lines(path.read_text(), "sh")))
    lines = [line for line in lines if not NOT_HERE.search(line)]
    assert len(lines) > 35
    monkeypatch.chdir(tmp_path)
    for line in lines:
        monkeypatch.setitem(BUNDLED, "tiny", TINY if "check" in line else two)
        words = shlex.split(line)
        for strategy in (word.removeprefix("--freeze=") for word in words if word.startswith("--freeze=")):
            assert jaxgpt.freeze.parse(strategy, twelve, steps=30), line
        words = [with_two_blocks(word) for word in words]
        if words[1] == "train" and not {"--help", "--resume", "--compile-only"} & {*words}:
            words += ["--steps=3", "--epochs=None", "--batch-size=8", "--context=32", "--force"]
            if "--data=" not in line and "--config=" not in line:
                words.append("--data=my.txt")
        elif (words[1] == "convert" and "--to=" in line) or words[1] == "report":
            words.append("--force")
        done = call(*words, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


RUNNABLE = {name: blocks((DOCS / name).read_text(), "python") for name in NAMES}
RUNNABLE = {name: found for name, found in RUNNABLE.items() if any("import jaxgpt" in block for block in found)}


@pytest.mark.parametrize("page", RUNNABLE)
def test_python_on_the_pages_runs(page, tmp_path, monkeypatch):
    """A smaller model stands for the bundled one."""
    code, model = "\n".join(RUNNABLE[page]), random_model(tmp_path / "two", 2)
    monkeypatch.chdir(tmp_path)
    if 'Run("runs/chat")' in code:
        exchange = json.dumps({"instruction": "Who was king?", "output": "Saul."}) + "\n"
        (tmp_path / "chat.jsonl").write_text(exchange * 200)
        flags = ("--steps=2", "--context=32", "--batch-size=4", "--data=chat.jsonl", "--out=runs/chat")
        call("train", f"--model={model}", *flags)
    monkeypatch.setitem(BUNDLED, "tiny", model)
    execute(with_two_blocks(code))


@pytest.mark.parametrize("page", NAMES)
def test_cells_and_blocks_are_python(page):
    text = (DOCS / page).read_text()
    for block in blocks(text, "python") + blocks(text, "{code-cell} ipython3"):
        ast.parse(re.sub(r"^(\w+) = !.*$", r"\1 = None", block, flags=re.M))


def test_the_table_of_a_dialect_of_your_own_is_read(tmp_path):
    (table,) = blocks((DOCS / "howto" / "own-dialect.md").read_text(), "toml")
    (tmp_path / "my.toml").write_text(table)
    assert read_dialect(tmp_path / "my.toml").title == "the GPT of my course"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_has_every_flag(command):
    page = (DOCS / "reference" / f"{command}.md").read_text()
    assert f"```{{jaxgpt-command}} {command}" in page
    of = COMMAND_PAGES.parser_of(command).command
    listed = [name for names in COMMAND_PAGES.groups_of(command).values() for name in names]
    assert sorted(listed) == sorted(flags_of(of))
    for name, flag in flags_of(of).items():
        said = COMMAND_PAGES.describe(command, name)
        assert (flag.metavar if flag.is_positional else spelled(name)) in said
        words = set(re.findall(r"[A-Za-z]{4,}", flag.help))
        assert words <= set(re.findall(r"[A-Za-z]{4,}", said)), name


def test_the_reference_has_every_name_of_python():
    page = (DOCS / "reference" / "python.md").read_text()
    named = set(re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)", page, re.M))
    assert named >= {*jaxgpt.__all__} - {"freeze"}
    assert named >= {*jaxgpt.freeze.__all__} - {"FROZEN", "GRAMMAR"}


def test_the_reference_has_every_parameter():
    assert all(f"`{name}`" in PARAMETER_PAGES.own_names() for name, _ in PARAMETERS)
    for dialect in DIALECTS.values():
        said = PARAMETER_PAGES.names_of(dialect)
        assert all(f"`{name}`" in said for row in dialect.rows for name in row.names)


def test_the_table_of_exit_codes_is_the_code_s():
    page = (DOCS / "reference" / "exit-codes.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \| [a-z]", page, re.M)} == {int(code) for code in ExitCode}


def test_the_table_of_metrics_is_the_file_s():
    page = (DOCS / "reference" / "run-files.md").read_text()
    assert all(f"| `{field.name}` |" in page for field in fields(MetricsLine))


def messages() -> list[str]:
    """Return all texts in the code, with `…` for what is filled in."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    nodes = (node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.expr))
    return [found for node in nodes if (found := text(node))]


def test_the_messages_are_the_code_s():
    page, known = (DOCS / "reference" / "errors.md").read_text(), messages()
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(listed) > 35
    for message in listed:
        pieces = [re.escape(piece) for piece in message.split("…")]
        assert any(re.search(".*".join(pieces), text, re.S) for text in known), message


def test_every_page_is_in_a_table_of_contents():
    entries = set()
    for path in PAGES:
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", path.read_text(), re.S | re.M):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            entries |= {str((path.parent / line).relative_to(DOCS)) for line in lines}
    assert {name.removesuffix(".md") for name in NAMES} == entries | {"index"}


def test_no_page_names_a_machine():
    assert not [name for name in NAMES if re.search(r"/(tmp|home|root|work)/", (DOCS / name).read_text())]
