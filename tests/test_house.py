"""The house: three floors with arrows that only point down, no clutter, and a README that runs."""

import ast
import re
import shutil
from dataclasses import fields
from pathlib import Path
from unittest import mock

import jax
import pytest
from conftest import ROOT, TINY, random_hf

import jaxgpt
from jaxgpt.convert.source import BUNDLED

FLOORS = ("convert", "jaxgpt", "train")
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
FRONT_DOORS = ("jaxgpt.__main__", "jaxgpt.commands")
"""What the command `jaxgpt` begins with: it calls all that is below and above."""


def module_of(path: Path) -> str:
    """`jaxgpt.training.loop` for `train/loop.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "jaxgpt" else ("jaxgpt", *parts))
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports, ours and others; a name that is imported from a package may be a module."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
    return found


ARROWS = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}


def floor_of(module: str) -> int:
    second = module.partition(".")[2].partition(".")[0]
    return FLOORS.index(second) if second in ("convert", "train") else 1


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down_and_heavy_packages_are_imported_late(module):
    packages = {name.partition(".")[0] for name in imports(MODULES[module])}
    at_import = {name.partition(".")[0] for name in imports(MODULES[module], top_level_only=True)}
    if not module.startswith(FRONT_DOORS):
        assert max(map(floor_of, ARROWS[module]), default=0) <= floor_of(module)
    assert not [name for name in ARROWS[module] if name.startswith("jaxgpt.__main__")]
    assert not at_import & {"torch", "transformers"}
    assert not packages & set(FLOORS) - {"jaxgpt"}
    if floor_of(module) == 0:
        assert not packages & {"flax", "torch", "transformers"}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Some nodes that lead back to the first of them, if there are any."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for following in sorted(arrows.get(node, ())):
                if found := visit(following, [*way, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(arrows) if (found := visit(node, []))), [])


def test_no_circle_between_files():
    assert circle(ARROWS) == []


FOLDERS = sorted({name.rpartition(".")[0] for name in MODULES} - {""})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_between_what_lies_in_a_folder(folder):
    """Its files and its subfolders, each of which is one thing with all that is in it."""

    def inside(module: str) -> str:
        return module.removeprefix(f"{folder}.").partition(".")[0] if module.startswith(f"{folder}.") else ""

    arrows: dict[str, set[str]] = {}
    for module, targets in ARROWS.items():
        if (here := inside(module)) and not module.startswith(FRONT_DOORS):
            arrows.setdefault(here, set()).update({inside(target) for target in targets} - {"", here})
    assert circle(arrows) == []


def test_a_file_is_found_where_its_name_says():
    assert not [path for path in FILES if path.stem == "utils"]
    assert len(list((ROOT / "train").glob("*.py"))) <= 14


def test_every_config_field_is_read():
    code = "".join(path.read_text() for path in FILES if path.name not in ("config.py", "hf_config.py"))
    kept_for_export = {"bos_token_id", "reorder_and_upcast_attn"}
    for field in fields(jaxgpt.GPTConfig):
        assert field.name in kept_for_export or re.search(rf"config\.{field.name}\b", code + config_dims()), field.name


def config_dims() -> str:
    return (ROOT / "convert" / "config.py").read_text().replace("self.", "config.")


def test_the_public_surface():
    assert set(jaxgpt.__all__) >= {
        "GPT", "GPTConfig", "from_pretrained", "save_pretrained", "load_tokenizer", "named_params", "count_params",
        "save", "load", "generate", "resize_vocab", "freeze",
    }  # fmt: skip
    for name in jaxgpt.__all__:
        assert getattr(jaxgpt, name).__doc__, name


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def random_model(folder: Path, n_layer: int) -> Path:
    """A random model with the bundled tokenizer and its context: quick to compile."""
    dims = {"n_embd": 32, "n_head": 4, "n_layer": n_layer, "n_inner": 64, "n_positions": 256, "vocab_size": 4096}
    random_hf(**dims, bos_token_id=4095, eos_token_id=4095).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


def with_two_blocks(text: str) -> str:
    """Let strategies and captures name blocks of a model that has two."""
    return re.sub(r"\b(first|last)[2-9]\b", r"\g<1>1", text).replace("blocks.3.", "blocks.1.")


def execute(code: str) -> None:
    """Execute some Python as a program of its own would, but for a report, which is not drawn."""
    with (
        mock.patch("jaxgpt.training.finetune._write_report"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BUNDLED, "tiny", random_model(tmp_path / "two", 2))
    for block in readme_blocks("python"):
        execute(with_two_blocks(block.replace("steps=60, context=64", "steps=3, context=32, batch_size=2")))


def test_the_loop_of_your_own_runs(cut, capsys):
    """A gradual unfreeze of three phases, in whose last the loss is near 0 for a text of one sentence.

    On some blocks of the bundled model, which compile faster than all.
    """
    code = (ROOT / "examples" / "own_loop.py").read_text()
    assert code.count('"tiny"') == 2
    execute(code.replace('"tiny"', repr(str(cut))))
    losses = re.findall(r"^step \d+: (\S+), loss ([\d.]+)$", capsys.readouterr().out, re.M)
    assert [name for name, _ in losses] == ["head"] * 10 + ["last1"] * 10 + ["full"] * 10
    assert float(losses[-1][1]) < 0.2 < 2 < float(losses[0][1])


def test_the_makefile_and_ci_say_what_the_readme_says():
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    for target in ("demo", "test", "check", "docs"):
        assert re.search(rf"^{target}:", makefile, re.M)
        assert f"make {target}" in readme or target == "check"
    assert "make check" in ci
    assert "make test" in ci
    assert "make docs" in ci


def test_the_readme_is_one_page_whose_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert len(links) > 15
    assert not [link for link in links if not (ROOT / link).exists()]


def test_contributing_names_what_is_there():
    """Every file and folder on the map exists."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [ROOT, *(ROOT / name for name in ("examples", "tests", "tools"))]
    places = {path.name for floor in FLOORS for path in (ROOT / floor).rglob("*")}
    places |= {path.name for folder in folders for path in folder.iterdir()} | {"metrics.jsonl", "run.json"}
    for name in re.findall(r"\b[a-z_]+(?:\.html)?\.(?:py|jinja|json|md|toml)\b", text):
        assert name in places, name
    for folder in (path for floor in FLOORS for path in (ROOT / floor).iterdir() if path.is_dir()):
        if not folder.name.startswith("__") and not folder.is_symlink() and folder.name != "assets":
            assert f"{folder.name}/" in text, folder


def test_exit_codes_are_of_the_table():
    used = set()
    for path in FILES:
        used |= set(re.findall(r"sys\.exit\((\d+)\)|os\._exit\((\d+)\)", path.read_text()))
    assert {code for pair in used for code in pair if code} <= {"0", "2", "130"}
