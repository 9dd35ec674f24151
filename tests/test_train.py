"""The program, run as a user runs it: what it learns, writes, resumes and refuses."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
from conftest import call, torch_logits
from forked import RUN, Forked
from runs import QUICK, arrays, assert_same_run, metrics, without_digests
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.command_line.mistakes import in_flags
from jaxgpt.convert.mapping import same
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.__main__ import main
from jaxgpt.training.report.samples import moments

# what a run does


def test_first6_learns_the_reference_and_says_what_it_does(tmp_path):
    """A fifth of the demo: evaluation loss falls by at least 1 nat, frozen leaves are the file's own bits."""
    out = tmp_path / "demo"
    shorter = ("--steps=50", "--batch-size=16", "--context=64", "--lr=3e-3")
    done = forked.run(RUN, "--freeze=first6", f"--out={out}", *shorter, XLA_FLAGS="")  # as users have it
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "2,936,576, as its config implies" in text
    assert "a uniform guess has ln(V) = 8.318: ok" in text
    assert "trains      1,189,888   40.5%  blocks.6-11, ln_f" in text
    assert "tok_emb (also the head: tied), pos_emb, blocks.0-5" in text
    lines = metrics(out)
    evaluations = [line["eval_loss"] for line in lines if line["eval_loss"] is not None]
    assert evaluations[0] < 0.6 * np.log(4096)
    assert evaluations[-1] < evaluations[0] - 1.0
    trained = jaxgpt.named_params(jaxgpt.from_pretrained(out))
    for name, array in jaxgpt.named_params(jaxgpt.from_pretrained("tiny")).items():
        frozen = re.match(r"(tok_emb|pos_emb|blocks\.[0-5])\.", name)
        assert same(np.asarray(array), np.asarray(trained[name])) == bool(frozen), name
    samples = (out / "samples.md").read_text()
    assert samples.startswith("## Before training\n\nThe")
    assert "\n## After 50 steps\n\nThe" in samples
    assert samples in text


def test_what_a_run_leaves_on_disk(whole_run):
    assert {path.name for path in whole_run.iterdir()} == {
        "run.json", "metrics.jsonl", "updates.jsonl", "samples.md", "report.html", "plots", "tokenizer", "checkpoints",
        "run.log",
    }  # fmt: skip
    assert complete_steps(whole_run) == [6, 8, 9]  # 8 was the best evaluation yet
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    fields = ["step", "loss", "eval_loss", "lr", "grad_norm", "tokens_per_s", "trainable_params", "peak_memory"]
    assert all(list(line) == fields for line in lines)
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["step"] for line in lines if line["eval_loss"] is not None] == [0, 4, 8, 9]
    assert lines[1]["lr"] > 0  # the first step of the warm-up moves too
    assert max(line["lr"] for line in lines[1:]) == pytest.approx(1e-3)
    written = json.loads((whole_run / "run.json").read_text())
    assert written["settings"]["freeze"] == "first1"
    assert written["parameters"]["trainable"] == lines[0]["trainable_params"] < written["parameters"]["all"]


def test_samples_are_of_a_usual_prompt_and_of_held_out_text(whole_run):
    prompts = json.loads((whole_run / "run.json").read_text())["resolved"]["prompts"]
    assert len(prompts) == len(set(prompts)) == 3
    assert prompts[0] == "The"
    before, after = moments((whole_run / "samples.md").read_text(), prompts)
    assert after.when == "After 9 steps"
    for moment in (before, after):
        assert [sample.prompt for sample in moment.samples] == [prompt.strip("\n") for prompt in prompts]
        assert all(sample.text for sample in moment.samples)


def test_a_run_is_a_model_for_every_command(whole_run, tmp_path):
    call("convert", whole_run, tmp_path / "hf", "--to=hf")
    exported = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    tokens = np.arange(30, dtype=np.int32)[None]
    logits = np.asarray(jaxgpt.from_pretrained(whole_run)(tokens))
    assert np.abs(torch_logits(exported, tokens) - logits).max() < 1e-5
    assert len(jaxgpt.load_tokenizer(tmp_path / "hf")) == 4096
    assert call("jaxgpt", "generate", whole_run, "--max-new-tokens=5").stdout.startswith("The")


def test_bfloat16_computes_nearly_the_same_over_float32_weights(small, whole_run, tmp_path):
    call(
        "train",
        f"--model={small}",
        f"--out={tmp_path / 'half'}",
        "--freeze=first1",
        "--dtype=bfloat16",
        *QUICK,
        samples=False,
    )
    full, half = metrics(whole_run), metrics(tmp_path / "half")
    for a, b in zip(full[1:], half[1:], strict=True):
        assert 0 < abs(a["loss"] - b["loss"]) < 0.02 * a["loss"]
    assert {array.dtype for name, array in arrays(tmp_path / "half", 9).items() if "params" in name} == {
        np.dtype("float32")
    }


