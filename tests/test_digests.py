"""Damaged checkpoints: every flipped bit and every lost file is found, named in one line, and the run goes on."""

import contextlib
import gc
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from conftest import call
from runs import QUICK, assert_same_run, without_digests

import jaxgpt
from jaxgpt.convert import digests
from jaxgpt.convert.digests import find_damage
from jaxgpt.convert.formats.array_headers import check_arrays
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.command import read_command
from jaxgpt.training.run.checkpoints import Checkpoints
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.setup import prepare

NOBODY_READS = "commit_success.txt"


def files_of(folder: Path) -> list[Path]:
    """All files of a checkpoint but one from which nothing is read."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / NOBODY_READS]


def flip(file: Path, at: float, bit: int = 0) -> None:
    """Flip one bit at a fraction of a file."""
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1 << bit
    file.write_bytes(content)


def largest(folder: Path) -> Path:
    return max(files_of(folder), key=lambda file: file.stat().st_size)


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    """A copy of a run of 9 steps with the checkpoints of 6, 8 and 9."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


def test_an_undamaged_checkpoint_is_as_it_was_written(whole_run):
    for step in complete_steps(whole_run):
        assert find_damage(whole_run / "checkpoints" / str(step), step=step) == ""


@pytest.mark.bounded
def test_every_flipped_bit_is_found(run):
    """In every file, at its ends and between, some bits of a byte."""
    step = run / "checkpoints" / "9"
    files = files_of(step)
    kinds = {path.relative_to(step).parts[0] for path in files}
    assert kinds == {"params", "opt_state", "config", "eval_state", "base", "_CHECKPOINT_METADATA", "digests.json"}
    for file in files:
        before = file.read_bytes()
        for at, bit in [(0, 0), (0.5, 6), (1, 3)]:
            flip(file, at, bit)
            if file.name != "_CHECKPOINT_METADATA" or b"commit_timestamp" not in before[: int(at * len(before)) + 60]:
                assert find_damage(step, step=9) != "", (file, at, bit)
                assert file.name == "digests.json" or file.name in find_damage(step, step=9)
            file.write_bytes(before)
    assert find_damage(step, step=9) == ""


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: os.truncate(file, 0),
    "halved": lambda file: os.truncate(file, file.stat().st_size // 2),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a broken link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "an endless file": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
}


@pytest.mark.bounded
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_that_is(run, damage):
    step = run / "checkpoints" / "9"
    for file in files_of(step):
        before = file.read_bytes()
        DAMAGES[damage](file)
        if file.name != "_CHECKPOINT_METADATA" or damage != "longer":  # a blank more in JSON is no damage
            assert file.name in find_damage(step, step=9), file
        if file.is_dir():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_bytes(before)


def test_swapped_files_items_and_checkpoints_are_found(run):
    steps = run / "checkpoints"
    step = steps / "9"
    files = [file for file in files_of(step) if file.name != "digests.json"]
    for a, b in pairwise(files):
        if a.read_bytes() != b.read_bytes():
            contents = a.read_bytes(), b.read_bytes()
            for file, content in zip((b, a), contents, strict=True):
                file.write_bytes(content)
            assert find_damage(step, step=9) != "", (a, b)
            for file, content in zip((a, b), contents, strict=True):
                file.write_bytes(content)
    for item in ("params", "eval_state"):  # of another step of the same run
        (step / item).rename(step.with_name("kept"))
        shutil.copytree(steps / "8" / item, step / item)
        assert item in find_damage(step, step=9)
        shutil.rmtree(step / item)
        step.with_name("kept").rename(step / item)
    assert find_damage(step, step=9) == ""
    shutil.rmtree(step)
    shutil.copytree(steps / "8", step)
    assert find_damage(step, step=9) == "its contents are those of step 8"


