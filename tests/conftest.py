"""Small random GPT-2s written by transformers, and strict JAX: what the tests share."""

import contextlib
import gc
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# both workers and the processes that tests start compile the same programs, most of them small: each is compiled once,
# and by XLA's older emitters with the least work, in half the time; only runs of the bundled model would repay more
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # jax 0.11 has no older emitters, and a flag that XLA does not know ends the process
    + (" --xla_cpu_use_fusion_emitters=false" if version("jax") < "0.11" else ""),
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
# tracing takes most of the time, and a part of it is to note where each operation comes from, which nobody reads here;
# threads of XLA look for work before they sleep, and each process would have as many as there are cores
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("NPROC", "1")
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "xdg")  # not the user's own
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from bounds import bounded
from families import FIRST, write_table
from jax._src import compilation_cache
from runs import QUICK

import jaxgpt
from jaxgpt.convert.command_line import console
from jaxgpt.model.gpt import abstract

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def keep_programs(n: int = 256) -> None:
    """Let this process load a program from the cache of compiled ones once, and not again for every run of it."""
    load, store, kept = compilation_cache.get_executable_and_time, compilation_cache.put_executable_and_time, {}

    def keep(key, program, seconds):
        kept[key] = program, seconds
        if len(kept) > n:
            del kept[next(iter(kept))]

    def get(key, *how):
        if key not in kept:
            program, seconds = load(key, *how)
            if program is None:
                return None, None
            keep(key, program, seconds)
        return kept[key]

    def put(key, name, program, backend, seconds):
        store(key, name, program, backend, seconds)
        keep(key, program, seconds)

    compilation_cache.get_executable_and_time, compilation_cache.put_executable_and_time = get, put


keep_programs()
ROOT = Path(__file__).parent.parent
TINY = ROOT / "convert" / "assets" / "tiny"

# every dimension differs, so that no two can be mixed up: D, F, V, T, N, H, L
DIMS = {"n_embd": 36, "n_inner": 52, "vocab_size": 97, "n_positions": 41, "n_head": 3, "n_layer": 2}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def random_hf(seed: int = 0, **flags) -> "GPT2LMHeadModel":
    """A GPT-2 with weights large enough that every one of them, biases too, moves the logits by more than 1e-3."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    ids = {"bos_token_id": 96, "eos_token_id": 96}
    model = GPT2LMHeadModel(GPT2Config(**{**DIMS, **NO_DROPOUT, **ids, **flags}, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.15)
            elif name.endswith("weight"):
                p.normal_(1, 0.2)
            else:
                p.normal_(0, 0.2)
    return model


def random_tokens(shape, vocab: int = 97, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)


def word_level(vocab: dict[str, int]) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocab, unk_token="a")))


def torch_logits(model: "GPT2LMHeadModel", tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def run(*args: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """`python -m ARGS` in the repository; with XLA_FLAGS="" as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, args)], cwd=ROOT, env=os.environ | env, capture_output=True, text=True
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def call(
    *args: str | Path, check: bool = True, report: bool = False, samples: bool = True
) -> subprocess.CompletedProcess:
    """`python -m ARGS` in this process, which saves the seconds of its imports.

    A run draws its report only if asked: that takes as long as the rest of a short one. Without `samples` it writes no
    texts either, for which two programs are compiled that no training step needs.
    """
    package = {"train": "jaxgpt.training", "convert": "jaxgpt.convert"}.get(str(args[0]), str(args[0]))
    main = importlib.import_module(f"{package}.__main__").main
    out, error, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = [*map(str, args)]
    undrawn = "train" in args[:2] and not report
    try:
        with (
            mock.patch("jaxgpt.training.finetune._write_report") if undrawn else contextlib.nullcontext(),
            contextlib.nullcontext() if samples else mock.patch("jaxgpt.training.finetune.sample", return_value="none"),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
            jax.numpy_dtype_promotion("standard"),  # as it is for users: Optax is not strict
            jax.numpy_rank_promotion("allow"),
        ):
            main()
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if check:
        assert code == 0, error.getvalue()
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), error.getvalue())


