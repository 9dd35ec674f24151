"""The boundary of the commands: the world's faults are one line, ours say what to report; no name steers a terminal.

What is damaged here lies in runs, caches and paths; `test_refusals.py` has the checkpoints.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, call

import jaxgpt
from jaxgpt.__main__ import quiet_interrupts
from jaxgpt.chat import render
from jaxgpt.commands import generate
from jaxgpt.convert.command_line.console import for_terminal, say, show
from jaxgpt.convert.command_line.mistakes import one_clear_line
from jaxgpt.convert.disk import local_path, target_path
from jaxgpt.convert.errors import InputError, about, escaped
from jaxgpt.convert.formats import safetensors
from jaxgpt.convert.json_input import MAX_VALUES, field, parse_json, read_json
from jaxgpt.training.output import lasting_output, log_to
from jaxgpt.training.report.page import write_report
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.run.logs import RunLog, read_metrics, read_updates
from jaxgpt.training.run.run_json import RunInfo

pytestmark = pytest.mark.bounded

FORGED = "\nconvert: all is well\x1b[2J\r\x9b1m\u202e\u2028"
"""A name that begins a line of its own, clears the screen and turns the direction of writing."""


def steers(text: str) -> bool:
    """True if a text has a character that a terminal obeys, beside the ends of lines."""
    return escaped(text, keep="\n") != text


# one line, which steers nothing


@pytest.mark.parametrize("name", ["a" + FORGED, "\x07", "\ud800", "\U000e0041"])
def test_a_message_is_one_line_whatever_the_names_in_it(name):
    message = str(InputError(f"{name} is unknown"))
    assert not steers(message)
    assert message.count("\n") == 0
    with pytest.raises(InputError) as caught, about("--data"):
        raise InputError(f"of {name}:", f"  {name}", "  two")
    assert str(caught.value).count("\n") == 2
    assert str(caught.value).startswith("--data: of ")
    assert escaped(str(caught.value), keep="\n") == str(caught.value)


def test_a_message_is_not_longer_than_a_screen(tmp_path, capsys):
    assert len(str(InputError("x" * 10**6))) < 5000
    for name in ("x" * 10**5, "+" * 5000):
        with pytest.raises(SystemExit) as ended, one_clear_line("train"):
            (tmp_path / name).stat()
        assert ended.value.code == 2
        assert len(capsys.readouterr().err) < 5000


def test_what_is_printed_steers_nothing_and_a_sample_only_where_nobody_looks():
    for act in (show, say):
        stream = StringIO()
        act(f"one{FORGED}", stream)
        assert not steers(stream.getvalue())
    assert stream.getvalue().count("\n") == 1

    class Terminal(StringIO):
        def isatty(self):
            return True

    text = "a sample\n\tof\x1b[31m two lines\r"
    assert for_terminal(text, StringIO()) == text
    assert for_terminal(text, Terminal()) == "a sample\n\tof\\x1b[31m two lines\\r"


def test_a_sample_on_a_terminal_comes_in_pieces_that_steer_nothing(monkeypatch, capsys):
    pieces = [["\x1b"], ["[2J"], ["\x9b1mé"]]
    generate.print_as_it_comes("", iter(pieces))
    assert capsys.readouterr().out == "\x1b[2J\x9b1mé\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    generate.print_as_it_comes("", iter(pieces))
    assert capsys.readouterr().out == "\\x1b[2J\\x9b1mé\n"


def checkpoint_with(folder: Path, name: str) -> Path:
    folder.mkdir()
    safetensors.write(folder / "model.safetensors", {name: np.ones(3, np.float32)})
    return folder


def test_names_in_files_forge_no_line(tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    (index / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": f"a{FORGED}.safetensors"}}))
    named = tmp_path / f"d{FORGED}"
    for source in (
        checkpoint_with(tmp_path / "a", f"h.0.x{FORGED}"),
        index,
        checkpoint_with(named, "a"),
        tmp_path / FORGED,
    ):
        done = call("convert", source, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1, done.stderr
        assert not steers(done.stderr)


def pickled(program: bytes, *members: str) -> bytes:
    """A file of torch.save's with a pickle of its own."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        for name in members:
            file.writestr(name, bytes(64))
    return buffer.getvalue()


