"""The command line: help in groups that wraps, mistakes in one line, values of their types, and clocks."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, call

import jaxgpt
from jaxgpt.__main__ import COMMANDS
from jaxgpt.convert.command_line import console
from jaxgpt.convert.command_line.console import busy, table, wrapped
from jaxgpt.convert.command_line.flags import defaults_of, flags_of, spelled, values_of
from jaxgpt.convert.command_line.help import help_text, usage
from jaxgpt.convert.command_line.mistakes import in_flags
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.training.command import HELP, PARSER, read_command, resume_command
from jaxgpt.training.run.run_json import RunInfo
from jaxgpt.training.settings import GROUPS, Settings, to_json

PARSERS = {
    name: PARSER if name == "train" else importlib.import_module(module).PARSER
    for name, (module, _) in COMMANDS.items()
}
WORDS = re.compile(r"\S+")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", PARSERS)
def test_help_wraps_between_words_and_says_everything_once(name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    parser = PARSERS[name]
    whole = help_text(parser.command, parser.help, "all")
    for text in (whole, help_text(parser.command, parser.help)):
        assert max(map(len, text.split("\n"))) <= width
        assert "None" not in text.replace("--top-k=None", "")
        assert not re.search(r"\bSTR\b", text)
    words = " ".join(WORDS.findall(whole))
    for flag, described in flags_of(parser.command).items():
        value = values_of(parser.command)[flag]
        assert f"\n  {usage(flag, described, value)}" in whole, flag
        assert " ".join(described.help.split()) in words, f"{flag}: cut inside a word, or missing"
        assert described.metavar or value.choices or value.of is bool, f"{flag}: what stands for its value?"


def test_the_short_help_has_about_thirty_lines_and_names_the_groups(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for parser in PARSERS.values():
        short = help_text(parser.command, parser.help)
        assert len(short.split("\n")) <= 45 if not parser.help.groups else 34
    short = help_text(Settings, HELP)
    assert all(group in short for group in GROUPS)
    assert len(short.split("\n")) <= 32
    for group in GROUPS:
        shown = help_text(Settings, HELP, group)
        members = {name for name, flag in flags_of(Settings).items() if flag.group == group}
        assert members
        listed = set(re.findall(r"^  --(?:\[no-\])?([a-z-]+)", shown, re.M))
        assert listed == {name.replace("_", "-") for name in members}
    with pytest.raises(InputError, match=r"^--help=freezing: the groups are model, data, freeze, "):
        help_text(Settings, HELP, "freezing")


def test_usage_names_what_is_required_and_the_whole_help_ends_with_the_exit_codes():
    for name, needed in (("eval", "MODEL --data=PATH"), ("check", "MODEL"), ("convert", "SRC [DST]")):
        text = help_text(PARSERS[name].command, PARSERS[name].help)
        assert text.startswith(f"usage: jaxgpt {name} {needed} [FLAGS]\n")
    for parser in PARSERS.values():
        assert ("Exit codes: " in help_text(parser.command, parser.help, "all")) == bool(parser.help.notes)


def test_help_and_version_answer_without_jax():
    code = (
        "import sys; from jaxgpt.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'jax', 'flax', 'optax', 'orbax', 'grain', 'transformers', 'torch'} & sys.modules.keys()"
    )
    for arguments in (
        ["--help"],
        ["train", "--help-all"],
        ["train", "--version"],
        ["generate", "--help"],
        ["convert", "-h"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert jaxgpt.__version__ == version("jaxgpt")
    assert call("jaxgpt", "--version").stdout == f"jaxgpt {jaxgpt.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--frezee=first6"], "train: --frezee is no flag of jaxgpt train: did you mean --freeze?"),
        (["train", "--freez"], "train: --freez is no flag of jaxgpt train: did you mean --freeze?"),
        (["train", "--no-remta"], "train: --no-remta is no flag of jaxgpt train"),
        (["train", "--xyzzy=3"], "train: --xyzzy is no flag of jaxgpt train; --help-all lists them"),
        (["train", "more"], "train: 'more' is not expected here; flags begin with --, and jaxgpt train --help"),
        (["train", "--steps"], "train: --steps: expected one argument"),
        (["train", "--steps=ten"], "train: --steps: must be an integer, not 'ten'"),
        (["train", "--steps=1.5"], "train: --steps: must be an integer, not '1.5'"),
        (["train", "--steps=0"], "train: --steps: must be from 1 to 1,000,000,000, not 0"),
        (["train", "--lr=0"], "train: --lr: must be above 0 and at most 10, not 0.0"),
        (["train", "--lr=nan"], "train: --lr: must be above 0 and at most 10, not nan"),
        (["train", "--clip=inf"], "train: --clip: must be above 0, not inf"),
        (["train", "--lr=fast"], "train: --lr: must be a number, not 'fast'"),
        (["train", "--dtype=float8"], "train: --dtype: must be float32 or bfloat16, not 'float8'"),
        (["train", "--track", "tensorbord"], "train: --track: must be tensorboard or wandb or mlflow, not 'tensorbo"),
        (["train", "--steps=3", "--epochs=2"], "train: --steps and --epochs contradict each other: give one of them"),
        (["train", "--topology=v5e:2x2"], "train: --topology=v5e:2x2 needs --compile-only, which prints what"),
        (["train", "--remat=yes"], "train: --remat/--no-remat: ignored explicit argument 'yes'"),
        (["train", "--resume", "nowhere"], "train: --resume=nowhere: no run is there; to start one, use --out=nowhere"),
        (["check"], "jaxgpt: MODEL is missing; jaxgpt check --help shows what it may be"),
        (["report"], "jaxgpt: RUN is missing; jaxgpt report --help shows what it may be"),
        (["eval", "tiny"], "jaxgpt: --data=PATH is missing; jaxgpt eval --help shows what it may be"),
        (["check", "tiny", "--jsn"], "jaxgpt: --jsn is no flag of jaxgpt check: did you mean --json?"),
        (["trian"], "jaxgpt: there is no command 'trian': did you mean train?"),
        (["lm_eval"], "jaxgpt: there is no command 'lm_eval': the evaluation harness is python -m jaxgpt.lm_eval; for"),
        (["dance"], "jaxgpt: there is no command 'dance': the commands are train, generate, eval, check, report, conv"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_helps(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("jaxgpt", *arguments, check=False)
    assert done.returncode == ExitCode.MISTAKE
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_switch_has_its_opposite_and_every_open_value_can_be_given():
    switches = [name for name, value in values_of(Settings).items() if value.of is bool]
    assert len(switches) >= 6
    for name in switches:
        assert PARSER.given([spelled(name)]) == {name: True}
        assert PARSER.given([f"--no-{name.replace('_', '-')}"]) == {name: False}
    for name, default in defaults_of(Settings).items():
        if default is None:
            assert PARSER.given([f"{spelled(name)}=None"]) == {name: None}
    assert PARSER.given(["--no-resume"]) == {"resume": False}
    assert PARSER.given(["--track", "tensorboard", "wandb"]) == {"track": ("tensorboard", "wandb")}
    assert PARSER.given(["--lr-scale=a=1", "--lr-scale=--force"]) == {"lr_scale": ("a=1", "--force")}


def test_every_setting_is_read():
    code = "".join(path.read_text() for path in (ROOT / "train").rglob("*.py") if path.name != "settings.py")
    named_elsewhere = {"config"}  # a path that the command line reads before there are settings
    assert "settings.how_to_read" in code
    named_elsewhere |= flags_of(ModelFlags).keys()  # which are read together
    for name in flags_of(Settings):
        assert name in named_elsewhere or re.search(rf"\bsettings\.{name}\b", code), name


# resuming


@pytest.fixture
def stored(tmp_path) -> Path:
    """A folder whose run.json has settings of its own."""
    settings = Settings(freeze="last1", steps=9, lr=0.5, out=Path("elsewhere"), keep=7, track=("tensorboard",))
    (tmp_path / "run").mkdir()
    RunInfo(to_json(settings)).write(tmp_path / "run")
    return tmp_path / "run"


def test_resume_takes_all_settings_from_the_run(stored):
    expected = {"freeze": "last1", "steps": 9, "lr": 0.5, "keep": 7, "track": ("tensorboard",), "out": stored}
    for flags in (
        ["--resume", stored],
        [f"--resume={stored}"],
        ["--resume", f"--out={stored}"],
        [f"--out={stored}", "--resume"],
    ):
        settings = read_command([*map(str, flags)])
        assert settings == Settings(**expected, resume=True)
    assert read_command(["--resume", str(stored), "--steps=9", "--keep=2"]).keep == 2


def test_a_flag_that_differs_from_the_run_is_refused_before_anything_is_loaded(stored):
    with pytest.raises(
        InputError, match=r"^--resume: this would be another run than .*: --freeze was last1 and is full; --steps"
    ):
        read_command(["--resume", str(stored), "--steps=10", "--freeze=full"])
    with pytest.raises(
        InputError, match=r"--seed was 0 and is 3\. Undo that, or go on nevertheless with --out=\S+ --resume-anyway"
    ):
        read_command(["--resume", str(stored), "--seed=3"])
    assert read_command(["--resume-anyway", f"--out={stored}", "--steps=10"]).steps == 10
    with pytest.raises(InputError, match=r"^--resume=.* and --out=other name two runs"):
        read_command(["--resume", str(stored), "--out=other"])


def test_the_command_that_goes_on_with_a_run_says_what_is_not_in_its_run_json(stored):
    kept = RunInfo.read(stored).settings
    assert resume_command(read_command(["--resume", str(stored)]), kept) == f"jaxgpt train --resume {stored}"
    again = resume_command(read_command(["--resume", str(stored), "--keep=2", "--no-compile-cache"]), kept)
    assert again == f"jaxgpt train --resume {stored} --keep=2 --no-compile-cache"
    assert read_command(again.split()[2:]) == read_command(["--resume", str(stored), "--keep=2", "--no-compile-cache"])


def test_resume_starts_a_run_that_is_not_there(tmp_path):
    assert read_command(["--resume", f"--out={tmp_path}/new", "--steps=3"]) == Settings(
        resume=True, out=tmp_path / "new", steps=3
    )


def test_run_json_of_another_version_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"settings": {"steps": 3}, "later": 1, "data": {"source": "a", "x": 2}})
    )
    info = RunInfo.read(tmp_path)
    assert info.settings == {"steps": 3}
    assert info.data.source == "a"
    assert info.phases == ()


# messages, wrapping and clocks


def test_arguments_in_messages_are_spoken_as_flags():
    says = "out exists: force=True replaces it; give n_head= or n_head=5, dtype=float32; x.force=True, force=True."
    flags = {"force", "n_head", "dtype"}
    assert in_flags(says, flags) == (
        "out exists: --force replaces it; give --n-head= or --n-head=5, --dtype=float32; x.force=True, --force."
    )
    assert in_flags("tie=False", {"tie"}) == "--no-tie"
    assert in_flags("lora:r=16,dropout=0.05", {"dropout"}) == "lora:r=16,dropout=0.05"
    assert in_flags(says, set()) == says


@pytest.mark.parametrize("width", [40, 80, 120])
def test_what_is_printed_wraps_between_words_under_its_column(width):
    line = f"model       tiny: {'12 blocks, width 128, ' * 6}vocabulary 4,096"
    lines = wrapped(f"{line}\nshort", width).split("\n")
    assert max(map(len, lines)) <= width
    assert lines[-1] == "short"
    assert all(later.startswith(" " * 12) and later[12] != " " for later in lines[1:-1])
    assert " ".join(" ".join(lines[:-1]).split()) == " ".join(line.split())
    assert wrapped(line, None) == line
    assert wrapped("x" * 200, width) == "x" * 200  # a word is never cut


def test_long_work_is_said_once_in_a_log_and_short_work_is_not(monkeypatch, capsys):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.05)
    with busy("compiling"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "compiling …\n"
    monkeypatch.setattr(console, "QUIET_SECONDS", 60)
    with busy("loading"):
        pass
    assert capsys.readouterr() == ("", "")


# beside files of the user's own


@pytest.mark.parametrize(
    "command", [["-m", "jaxgpt", "convert", "tiny"], ["-c", "import jaxgpt; print(jaxgpt.GPTConfig())"]]
)
def test_a_users_own_train_and_convert_are_in_nobodys_way(command, tmp_path):
    for name in ("train", "convert"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "n_layer=12" in done.stdout or "2,936,576" in done.stdout


@pytest.mark.parametrize("name", ["train", "convert"])
def test_the_entry_points_open(name):
    """`python -m train` in a clone, and what is installed as train.py."""
    for door in (["-m", name], [str(ROOT / "entry_points" / f"{name}.py")]):
        done = subprocess.run([sys.executable, *door, "--version"], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == f"jaxgpt {jaxgpt.__version__}\n", done.stderr


# what a misspelt name may have meant


@pytest.mark.parametrize(
    ("strategy", "meant"),
    [("frist6", "first6"), ("headd", "head"), ("embedings", "embeddings"), ("fulll", "full"), ("lst3", "last3")],
)
def test_a_misspelt_strategy_is_suggested(strategy, meant):
    with pytest.raises(InputError, match=f"unknown strategy: did you mean {meant}\\?\n"):
        jaxgpt.freeze.parse(strategy, jaxgpt.GPTConfig())


@pytest.mark.parametrize(("model", "meant"), [("tinny", "tiny"), ("gtp2", "gpt2"), ("gpt2-medum", "gpt2-medium")])
def test_a_misspelt_model_is_suggested(model, meant):
    done = call("jaxgpt", "convert", model, check=False)
    assert done.returncode == ExitCode.MISTAKE
    assert done.stderr.endswith(f": did you mean {meant}?\n")


def test_a_misspelt_file_is_suggested(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    done = call("jaxgpt", "convert", tmp_path / "modle.safetensors", check=False)
    assert done.stderr.endswith(f"no such file or folder: did you mean {tmp_path}/model.safetensors?\n")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_wraps_inside_its_columns(width):
    rows = [("check", "measured", "expected"), ("loss", "4.715 nats " * 6, "below 7.49: " * 5), ("x" * 12, "", "short")]
    text = table(rows, width)
    assert max(map(len, text.split("\n"))) <= width
    assert sorted(text.split()) == sorted(" ".join(map(" ".join, rows)).split())
    assert table(rows).count("\n") == 2