def test_pieces_of_a_large_file_are_compared_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "PIECE_BYTES", 2**20)
    monkeypatch.setattr(digests, "BUFFER_BYTES", 2**18)
    (tmp_path / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": digests.ANNOUNCEMENT}))
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "large").write_bytes(np.random.default_rng(0).bytes(3 * 2**20 + 5))
    digests.write_digests(tmp_path)
    told = json.loads((tmp_path / "digests.json").read_text())
    assert len(told["files"]["params/large"]["xxh3_64"]) == 4
    assert find_damage(tmp_path) == ""
    flip(tmp_path / "params" / "large", 0.5)
    found = [find_damage(tmp_path, share=(index, 3)) for index in range(3)]
    assert sorted(found) == ["", "", "params/large is not what was written"]


@pytest.mark.parametrize("before", ["", '{"init_timestamp_nsecs": 1}', '{"init_timestamp_nsecs": 1, "custom_me', None])
def test_digests_wait_for_the_file_that_orbax_writes_beside_them(tmp_path, before):
    """One of its threads truncates the file and writes it again, just when the digests are made."""
    file = tmp_path / "_CHECKPOINT_METADATA"
    if before is not None:
        file.write_text(before)
    last = {"init_timestamp_nsecs": 1, "item_handlers": {"params": "x"}, "custom_metadata": digests.ANNOUNCEMENT}
    late = threading.Timer(0.1, lambda: file.write_text(json.dumps(last)))
    late.start()
    digests.write_digests(tmp_path)
    late.join()
    assert find_damage(tmp_path) == ""


def test_digests_are_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SECONDS_TO_WAIT", 0)
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(OSError, match="Orbax did not finish writing it"):
        digests.write_digests(tmp_path)


def with_crc32(step: Path) -> None:
    """Give a checkpoint the digests that version 0.1 wrote at first: a CRC-32 of each piece."""
    told = json.loads((step / "digests.json").read_text())
    for name, file in told["files"].items():
        pieces = file.pop("xxh3_64")
        assert len(pieces) <= 1  # a small file
        file["crc32"] = [f"{zlib.crc32((step / name).read_bytes()):08x}" for _ in pieces]
    (step / "digests.json").write_text(json.dumps(told, indent=2) + "\n")


def test_digests_of_the_earlier_kind_are_compared_too(run):
    step = run / "checkpoints" / "9"
    with_crc32(step)
    assert find_damage(step, step=9) == ""
    for item in ("params", "opt_state"):
        file = largest(step / item)
        flip(file, 0.5)
        assert find_damage(step, step=9) == f"{file.relative_to(step)} is not what was written"
        flip(file, 0.5)
    assert find_damage(step, step=9) == ""


@pytest.mark.bounded
@pytest.mark.parametrize("change", [{"xxh3_65": []}, {"crc32": []}, {"xxh3_64": [0.5]}, {"xxh3_64": ["0" * 10**6]}])
def test_digests_of_no_known_kind_or_of_two_are_damage(run, change):
    path = run / "checkpoints" / "9" / "digests.json"
    told = json.loads(path.read_text())
    file = next(file for file in told["files"].values() if file["bytes"])
    if "xxh3_65" in change:
        del file["xxh3_64"]
    file.update(change)
    path.write_text(json.dumps(told, indent=2) + "\n")
    assert find_damage(path.parent, step=9)


def test_digests_are_made_where_nothing_can_be_mapped(run, monkeypatch):
    """Some file systems do not; an empty or a shorter file can't be."""
    step = run / "checkpoints" / "9"
    before = (step / "digests.json").read_bytes()
    (step / "digests.json").unlink()

    def refuse(*_, **how):
        raise OSError(19, "No such device")

    monkeypatch.setattr(digests.mmap, "mmap", refuse)
    digests.write_digests(step, 9)
    assert (step / "digests.json").read_bytes() == before


# what commands do


@pytest.mark.parametrize("item", ["params", "opt_state", "eval_state"])
def test_a_run_goes_on_from_the_newest_undamaged_checkpoint(small, whole_run, run, item):
    flip(largest(run / "checkpoints" / "9" / item), 0.5)
    os.truncate(largest(run / "checkpoints" / "8" / item), 3)
    said = call(
        "train", f"--model={small}", f"--out={run}", "--freeze=first1", *QUICK, "--resume", samples=False
    ).stdout
    said = [line for line in said.splitlines() if "is damaged" in line]
    assert len(said) == 2
    for step, line in zip((9, 8), said, strict=True):
        assert line.startswith(f"checkpoint {run}/checkpoints/{step} is damaged ({item}/")
        assert line.endswith(f"set aside as {step}.damaged; the run goes on from step 6")
    assert complete_steps(run) == [6, 8, 9]
    assert (run / "checkpoints" / "9.damaged").is_dir()
    assert (run / "checkpoints" / "8.damaged").is_dir()
    assert_same_run(run, whole_run, 9)


