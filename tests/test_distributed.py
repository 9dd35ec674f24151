"""One run in several processes, and on other devices than it began on: the same losses and parameters."""

import json
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import call, random_hf
from forked import Forked, simulated
from runs import QUICK, arrays, metrics

from jaxgpt.convert.digests import find_damage
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.source import complete_steps
from jaxgpt.training.distributed import connect, is_one_of_several
from jaxgpt.training.failures import describe_failure
from jaxgpt.training.settings import Settings

PROGRAM = """
import sys, time
import jaxgpt.training.distributed, jaxgpt.training.loop
from jaxgpt.training.__main__ import main
jaxgpt.training.distributed.LOST_SECONDS = 10  # a killed process is missed sooner
batches_of = jaxgpt.training.loop.device_train_batches
def slowly(*args, **how):
    for batch in batches_of(*args, **how):
        time.sleep({seconds})
        yield batch
jaxgpt.training.loop.device_train_batches = slowly
for flags in {runs!r}:
    sys.argv = ["train", *flags]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
FLAGS = (*QUICK, "--lr=1.2e-5", "--warmup=1", "--freeze=first1")  # slowly: the first step of Adam is a gradient's sign


def program(*runs, seconds: float = 0) -> str:
    return PROGRAM.format(seconds=seconds, runs=[[*map(str, flags)] for flags in runs])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(
    code: str, devices: int, *args: object, stderr: int | None = subprocess.STDOUT, samples: bool = False
) -> Forked:
    return Forked(code, *args, stderr=stderr, samples=samples, XLA_FLAGS=simulated(devices))


def train(*runs, devices: int, processes: int = 1, seconds: float = 0, samples: bool = False) -> list[Forked]:
    """`python -m train` in so many processes, of so many devices each; several runs are one after the other."""
    where = [()]
    if processes > 1:
        port = free_port()
        where = [
            (f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}") for i in range(processes)
        ]
    return [
        start(program(*((*flags, *at) for flags in runs), seconds=seconds), devices, samples=samples) for at in where
    ]


def ended(processes: list[Forked]) -> list[str]:
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert {process.returncode for process in processes} == {0}, "\n".join(said)
    return said


def assert_alike(a: Path, b: Path, step: int, frozen: tuple[str, ...] = ("tok_emb", "blocks.0.")) -> None:
    """To 1e-5, and what is frozen bit by bit."""
    ours, theirs = metrics(a), metrics(b)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "eval_loss"):
            assert mine[key] == other[key] or abs(mine[key] - other[key]) < 1e-5
    ours, theirs = arrays(a, step), arrays(b, step)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.startswith("params"):
            rows = slice(min(len(ours[name]), len(theirs[name])))  # but for padding
            np.testing.assert_allclose(ours[name][rows], theirs[name][rows], rtol=0, atol=1e-5, err_msg=name)
    kept = [name for name in ours if name.startswith(tuple(f"params/{module}" for module in frozen))]
    assert len(kept) == 13 * bool(frozen)
    for name in kept:
        rows = slice(min(len(ours[name]), len(theirs[name])))
        assert ours[name][rows].tobytes() == theirs[name][rows].tobytes(), name


@pytest.fixture(scope="module")
def of_four(small, tmp_path_factory) -> Path:
    """A run on four devices."""
    out = tmp_path_factory.mktemp("four") / "run"
    ended(train((f"--model={small}", *FLAGS, f"--out={out}", "--mesh=fsdp=2,tensor=2"), devices=4))
    return out


def test_two_processes_are_stopped_and_go_on_as_one(of_four, small, tmp_path):
    flags = (f"--model={small}", *FLAGS)
    pair = train([*flags, f"--out={tmp_path}/r", "--mesh=fsdp=4"], devices=2, processes=2, seconds=0.5)
    said = ""
    for line in pair[0].stdout:
        said += line
        if re.match("step 4/9", line):
            break
    pair[1].send_signal(signal.SIGTERM)  # only one is told, and not the one that writes
    other, _ = pair[1].communicate(timeout=120)
    said += pair[0].communicate(timeout=120)[0]
    assert [process.returncode for process in pair] == [75, 75], said + other
    (step,) = re.findall(r"stopped after step (\d+), which is saved", said)
    assert 4 <= int(step) < 9
    assert complete_steps(tmp_path / "r")[-1] == int(step)
    writers = {path.name for path in (tmp_path / "r" / "checkpoints" / step / "params").glob("ocdbt.process_*")}
    assert writers == {"ocdbt.process_0", "ocdbt.process_1"}
    assert find_damage(tmp_path / "r" / "checkpoints" / step, step=int(step)) == ""
    told = json.loads((tmp_path / "r" / "checkpoints" / step / "digests.json").read_text())["files"]
    assert writers == {name.split("/")[1] for name in told if name.startswith("params/ocdbt")}
    assert "step 4/9" not in other
    assert "model  " not in other
    call("train", *flags, f"--out={tmp_path}/r", "--resume", samples=False)
    assert_alike(tmp_path / "r", of_four, 9)


def test_a_process_that_is_killed_takes_the_others_along_and_nothing_more(small, tmp_path):
    flags = (f"--model={small}", *FLAGS, "--freeze=gradual:last1@0,full@4")
    call("train", *flags, f"--out={tmp_path}/whole", samples=False)
    pair = train([*flags, f"--out={tmp_path}/r", "--mesh=fsdp=2"], devices=1, processes=2, seconds=0.5)
    for line in pair[0].stdout:
        if re.match("step 5/9", line):
            break
    pair[1].kill()
    said = pair[0].communicate(timeout=120)[0]
    # JAX's own watch may be quicker than the sums that come to nothing, and aborts
    assert pair[0].returncode in (75, -signal.SIGABRT), said
    assert "finished" not in said
    assert 3 in complete_steps(tmp_path / "r")
    pair[1].communicate()
    call("train", *flags, f"--out={tmp_path}/r", "--resume", samples=False)
    assert_alike(tmp_path / "r", tmp_path / "whole", 9, frozen=())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            ("--lr=3e-5", "--data=b.txt"),
            r"process 1: differs from process 0: --data is b.txt here and \S+words.txt there; "
            r"--lr is 3e-05 here and 1.2e-05 there",
        ),
        (("--cache=/dev/null/cache",), "/dev/null"),
    ],
)
def test_a_process_that_is_told_otherwise_ends_the_run_before_it_begins(small, tmp_path, other, said):
    port = free_port()
    flags = [f"--model={small}", *FLAGS, f"--out={tmp_path}/r", f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    alike = start(program([*flags, "--process=0"]), 1)
    unlike = start(program([*flags, "--process=1", *other]), 1)
    text, _ = unlike.communicate(timeout=120)
    assert unlike.returncode == 2, text
    assert re.search(said, text)
    assert "Traceback" not in text
    first, _ = alike.communicate(timeout=120)
    # of a mistake that only one of them can see the others learn no more than that it is gone
    assert alike.returncode in ((75, -signal.SIGABRT) if "--cache" in other[0] else (2,)), first
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("message", "n", "code", "said"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.", 1, 2, "--accumulate=2, --remat"),
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", 2, 75, "has lost the others .*closed by peer"),
    ],
)
def test_what_devices_and_others_do_is_said_in_a_line(monkeypatch, message, n, code, said):
    monkeypatch.setattr(jax, "process_count", lambda: n)
    text, found = describe_failure(jax.errors.JaxRuntimeError(message))
    assert found == code
    assert re.search(said, text)
    assert "\n" not in text


def test_an_error_of_ours_is_no_trouble_of_the_devices():
    assert describe_failure(RuntimeError("dictionary changed size during iteration")) is None


def cut(run: Path, copy: Path, step: int) -> Path:
    """A copy of a run as if it had been killed after a step's checkpoint."""
    shutil.copytree(run, copy)
    for later in complete_steps(copy):
        if later > step:
            shutil.rmtree(copy / "checkpoints" / str(later))
    assert complete_steps(copy)[-1] == step
    return copy