MESHES = (None, "data=2,fsdp=2,tensor=2")


@pytest.fixture(scope="module")
def eight(small, tmp_path_factory) -> dict[str | None, Path]:
    """A run on eight devices for each mesh, one after the other in one process."""
    outs = {mesh: tmp_path_factory.mktemp("eight") / "run" for mesh in MESHES}
    common = ["train", f"--model={small}", "--freeze=first1", *QUICK]
    lines = [[*common, f"--out={out}", *([f"--mesh={mesh}"] if mesh else [])] for mesh, out in outs.items()]
    script = f"""
import sys
import jaxgpt.training.finetune as finetune
from jaxgpt.training.__main__ import main
sample = finetune.sample
for sys.argv in {lines!r}:
    # texts are written on one mesh only, that of three axes
    finetune.sample = sample if "--mesh" in sys.argv[-1] else lambda *_: "none"
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
"""
    done = forked.run(script, XLA_FLAGS=forked.simulated(8))
    assert done.returncode == 0, done.stderr
    return outs


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_have_the_losses_of_one(whole_run, eight, mesh):
    out = eight[mesh]
    assert json.loads((out / "run.json").read_text())["machine"]["devices"] == ["cpu"] * 8
    for one, many in zip(metrics(whole_run), metrics(out), strict=True):
        for field in ("loss", "eval_loss"):
            assert (one[field] is None) == (many[field] is None)
            assert one[field] is None or abs(one[field] - many[field]) <= 1e-5, one


# resuming