def text(of: str) -> bytes:
    return b"X" + len(of.encode()).to_bytes(4, "little") + of.encode()


ONE_LINE = FORGED.replace("\n", "\r")
PICKLES = {
    "a global's module": pickled(f"c{ONE_LINE}\nevil\n)R".encode()),
    "a global's name": pickled(f"ctorch\n{ONE_LINE}\n)R".encode()),
    "a global from the stack": pickled(b"\x80\x04" + text(FORGED) + text(FORGED) + b"\x93)R"),
    "a key": pickled(b"}" + text(FORGED) + b"K\x01s"),
    "a storage's kind": pickled(b"(" + text(FORGED) + text(FORGED) + text("0") + text(FORGED) + b"K\x04tQ"),
    "a storage's type": pickled(b"(" + text("storage") + text(FORGED) + text(FORGED) + text("cpu") + b"K\x04tQ"),
    "a member": pickled(b"}", f"archive/{FORGED}"),
    "a folder": pickled(b"}", f"{FORGED}/data.pkl"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_names_in_pickles_and_archives_forge_no_line(name, tmp_path):
    (tmp_path / "model.pt").write_bytes(PICKLES[name])
    done = call("convert", tmp_path / "model.pt", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not steers(done.stderr + done.stdout)


def test_an_error_of_a_template_forges_no_line(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    shutil.copytree(TINY, tmp_path / "model")
    template = f"{{{{ raise_exception({json.dumps(FORGED)}) }}}}"
    for written in (template, f"{{% {FORGED} %}}", f"{{{{ 'a'|{FORGED} }}}}"):
        (tmp_path / "model" / "chat_template.jinja").write_text(written)
        flags = (f"--model={tmp_path}/model", f"--data={tmp_path}/chat.jsonl", f"--out={tmp_path}/r")
        done = call("train", *flags, f"--cache={tmp_path}/cache", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "chat template" in done.stderr
        assert not steers(done.stderr)


def test_a_table_of_names_forges_no_line(tmp_path):
    folder = tmp_path / "in\nside"
    shutil.copytree(TINY, folder)
    done = call("convert", folder)
    assert "in\\nside" in done.stdout
    assert not steers(done.stdout)
    shown = call("train", "--freeze=regex:x\x1b[2J\ntrain: fine", check=False)
    assert shown.returncode == 2
    assert "\ntrain: fine" not in shown.stderr
    assert not steers(shown.stderr)


# whose fault it is


def test_a_fault_of_ours_says_what_to_report(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended, one_clear_line("convert"):
        {}[f"key{FORGED}"]
    said = capsys.readouterr().err
    assert ended.value.code == 70
    assert "test_boundary.py" in said  # the traceback
    assert said.splitlines()[-1].startswith("convert: a fault of jaxgpt, and not of your input (KeyError: ")
    assert not steers(said)
    with pytest.raises(SystemExit) as ended, one_clear_line("train"), lasting_output():  # noqa: PT012
        log_to(tmp_path)
        {}["key"]
    said = capsys.readouterr().err
    assert ended.value.code == 70
    assert said.count("\n") == 1
    assert f"please report this with {tmp_path / 'run.log'}" in said
    assert "Traceback" in (tmp_path / "run.log").read_text()


BRIDGE = {"__name__": "jax._src.xla_bridge"}
IMPORT = {"__name__": "jax"}
ENVIRONMENTS = {
    "JAX_PLATFORMS=nonsense": (BRIDGE, "raise RuntimeError('Unable to initialize backend \\'a\\': no\\nsecond')"),
    "JAX_PLATFORMS=cuda": (BRIDGE, "assert False"),
    "JAX_ENABLE_X64=maybe": (IMPORT, "raise ValueError('invalid truth value')"),
    "JAX_NUM_CPU_DEVICES=abc": (IMPORT, "int('abc')"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_that_jax_refuses_is_no_fault_of_ours(name, capsys):
    """As when JAX is imported or looks for its devices; that its modules are so named is looked at below."""
    namespace, code = ENVIRONMENTS[name]
    with pytest.raises(SystemExit) as ended, one_clear_line("jaxgpt"):
        exec(code, dict(namespace))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxgpt: JAX can't start here (")
    assert said.endswith("): see the variables JAX_* and XLA_*\n")
    assert said.count("\n") == 1


def test_jax_looks_for_its_devices_where_it_is_expected_to(capsys):
    from jax._src import xla_bridge

    assert xla_bridge.__name__ == BRIDGE["__name__"]
    with pytest.raises(SystemExit) as ended, one_clear_line("jaxgpt"):
        xla_bridge.get_backend("nonsense")
    assert ended.value.code == 2
    assert "JAX can't start here (Unknown backend nonsense" in capsys.readouterr().err


def test_ctrl_c_among_imports_ends_the_process_without_a_traceback():
    """Before and after it raises KeyboardInterrupt as ever; a program that ignores it goes on doing so."""
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler, inside in ((signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN, signal.SIG_IGN)):
            signal.signal(signal.SIGINT, handler)
            with quiet_interrupts():
                assert signal.getsignal(signal.SIGINT) == inside
            assert signal.getsignal(signal.SIGINT) == handler
            with pytest.raises(KeyError), quiet_interrupts():
                raise KeyError
            assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_is_imported_before_ctrl_c_is_quiet():
    """The traceback of an interrupted import is long: only Python's own modules come first."""
    code = "import sys; import jaxgpt.__main__; print(*(m for m in ('numpy', 'jaxgpt.convert') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == []
    assert done.returncode == 0


def test_a_panic_of_a_library_in_rust_is_no_fault_of_ours(capsys):
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(SystemExit) as ended, one_clear_line("jaxgpt"):
        raise panic("index out of bounds")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "jaxgpt: a file of the tokenizer or the data is damaged (index out of bounds)\n"


EMPTY = [
    ("jaxgpt", "convert", ""), ("jaxgpt", "convert", TINY, ""), ("jaxgpt", "eval", "tiny", "--data="),
    ("train", "--out="), ("train", "--config="), ("train", "--resume="), ("train", "--cache="),
]  # fmt: skip


@pytest.mark.parametrize("command", EMPTY)
def test_an_empty_name_is_not_the_folder_here(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*command, check=False)
    assert (done.returncode, " is empty" in done.stderr, *tmp_path.iterdir()) == (2, True)


def test_no_run_is_written_into_the_root_of_a_disk():
    done = call("train", "--out=/", check=False)
    assert (done.returncode, "/ is the root of a disk" in done.stderr) == (2, True)


def test_a_machine_that_is_too_small_is_no_fault_of_ours(capsys):
    with pytest.raises(SystemExit) as ended, one_clear_line("convert"):
        raise MemoryError
    assert ended.value.code == 2
    assert capsys.readouterr().err == "convert: this takes more memory than there is\n"


# paths


@pytest.mark.parametrize("path", ["~nosuchuser/x", "~nosuchuser", "a\0b"])
def test_a_path_that_can_be_none_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for act in (local_path, target_path, jaxgpt.convert.read, jaxgpt.load_tokenizer, jaxgpt.data.sources.find):
        with pytest.raises(InputError, match=r"no such user|null byte"):
            act(path)
    for command in (
        ["train", f"--data={path}"],
        ["train", f"--resume={path}"],
        ["train", f"--out={path}"],
        ["convert", path],
    ):
        done = call(*command, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["gs://bucket/run", "s3:/bucket", "hf://datasets/a", "file:///tmp/x", "\udcff"])
def test_a_target_that_is_no_folder_here_is_refused_before_anything_starts(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [
        ["train", f"--out={target}"], ["train", f"--cache={target}"], ["convert", TINY, target],
        ["convert", "no-such-model", target], ["convert", TINY, f"--propose={target}"],
    ]  # fmt: skip
    for command in commands:
        done = call(*command, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1
        assert "copy it afterwards" in done.stderr or "not UTF-8" in done.stderr
    with pytest.raises(InputError, match=r"copy it afterwards|not UTF-8"):
        jaxgpt.save_pretrained(jaxgpt.from_pretrained("tiny"), target)
    assert not any(tmp_path.iterdir())


def test_a_folder_with_a_colon_is_none_of_these(tmp_path):
    assert target_path(tmp_path / "lr: 1e-3") == tmp_path / "lr: 1e-3"
    assert target_path("a:b") == Path("a:b")


# JSON


JSON = {
    "deep": ("[" * 10**6, "nested too deeply"),
    "deep in objects": ('{"a":' * 1000 + "1" + "}" * 1000, "nested too deeply"),
    "many lists": ("[" + "[]," * MAX_VALUES + "[]]", "more than"),
    "many numbers": (f"[{'1,' * MAX_VALUES}1]", "more than"),
    "half": ('{"a": ', "not JSON: Expecting value"),
    "many digits": ("1" * 9999, "not JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "empty": ("", "not JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_costs_too_much_or_is_none_is_refused(name, tmp_path):
    text, message = JSON[name]
    with pytest.raises(InputError, match=message):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "a.json")


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    for path in (tmp_path / "pipe.json", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            read_json(path)
    for path in (tmp_path / "loop.json", tmp_path / "none.json", Path("a\0b")):
        with pytest.raises(InputError, match=r"levels of symbolic links|No such file|null byte"):
            read_json(path)


@pytest.mark.parametrize("value", ["1", True, None, float("inf"), 2**63, [1], {}])
def test_a_field_is_of_its_type(value):
    with pytest.raises(InputError, match="step must be an integer, not"):
        field({"step": value}, "step", int)
    assert field({"x": 1}, "x", float) == 1.0
    for number in (float("nan"), float("-inf"), True, "1"):
        with pytest.raises(InputError, match="x must be a finite number"):
            field({"x": number}, "x", float)


def test_the_one_reader_is_the_only_one():
    """But for what this program has just written itself, and for Orbax's files, which have a reader of their own."""
    allowed = {"jaxgpt/tokenizer.py", "convert/json_input.py", "train/tracking/worker.py", "train/distributed.py"}
    root = Path(jaxgpt.__file__).parent.parent
    for floor in ("convert", "jaxgpt", "train"):
        for path in (root / floor).rglob("*.py"):
            code = path.read_text().replace("json.loads(json.dumps(", "")
            assert "json.load" not in code or str(path.relative_to(root)) in allowed, path


# what lies in a run

DAMAGED_LINES = [
    b'{"step": Infinity}', b'{"step": 1e999}', b"\xff\xfe\0", b"{}", b"[1]", b'{"step": "1"}', b'{"step": true}',
    b'{"step": -1}', b"[" * 10**5, b'{"step": 3, "lo', b"", b'{"step": ' + b"9" * 5000 + b"}", b'{"step": null}',
]  # fmt: skip


def damaged_run(folder: Path) -> RunFolder:
    folder.mkdir()
    RunInfo({"model": "tiny", "freeze": "full"}, steps=9).write(folder)
    sound = [json.dumps({"step": i, "loss": 1.0, "updates": {"ln_f": 0.1}}).encode() for i in (1, 2)]
    lines = [sound[0], *DAMAGED_LINES, sound[1], b'{"step": 4, "updates": [1], "eval_loss": {}, "loss": "a"}']
    for name in ("metrics.jsonl", "updates.jsonl"):
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    (folder / "samples.md").write_bytes(b"## Before training\n\na\xff\n")
    return RunFolder(folder)


def test_damaged_logs_of_a_run_are_read_without_what_is_damaged(tmp_path):
    run = damaged_run(tmp_path / "run")
    assert [line["step"] for line in read_metrics(run.metrics)] == [1, 2, 4]
    assert read_metrics(run.metrics)[-1]["eval_loss"] is None
    assert [line["step"] for line in read_updates(run.updates)] == [1, 2]
    assert write_report(run.folder).is_file()
    log = RunLog(run)
    log.truncate(2)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]
    log.sample(2, "b")
    assert run.samples.read_text() == "## Before training\n\na\ufffd\n\n## After 2 steps\n\nb\n"


def test_a_log_that_is_a_pipe_does_not_hang(tmp_path):
    run = damaged_run(tmp_path / "run")
    for path in (run.metrics, run.updates, run.samples):
        path.unlink()
        os.mkfifo(path)
    assert read_metrics(run.metrics) == read_updates(run.updates) == []
    write_report(run.folder)


RUN_JSON = {
    "deep": "[" * 10**6,
    "a step without end": '{"settings": {}, "phases": [{"start": Infinity, "name": "", "trainable": 1, "trains": {}}]}',
    "phases": '{"settings": {}, "phases": 3}',
    "a phase": '{"settings": {}, "phases": [3]}',
    "settings": '{"settings": []}',
    "no settings": "{}",
    "numbers": '{"settings": {}, "parameters": {"all": "many"}}',
    "data": '{"settings": {}, "data": {"train": "x"}}',
    "steps": '{"settings": {}, "steps": ' + "9" * 400 + "}",
    "a command": '{"settings": {}, "command": 3}',
}


@pytest.mark.parametrize("name", RUN_JSON)
def test_a_damaged_run_json_is_one_line(name, tmp_path):
    (tmp_path / "run.json").write_text(RUN_JSON[name])
    for command in (["train", f"--resume={tmp_path}"], ["train", f"--config={tmp_path}"]):
        done = call(*command, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1
        assert "can't be read as the run.json of a run" in done.stderr


def test_paths_in_a_run_json_steer_nothing_and_are_checked(tmp_path):
    for out, message in ((f"x{FORGED}\0", "null byte"), ("gs://bucket/x", "copy it afterwards")):
        (tmp_path / "run.json").write_text(json.dumps({"settings": {"out": out}}))
        done = call("train", f"--config={tmp_path}", check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
        assert not steers(done.stderr)


# half characters


def test_half_a_character_in_a_prompt_or_a_template_is_refused():
    tokenizer = jaxgpt.load_tokenizer("tiny")
    with pytest.raises(InputError, match=r"unpaired surrogate|can't encode|not valid"):
        jaxgpt.tokenizer.encode_prompt(tokenizer, "a\ud800")
    tokenizer.chat_template = "{{ '\\ud800' }}"
    with pytest.raises(InputError, match="unpaired surrogate"):
        render(tokenizer, [{"role": "user", "content": "a"}])
    for command in (["jaxgpt", "generate", "tiny", "--prompt=a\udcff"], ["train", "--prompt=a\udcff", "--steps=1"]):
        done = call(*command, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1


def test_half_a_character_in_a_name_or_on_standard_input_is_refused(tmp_path, monkeypatch):
    folder = checkpoint_with(tmp_path / "a", "h.0.\ud800")
    for arguments in ([], [f"--propose={tmp_path / 'my.toml'}"], [tmp_path / "out"]):
        done = call("convert", folder, *arguments, check=False)
        assert done.returncode == 2, done
        assert "is not valid Unicode" in done.stderr
    assert not (tmp_path / "my.toml").exists()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"a\xff"), encoding="utf-8"))
    done = call("jaxgpt", "generate", "tiny", "--prompt=-", check=False)
    assert done.returncode == 2, done
    assert done.stderr == "jaxgpt: --prompt=-: standard input is not valid UTF-8\n"


@pytest.mark.parametrize("form", ["hf", "orbax", "peft"])
def test_a_disk_that_is_full_is_named_also_where_the_system_names_no_file(form, tmp_path, monkeypatch):
    """As when files of a tokenizer are copied."""

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    base = ["--base=tiny"] if form == "peft" else []
    if form == "peft":
        monkeypatch.setattr("jaxgpt.convert.peft.write_peft_folder", lambda folder, *_: full(folder, folder))
    done = call("convert", TINY, tmp_path / "out", f"--to={form}", *base, check=False)
    assert done.returncode == 2
    assert done.stderr == f"convert: {tmp_path / 'out'}: No space left on device\n"
    assert [*tmp_path.iterdir()] == []