@pytest.mark.bounded
def test_a_run_without_any_undamaged_checkpoint_is_refused_and_left_alone(small, run):
    for step in complete_steps(run):
        (run / "checkpoints" / str(step) / "digests.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = call("train", f"--model={small}", f"--out={run}", "--freeze=first1", *QUICK, "--resume", check=False)
    assert done.returncode == 2
    assert " ".join(done.stderr.split()) == (
        f"train: --resume: {run}/checkpoints/9 is damaged (digests.json is missing), and no other checkpoint is intact"
        "; --force deletes the run and starts over"
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path != run} == {
        path: time for path, time in before.items() if path != run
    }


@pytest.mark.bounded
@pytest.mark.parametrize("program", ["convert", "generate", "eval", "check", "train"])
def test_a_damaged_model_is_named_by_every_command(run, small, tmp_path, program):
    flip(largest(run / "checkpoints" / "9" / "params"), 0.5)
    commands = {
        "convert": ["convert", run, tmp_path / "hf", "--to=hf"],
        "generate": ["jaxgpt", "generate", run, "--max-new-tokens=5"],
        "eval": ["jaxgpt", "eval", run, QUICK[0]],
        "check": ["jaxgpt", "check", run],
        "train": ["train", f"--model={run}", f"--out={tmp_path}/new", *QUICK],
    }
    done = call(*commands[program], check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert f"{run}/checkpoints/9 is damaged: params/" in said
    assert said.endswith(f"is not what was written; the checkpoint before it is {run}/checkpoints/8")
    assert "Traceback" not in said
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("when", ["compared", "opened", "an array is read"])
def test_a_checkpoint_that_its_run_deletes_meanwhile_is_not_called_damaged(run, monkeypatch, when):
    step, delete = run / "checkpoints" / "9", lambda *_, **__: shutil.rmtree(run / "checkpoints" / "9")
    if when == "compared":
        monkeypatch.setattr(digests, "_files", lambda folder: delete() or {})
    if when == "opened":
        monkeypatch.setattr("jaxgpt.convert.formats.orbax.check", delete)
    arrays = jaxgpt.convert.read(run).params if when == "an array is read" else {}
    if arrays:
        delete()
    act = arrays["ln_f.scale"].__array__ if arrays else lambda: jaxgpt.convert.read(run)
    with pytest.raises(jaxgpt.InputError, match=re.escape(f"{step} was deleted while it was read")):
        act()


def test_moments_are_no_part_of_the_model(run, tmp_path):
    flip(largest(run / "checkpoints" / "9" / "opt_state"), 0.5)
    call("convert", run, tmp_path / "hf", "--to=hf")


def test_a_newest_checkpoint_without_orbax_s_file_is_not_passed_over(run, tmp_path):
    (run / "checkpoints" / "9" / "_CHECKPOINT_METADATA").unlink()
    done = call("convert", run, tmp_path / "hf", "--to=hf", check=False)
    assert done.returncode == 2
    assert "checkpoints/9 is damaged: _CHECKPOINT_METADATA is missing" in " ".join(done.stderr.split())


def test_what_save_writes_has_digests_too(small, tmp_path):
    model = jaxgpt.from_pretrained(small)
    jaxgpt.save(model, tmp_path / "saved")
    jaxgpt.save(model, tmp_path / "saved", force=True)
    assert json.loads((tmp_path / "saved" / "digests.json").read_text())["step"] is None
    jaxgpt.load(tmp_path / "saved")
    flip(largest(tmp_path / "saved" / "params"), 0.5)
    with pytest.raises(jaxgpt.InputError, match=r"saved is damaged: params/\S+ is not what was written"):
        jaxgpt.load(tmp_path / "saved")


# checkpoints of earlier versions, which have no digests


@pytest.fixture(scope="module")
def refusal(small, tmp_path_factory) -> Callable[[Path], str]:
    """Read the checkpoint of step 9 of a run as `--resume` does, and return why it is refused, if it is."""
    flags = read_command([f"--model={small}", f"--out={tmp_path_factory.mktemp('none')}", "--freeze=first1", *QUICK])
    inputs, params = prepare(flags, RunFolder(flags.out))
    gc.collect()
    gc.freeze()  # garbage is collected after each refusal: what lies here already need not be looked through
    shapes, config = inputs.spec.state(8), inputs.spec.model.config

    def refusal(run: Path) -> str:
        try:
            with contextlib.closing(Checkpoints(RunFolder(run), 2, inputs.base)) as checkpoints:
                checkpoints.restore(9, shapes, config, params)
        except jaxgpt.InputError as error:
            return str(error)
        return ""

    return refusal


@pytest.fixture
def old(run) -> Path:
    without_digests(run / "checkpoints" / "9")
    return run


@pytest.mark.bounded(seconds=15)  # up to fifty restorations
@pytest.mark.parametrize("damage", ["missing", "halved", "another's"])
def test_without_digests_a_file_that_is(old, refusal, damage, capfd):
    """It is refused in one line, or what is restored does not depend on it; Orbax says nothing beside."""
    assert refusal(old) == ""
    step = old / "checkpoints" / "9"
    contents = (step / "params" / "_METADATA").read_bytes()
    files = {}  # the largest of each kind
    for file in sorted(files_of(step), key=lambda file: file.stat().st_size):
        files[tuple(part for part in file.relative_to(step).parts if len(part) < 32)] = file
    said = {}
    for file in files.values():
        before = file.read_bytes()
        file.write_bytes(contents) if damage == "another's" else DAMAGES[damage](file)
        if text := refusal(old):
            said[file] = text
        if file.is_dir():
            file.rmdir()
        file.write_bytes(before)
    assert {file.name for file in said} >= {"_METADATA", "metadata", "manifest.ocdbt"}
    assert {file.parent for file in said} >= {step / "params" / "ocdbt.process_0" / "d", step / "opt_state" / "d"}
    assert all(str(step) in text and "\n" not in text for text in said.values())
    gc.collect()
    assert capfd.readouterr().err == ""


# hostile headers of arrays


HOSTILE: dict[str, dict] = {
    "chunks of petabytes": {"chunks": [2**40, 36]},
    "an array of petabytes": {"shape": [2**40, 36], "chunks": [1, 36]},
    "chunks that are larger than the array": {"chunks": [128, 36]},
    "a negative size": {"shape": [-1, 36]},
    "a fraction": {"chunks": [0.5, 36]},
    "true": {"shape": [True, 36]},
    "another rank": {"chunks": [97]},
    "endless depth": {"chunks": "deep"},
    "sizes of a text": {"shape": "ab"},
    "a structure": {"dtype": [["a", "<f4", [2**40]]]},
    "an unknown type": {"dtype": "<f99"},
    "another format": {"zarr_format": 7},
}


def header(zarr: int, change: dict) -> bytes:
    """The header of a 97 x 36 array in Zarr 2 or 3."""
    fields = {"shape": [97, 36], "chunks": [97, 36], "dtype": "<f4", "zarr_format": zarr, "compressor": None} | change
    fields |= {"fill_value": None, "filters": None, "order": "C"}
    if zarr == 3:
        grid = {"name": "regular", "configuration": {"chunk_shape": fields.pop("chunks")}}
        kind = fields.pop("dtype")
        fields |= {"node_type": "array", "chunk_grid": grid, "data_type": "float32" if kind == "<f4" else kind}
        fields |= {"codecs": [{"name": "bytes"}], "chunk_key_encoding": {"name": "default"}, "attributes": {}}
    text = json.dumps(fields)
    return text.replace('"deep"', "[" * 100_000 + "]" * 100_000).encode()


def write_hostile(item: Path, zarr: int, kind: str, change: dict) -> None:
    """Write an item of one array whose header is hostile."""
    names = {2: ".zarray", 3: "zarr.json"}
    item.mkdir(parents=True)
    key = {"key": "tok_emb.embedding", "key_type": 2}
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    tree = {"('tok_emb.embedding',)": {"key_metadata": [key], "value_metadata": value}}
    told = {"tree_metadata": tree, "use_ocdbt": kind == "OCDBT", "use_zarr3": zarr == 3}
    (item / "_METADATA").write_text(json.dumps(told))
    contents = {names[zarr]: header(zarr, change), "0.0": bytes(97 * 36 * 4), "c/0/0": bytes(97 * 36 * 4)}
    if kind == "files":
        for name, content in contents.items():
            path = item / "tok_emb.embedding" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        base = {"driver": "file", "path": f"{item}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for name, content in contents.items():
            store.write(f"tok_emb.embedding/{name}", content).result()


@pytest.mark.bounded
@pytest.mark.parametrize("kind", ["files", "OCDBT"])
@pytest.mark.parametrize("zarr", [2, 3])
def test_headers_that_ask_for_too_much_never_reach_tensorstore(small, tmp_path, kind, zarr):
    jaxgpt.save(jaxgpt.from_pretrained(small), tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "params")
    without_digests(tmp_path / "model")
    write_hostile(tmp_path / "fine", zarr, kind, {})
    check_arrays(tmp_path / "fine")
    for name, change in HOSTILE.items():
        write_hostile(tmp_path / "model" / "params", zarr, kind, change)
        with pytest.raises(
            jaxgpt.InputError, match=r"Orbax can't read this checkpoint \(\S*(\.zarray|zarr\.json) "
        ) as error:
            jaxgpt.load(tmp_path / "model")
        assert "\n" not in str(error.value), name
        assert len(str(error.value)) < 500, name
        shutil.rmtree(tmp_path / "model" / "params")


@pytest.mark.bounded
@pytest.mark.parametrize("name", ["_METADATA", "tok_emb.embedding/.zarray", "d/pipe"])
def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path, name):
    write_hostile(tmp_path / "params", 2, "files", {})
    path = tmp_path / "params" / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{name} is no file"):
        check_arrays(tmp_path / "params")


@pytest.mark.bounded
def test_a_pipe_in_the_config_s_place_is_not_waited_for(old):
    path = old / "checkpoints" / "9" / "config" / "metadata"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(jaxgpt.InputError, match="metadata: not a regular file"):
        jaxgpt.load(old)


@pytest.mark.bounded
def test_a_sharded_header_s_inner_chunks_count_too(tmp_path):
    inner = {"name": "sharding_indexed", "configuration": {"chunk_shape": [2**40, 36], "codecs": [{"name": "bytes"}]}}
    write_hostile(tmp_path / "params", 3, "files", {})
    path = tmp_path / "params" / "tok_emb.embedding" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codecs": [inner]}))
    with pytest.raises(ValueError, match="chunks of"):
        check_arrays(tmp_path / "params")


@pytest.mark.bounded
@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a/../../b", "..\\b"])
def test_names_of_arrays_do_not_lead_out_of_the_item(tmp_path, name):
    write_hostile(tmp_path / "params", 2, "files", {})
    path = tmp_path / "params" / "_METADATA"
    path.write_text(path.read_text().replace('"key": "tok_emb.embedding"', f'"key": {json.dumps(name)}'))
    with pytest.raises(ValueError, match="no name of an array"):
        check_arrays(tmp_path / "params")


def test_a_checkpoint_under_the_number_of_another_is_no_model(run, tmp_path):
    """`--resume` says so too; the newest number alone does not make the newest model."""
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "99")
    with pytest.raises(jaxgpt.InputError, match="99 is damaged: its contents are those of step 6"):
        jaxgpt.load(run)
    shutil.copytree(run / "checkpoints" / "9", tmp_path / "7")  # elsewhere a folder's name means nothing
    jaxgpt.load(tmp_path / "7")