def test_a_run_that_died_and_was_resumed_is_bitwise_the_run_that_was_not(small, whole_run, tmp_path):
    """As after a kill: the newest checkpoint is older than the metrics, the last line is cut, a write was under way."""
    out = tmp_path / "died"
    shutil.copytree(whole_run, out)
    for step in (8, 9):
        shutil.rmtree(out / "checkpoints" / str(step))
    (out / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    (out / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text()[:-30])
    call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume")
    assert_same_run(out, whole_run, 9)
    assert (out / "samples.md").read_text() == (whole_run / "samples.md").read_text()


def test_a_damaged_checkpoint_without_digests_is_named(small, whole_run, tmp_path, capsys, monkeypatch):
    """As one of an earlier version; `test_digests.py` has those of this one."""
    out = tmp_path / "damaged"
    shutil.copytree(whole_run, out)
    without_digests(out / "checkpoints" / "9")
    flags = [f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume"]
    for file in (out / "checkpoints" / "9" / "opt_state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, 100)
    error = refused(flags, capsys, monkeypatch)
    assert f"checkpoint {out}/checkpoints/9 is damaged" in error
    assert "delete that folder, and --resume goes on from the one before it" in error
    assert complete_steps(out) == [6, 8, 9]
    shutil.rmtree(out / "checkpoints" / "9")
    shutil.rmtree(out / "tokenizer")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": "x}\n{}\n7\n')
    call("train", *flags, samples=False)
    assert_same_run(out, whole_run, 9)
    assert len(jaxgpt.load_tokenizer(out)) == 4096


def test_nothing_is_deleted_that_can_not_be_resumed(small, whole_run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "broken"
    shutil.copytree(whole_run, out)
    flags = [f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK]
    for file in out.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        file.unlink()
    files = sorted(out.rglob("*"))
    assert "is damaged (_CHECKPOINT_METADATA is missing)" in refused([*flags, "--resume"], capsys, monkeypatch)
    assert "--seed: must be" in refused([*flags, "--force", "--seed=-1"], capsys, monkeypatch)
    assert "is neither a file nor a folder" in refused([*flags, "--force", "--data=/nowhere"], capsys, monkeypatch)
    (out / "run.json").rename(out / "gone.json")
    assert "no run.json" in refused([*flags, "--resume"], capsys, monkeypatch)
    assert "no run.json" in refused([*flags, "--force"], capsys, monkeypatch)
    (out / "gone.json").rename(out / "run.json")
    assert sorted(out.rglob("*")) == files


def test_ctrl_c_stops_after_a_step_and_resume_goes_on_from_there(small, whole_run, tmp_path):
    out = tmp_path / "stopped"
    command = ["train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, "--resume"]
    process = Forked(RUN, *command[1:], samples=False)
    for line in process.stdout:
        if line.startswith("step 2/9"):
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate()
    assert process.returncode == 75, rest
    stopped = re.search(r"stopped after step (\d+), which is saved; to resume:\n  jaxgpt train --resume \S+\n", rest)
    stopped_at = int(stopped[1])
    assert stopped_at in complete_steps(out)
    assert 2 <= stopped_at < 9
    call(*command, samples=False)
    assert_same_run(out, whole_run, 9)
    finished = call(*command, samples=False).stdout
    assert "is finished: all 9 steps are done" in finished
    assert_same_run(out, whole_run, 9)


def test_keep_bounds_the_checkpoints(small, tmp_path):
    call("train", f"--model={small}", f"--out={tmp_path / 'r'}", "--freeze=head", *QUICK, "--keep=1", samples=False)
    assert complete_steps(tmp_path / "r") == [9]


def test_resuming_another_run_is_refused(small, whole_run, tmp_path, capsys, monkeypatch):
    text = tmp_path / "other.txt"
    text.write_text("word " * 5000)
    same_flags = [f"--model={small}", f"--out={whole_run}", "--freeze=first1", *QUICK, "--resume"]
    for change, message in [
        (["--freeze=full"], "--freeze was first1 and is full"),
        (["--seed=1", "--lr=2e-3"], "--lr was 0.001 and is 0.002; --seed was 0 and is 1"),
        ([f"--data={text}"], f"and is {text}"),
    ]:
        assert message in refused([*same_flags, *change], capsys, monkeypatch)


# refusing


def refused(flags: list[str], capsys, monkeypatch) -> str:
    """The one line on standard error of a command that exits with 2."""
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("train: ")
    assert "Traceback" not in error
    return error


BAD = {
    "an unknown strategy": (["--freeze=fisrt6"], "A freezing strategy is one of"),
    "too many blocks": (["--freeze=first40"], "--freeze: strategy 'first40': the model has only 2 blocks"),
    "no such model": (["--model=/nowhere"], "no such file or folder"),
    "no such data": (["--data=/nowhere"], "--data: /nowhere is neither a file nor a folder"),
    "empty data": (["--data={tmp}/empty.txt"], "is empty"),
    "no such held-out data": (["--eval-data=/nowhere"], "--eval-data: /nowhere is neither a file nor a folder"),
    "empty held-out data": (["--eval-data={tmp}/empty.txt"], "--eval-data: "),
    "white space": (["--data={tmp}/white.txt"], "is empty"),
    "binary data": (["--data={tmp}/binary.txt"], "is not text: there is a zero byte at 3"),
    "latin-1 data": (["--data={tmp}/latin.txt"], "is not UTF-8 text: byte 0xe9 at 3"),
    "short data": (["--data={tmp}/short.txt"], "too few for one context of 32"),
    "folder without text": (["--data={tmp}/images"], "holds no .txt, .md, .jsonl, .ndjson, "),
    "long context": (["--context=64"], "more than the model's context of 32"),
    "no steps": (["--steps=0"], "--steps: must be from 1 to 1,000,000,000"),
    "negative rate": (["--lr=-1"], "--lr: must be above 0 and at most 10"),
    "not a number": (["--lr=nan"], "--lr: must be above 0"),
    "negative seed": (["--seed=-1"], "--seed: must be from 0 to"),
    "huge seed": (["--seed=99999999999999999999"], "--seed: must be from 0 to"),
    "endless": (["--steps=999999999999999999999"], "--steps: must be from 1 to 1,000,000,000"),
    "a checkpoint for --out": (["--out={tmp}/truncated"], "is a checkpoint (it holds config.json)"),
    "no run in --out": (["--out={tmp}/precious", "--resume"], "holds tokenizer but no run.json"),
    "no run to replace": (["--out={tmp}/precious", "--force"], "holds tokenizer but no run.json"),
    "odd mesh": (["--mesh=rows=2"], "is not AXIS=SIZE"),
    "large mesh": (["--mesh=data=3"], "--mesh: mesh 'data=3' needs 3 devices, but there are 1"),
    "an odd token": (["--add-tokens=a b ,"], "--add-tokens: new token 'a b ' has white space around it"),
    "another tokenizer": (["--model={tmp}/mismatch"], "has 4,097 tokens, the model only 4,096"),
    "truncated weights": (["--model={tmp}/truncated"], "truncated"),
    "missing config": (["--model={small}/model.safetensors", "--tokenizer={tmp}/images"], "no tokenizer found"),
    "both": (["--resume", "--force"], "contradict each other"),
    "long prompt": (["--prompt={long}"], "--prompt: must have from 1 to 31 tokens"),
}


@pytest.fixture(scope="module")
def mistakes(small, tmp_path_factory) -> Path:
    """A folder with everything that BAD names, to which nothing may be added."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty.txt").touch()
    (folder / "white.txt").write_text(" \n\n")
    (folder / "binary.txt").write_bytes(b"PNG\0\1\2" * 1000)
    (folder / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 1000)
    (folder / "short.txt").write_text("only a few words")
    (folder / "images").mkdir()
    (folder / "images" / "cat.png").write_bytes(b"\x89PNG")
    (folder / "precious" / "tokenizer").mkdir(parents=True)
    (folder / "precious" / "tokenizer" / "mine.json").touch()
    for name in ("mismatch", "truncated"):
        shutil.copytree(small, folder / name)
    tokenizer = jaxgpt.load_tokenizer(small)
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.save_pretrained(folder / "mismatch")
    os.truncate(folder / "truncated" / "model.safetensors", 100_000)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line_and_writes_nothing(name, small, mistakes, capsys, monkeypatch):
    flags, message = BAD[name]
    before = {path: path.stat().st_mtime_ns for path in mistakes.rglob("*")}
    values = {"tmp": mistakes, "small": small, "long": "word " * 40}
    flags = [flag.format(**values) for flag in flags]
    error = refused([f"--model={small}", f"--out={mistakes}/runs/x", *flags], capsys, monkeypatch)
    assert message in error
    assert error.count("\n") == 1 or "A freezing strategy" in error
    assert {path: path.stat().st_mtime_ns for path in mistakes.rglob("*")} == before


def test_arguments_in_messages_become_flags_but_not_in_quotes():
    message = "mesh 'fsdp=2,data=2' can't be; the user's force=True, tie=False, n_head=5 or cache=FOLDER, not dtype=x"
    assert in_flags(message, {"data", "force", "tie", "n_head", "cache"}) == (
        "mesh 'fsdp=2,data=2' can't be; the user's --force, --no-tie, --n-head=5 or --cache=FOLDER, not dtype=x"
    )


def test_a_folder_that_holds_a_run_needs_resume_or_force(small, whole_run, tmp_path, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    flags = [f"--model={small}", "--freeze=head", "--steps=2"]
    error = refused([*flags, f"--out={whole_run}"], capsys, monkeypatch)
    assert "--resume goes on with it, --force deletes it" in error
    assert {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")} == before
    copy = tmp_path / "copy"
    shutil.copytree(whole_run, copy)
    (copy / "notes.txt").write_text("mine")
    call("train", *flags, f"--out={copy}", "--force", samples=False)
    assert complete_steps(copy) == [2]
    assert (copy / "notes.txt").read_text() == "mine"


def test_a_full_disk_is_noticed_before_the_first_file(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    error = refused([f"--model={small}", f"--out={tmp_path}/runs/x"], capsys, monkeypatch)
    assert re.search(r"the disk is too full: \d+\.\d MB are needed, 1\.0 MB are free\n", error)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_during_the_run_ends_it_with_the_last_checkpoint_whole(small, tmp_path):
    """A limit on a file's size, set after the first checkpoint, stands for the disk."""
    out = tmp_path / "r"
    flags = (f"--model={small}", f"--out={out}", "--freeze=full", *QUICK)
    script = f"""
import resource, sys, jaxgpt.training.run.checkpoints
from jaxgpt.training.__main__ import main
save = jaxgpt.training.run.checkpoints.Checkpoints.save
def limited(self, state, *rest):
    if int(state.step) > 3:
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(self, state, *rest)
jaxgpt.training.run.checkpoints.Checkpoints.save = limited
sys.argv = {["train", *flags]!r}
main()
"""
    done = forked.run(script, samples=False)
    assert done.returncode == 74, done.stderr
    said = forked.without_clock(done.stderr)
    assert re.fullmatch(rf"train: {out}\S*: File too large[^\n]*: stopped after step \d; [^\n]*\n", said), done.stderr
    assert "Traceback" not in done.stdout
    assert complete_steps(out) == [3]
    assert len(convert.read(out).params) == 12 * 2 + 4


def test_a_run_whose_folder_vanishes_stops_and_says_so(small, tmp_path):
    out = tmp_path / "r"
    script = f"""
import shutil, sys, jaxgpt.training.loop
from jaxgpt.training.__main__ import main
save = jaxgpt.training.loop.Checkpoints.save
def gone(self, state, *rest):
    if int(state.step) > 3:
        self.wait()
        shutil.rmtree({str(out)!r})
    save(self, state, *rest)
jaxgpt.training.loop.Checkpoints.save = gone
sys.argv = {["train", f"--model={small}", f"--out={out}", *QUICK]!r}
main()
"""
    done = forked.run(script, samples=False)
    assert done.returncode == 74, done.stderr
    said = f"train: {out}: No such file or directory: stopped after step 4; there is no checkpoint there\n"
    assert forked.without_clock(done.stderr) == said
    assert not out.exists()


def test_a_folder_that_can_not_be_written_to_is_refused_before_anything_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    error = refused([f"--out={tmp_path}/runs/x", "--model=/nowhere"], capsys, monkeypatch)
    assert error == f"train: --out: {tmp_path} can't be written to\n"