def add_damaged(run: Path, step: int, newer: int) -> None:
    """Add a newer checkpoint, in which one bit is wrong; of several processes only one compares that piece."""
    folder = shutil.copytree(run / "checkpoints" / str(step), run / "checkpoints" / str(newer))
    told = json.loads((folder / "digests.json").read_text())
    (folder / "digests.json").write_text(json.dumps(told | {"step": newer}, indent=2) + "\n")
    assert find_damage(folder, step=newer) == ""
    file = max((folder / "params").rglob("*"), key=lambda file: file.stat().st_size)
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (8, 1), (1, 2)])
def test_a_checkpoint_of_four_devices_goes_on_elsewhere(of_four, small, tmp_path, devices, processes):
    copy = cut(of_four, tmp_path / "r", 6)
    add_damaged(copy, 6, 7)
    flags = (f"--model={small}", *FLAGS, f"--out={copy}", "--resume")
    if devices == processes == 1:
        done = call("train", *flags, samples=False)
        said = [done.stdout + done.stderr]
    else:
        said = ended(train(flags, devices=devices, processes=processes))
    assert f"checkpoint {copy}/checkpoints/7 is damaged (" in said[0]
    assert "set aside as 7.damaged; the run goes on from step 6\n" in said[0]
    assert_alike(copy, of_four, 9)