LONG = (
    "distributed settings family_runs families generate train house compile_only check kills gradual lm_eval mesh "
    "chat_training tracking "
    "lock base preferences ema lora_runs odd_paths frozen_dtype output freeze signals parity "
    "plots vocab cache convert report hub tokenizer_files check_languages"
).split()


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that the workers, who take whole files in order, end together.

    What follows is for workers alone, as PyTorch is: the process that starts them has no tests.
    """
    import torch

    torch.set_num_threads(1)  # its models are tiny here, and threads that wait for each other cost more than they give
    gc.freeze()  # modules stay: they need not be looked through again
    gc.set_threshold(100_000, 20, 50)
    rank = {f"test_{name}": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


def pytest_addoption(parser):
    parser.addoption("--step-guard", action="store_true", help="write tests/step_guard.json anew")
    parser.addoption("--families-table", action="store_true", help="write FAMILIES.md from the tests that pass")


@pytest.fixture(autouse=True)
def _told_capability(request, record_property):
    """Say in the report of a test which family it showed to be capable of what."""
    if mark := request.node.get_closest_marker("capability"):
        name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
        for family in FIRST if name is None else [name] if name in FIRST else []:
            record_property("capability", (mark.args[0], family))


def pytest_terminal_summary(terminalreporter, config):
    """Write the table of what the tests that passed have shown, in the process that collects their reports."""
    if config.getoption("--families-table") and not hasattr(config, "workerinput"):
        told = {}
        for outcome in ("passed", "failed", "error"):
            for report in terminalreporter.stats.get(outcome, []):
                for key, value in report.user_properties:
                    if key == "capability":
                        told.setdefault(tuple(value), []).append(outcome == "passed")
        write_table(ROOT / "FAMILIES.md", {shown for shown, passed in told.items() if all(passed)})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Bound the time and the memory of a test that is marked so; its fixtures do not count."""
    if (mark := item.get_closest_marker("bounded")) is None:
        return (yield)
    with bounded(**mark.kwargs, stderr=item.config.stash.get(fault_handler_stderr_fd_key, None)):
        return (yield)


@pytest.fixture
def hf_folder(tmp_path):
    """A folder written by save_pretrained, and the model that it holds."""

    def make(name: str = "hf", **flags):
        model = random_hf(**flags)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return make


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A random 2-block model with dropout and the bundled tokenizer: quick to compile, divisible by 8."""
    folder = tmp_path_factory.mktemp("small")
    dims = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 64, "n_positions": 32, "vocab_size": 4096}
    random_hf(**dims, bos_token_id=4095, eos_token_id=4095, resid_pdrop=0.1).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


def write_cut(folder: Path, n_positions: int) -> Path:
    """Write the bundled model cut down to three of its blocks, which compile fast, and so many positions."""
    model = jaxgpt.from_pretrained("tiny")
    params = jaxgpt.named_params(model)
    params["pos_emb.embedding"] = params["pos_emb.embedding"][:n_positions]
    for name in [name for name in params if name.startswith("blocks.2.")]:
        params[name] = params[name.replace("blocks.2.", "blocks.11.")]
    cut = abstract(replace(model.config, n_layer=3, n_positions=n_positions))
    cut = jaxgpt.with_params(cut, {name: params[name] for name in jaxgpt.named_params(cut)})
    jaxgpt.save_pretrained(cut, folder, tokenizer=jaxgpt.load_tokenizer("tiny"))
    return folder


@pytest.fixture(scope="session")
def cut(tmp_path_factory) -> Path:
    """A folder with three blocks of the bundled model, and its tokenizer."""
    return write_cut(tmp_path_factory.mktemp("cut") / "hf", 256)


@pytest.fixture(scope="session")
def whole_run(small, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    call("train", f"--model={small}", f"--out={out}", "--freeze=first1", *QUICK, report=True)
    return out


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """On a machine that is slow, long work is no longer said than on a quick one."""
    monkeypatch.setattr(console, "QUIET_SECONDS", 3600.0)


@pytest.fixture(autouse=True)
def strict_jax():
    """Mixing dtypes or ranks by accident is an error."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