def test_rows_of_padding_come_and_go_with_the_mesh(small, tmp_path):
    dims = {"n_embd": 36, "n_head": 3, "n_layer": 2, "n_inner": 54, "n_positions": 32, "vocab_size": 4096}
    random_hf(**dims, bos_token_id=4095, eos_token_id=4095).save_pretrained(tmp_path / "m")
    flags = (f"--model={tmp_path}/m", f"--tokenizer={small}", *FLAGS, "--batch-size=6")
    call("train", *flags, f"--out={tmp_path}/one", samples=False)
    more, meshed = cut(tmp_path / "one", tmp_path / "more", 6), (*flags, "--mesh=data=2,tensor=3")
    ended(train((*meshed, f"--out={tmp_path}/six"), (*meshed, f"--out={more}", "--resume"), devices=6))
    assert arrays(tmp_path / "six", 9)["params/tok_emb.embedding"].shape == (4224, 36)
    assert_alike(tmp_path / "six", tmp_path / "one", 9)
    fewer = cut(tmp_path / "six", tmp_path / "fewer", 6)
    call("train", *flags, f"--out={fewer}", "--resume", samples=False)
    for run in (fewer, more):
        assert_alike(run, tmp_path / "one", 9)
    assert arrays(fewer, 9)["params/tok_emb.embedding"].shape == (4096, 36)
    table = arrays(more, 9)["params/tok_emb.embedding"]
    np.testing.assert_allclose(table[4096:], np.tile(table[:4096].mean(0), (128, 1)), atol=1e-6)  # and not zeros


READING = """
import sys
import jax, numpy as np
import jaxgpt
from jaxgpt import convert
from jaxgpt import loading
from jaxgpt.mesh import make_mesh
from jaxgpt.training.data.device_batches import local_rows
from jaxgpt.training.distributed import connect
from jaxgpt.training.settings import Settings
from jaxgpt.training.failures import describe_failure
port, index, *cases = sys.argv[1:]
connect(Settings(coordinator=f"127.0.0.1:{port}", processes=2, process=int(index)))
pages, original = set(), loading._aligned

def counted(source, dtype, shape):
    for row in source.reshape(-1, *source.shape[-1:]) if source.flags.c_contiguous else source:
        low, high = np.lib.array_utils.byte_bounds(row)
        pages.update(range(low // 4096, (high - 1) // 4096 + 1) if row.size else ())
    return original(source, dtype, shape)

loading._aligned = counted
from concurrent.futures import ThreadPoolExecutor
loading.ThreadPoolExecutor = lambda n: ThreadPoolExecutor(1)
for folder, text in zip(cases[::2], cases[1::2], strict=True):
    pages.clear()
    model = jaxgpt.from_pretrained(folder, mesh=make_mesh(text))
    read, size = len(pages) * 4096, sum(param.nbytes for param in convert.read(folder).params.values())
    for name, param in convert.read(folder).params.items():
        whole = np.asarray(param)
        for shard in jaxgpt.named_params(model)[name].addressable_shards:
            assert np.array_equal(np.asarray(shard.data), whole[shard.index]), name
    print("share", read / size, file=sys.stderr)
"""

HALVES = (("shards", "fsdp=4"), ("shards", "data=4"), ("shards", "data=2,tensor=2"), ("nanogpt.pt", "fsdp=4"))


def test_each_of_two_processes_reads_half_of_a_checkpoint(tmp_path):
    dims = {"n_embd": 128, "n_head": 4, "n_layer": 3, "n_inner": 512, "n_positions": 64, "vocab_size": 2050}
    random_hf(**dims, activation_function="gelu").save_pretrained(tmp_path / "shards", max_shard_size="700kB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    call("convert", tmp_path / "shards", tmp_path / "nanogpt.pt", "--to=nanogpt")  # kernels the other way round
    port, cases = free_port(), [word for kind, text in HALVES for word in (tmp_path / kind, text)]
    pair = [start(READING, 2, port, i, *cases, stderr=None) for i in range(2)]
    said = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    for text in said:
        shares = dict(zip(HALVES, map(float, re.findall(r"^share (.+)$", text, re.M)), strict=True))
        assert all(0.4 < share < 0.6 for share in shares.values()), shares


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "127.0.0.1:1234"}, "all three of them, or none"),
        ({"processes": 2}, "all three of them, or none"),
        ({"coordinator": "auto", "process": 0}, "all three of them, or none"),
        ({"coordinator": "127.0.0.1:1234", "processes": 2, "process": 2}, "--process: must be from 0 to 1, not 2"),
        ({"coordinator": "no port", "processes": 1, "process": 0}, "--coordinator: 'no port' is not auto or HOST:PORT"),
    ],
)
def test_where_processes_meet_is_said_in_full(flags, message):
    with pytest.raises(InputError, match=message):
        connect(Settings(**flags))


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, False),  # a shell within a job
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_the_environment_says_whether_there_are_others(variables, several):
    assert is_one_of_several(variables) == several


def test_adapters_and_new_rows_train_in_two_processes_as_in_one(small, tmp_path):
    flags = [f"--model={small}", *FLAGS, "--freeze=lora:r=2,dora+new-tokens", "--add-tokens=<|a|>,<|b|>"]
    ended(train([*flags, f"--out={tmp_path}/two"], devices=2, processes=2, samples=True))
    call("train", *flags, f"--out={tmp_path}/one", samples=False)
    assert_alike(tmp_path / "two", tmp_path / "one", 9, frozen=())
