"""The benchmark of one GPU, without one: it says so, it runs on a tiny shape, and its arithmetic is right."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu():
    """The module, freshly loaded."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(*flags: str) -> subprocess.CompletedProcess:
    """From another folder, and where no nvidia-smi is found."""
    env = os.environ | {"PATH": ""}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags], cwd=ROOT.parent, env=env, capture_output=True, text=True
    )


def rows(said: str) -> list[list[str]]:
    found = [line.strip("|").split("|") for line in said.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in found]


def test_without_a_gpu_it_says_so_in_one_line():
    done = start()
    assert done.returncode == 0
    assert done.stdout == "no GPU here: nothing is measured (--cpu tries the benchmark on a tiny shape)\n"
    assert done.stderr == ""


def test_both_programs_run_on_a_tiny_shape_and_are_the_same_network(tmp_path):
    done = start("--cpu", "--steps=2", "--freeze", "first6", f"--json={tmp_path}/gpu.json")
    assert done.returncode == 0, done.stderr
    header, _, ours, theirs, texts, _, longer, first = rows(done.stdout)
    assert [ours[2], theirs[2]] == ["jaxgpt", "nanoGPT"]
    assert texts[3:] == ["jaxgpt", "transformers"]
    assert all(said.endswith("tokens/s") for said in longer[3:])
    assert all(said.endswith("ms") for said in first[3:])
    assert header[8] == "MFU"
    assert ours[8] == "–"  # a CPU is no chip of the table
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["versions"]["jax"]
    ours, theirs = told["results"][:2]
    assert ours["trainable"] == theirs["trainable"]
    assert theirs["parameters"] - ours["parameters"] == theirs["padding"] * ours["shape"]["n_embd"]
    assert ours["flops"] == theirs["flops"] > 0
    for result in (ours, theirs):
        assert len(result["step_seconds"]) == 1
        assert all(abs(loss - 5.52) < 0.2 for loss in result["losses"])  # ln 250, of tokens at random


def measured(case: dict, seconds: float) -> dict:
    return {
        "step_seconds": [seconds, 9.0, seconds / 2, seconds, 0.0], "compile_seconds": 30.0, "losses": [11.0],
        "device": "NVIDIA H100 80GB HBM3", "trainable": 1, "parameters": 124_439_808, "peak_bytes": 13 * 2**30,
    }  # fmt: skip


def pretend(gpu, monkeypatch, answer, *flags: str) -> list[dict]:
    """Runs it on an H100 that is not there; the cases that it asked for."""
    asked = []

    def ask(command, cpu):
        if command[0] == "-c":
            return {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3"}
        asked.append(case := json.loads(command[1]))
        return answer(case)

    monkeypatch.setattr(gpu, "ask", ask)
    monkeypatch.setattr(gpu, "smi", lambda query: "580.1")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--no-texts", *flags])
    before = dict(os.environ)
    gpu.main()
    assert dict(os.environ) == before  # measurements inherit it
    return asked


def test_tokens_and_utilisation_are_those_of_the_formula(gpu, monkeypatch, capsys):
    def answer(case):
        return measured(case, 0.1 if case["program"] == "jaxgpt" else 0.08)

    asked = pretend(gpu, monkeypatch, answer, "--models", "gpt2")
    assert [(c["program"], c["freeze"], c["padding"], c["variant"]) for c in asked] == [
        ("jaxgpt", "full", 0, ""), ("nanogpt", "full", 47, ""), ("jaxgpt", "first6", 0, ""),
        ("nanogpt", "first6", 47, ""), ("jaxgpt", "full", 47, ""), ("jaxgpt", "full", 0, "XLA's norms"),
        ("jaxgpt", "full", 0, "cuBLAS's products"), ("hf", "full", 0, ""),
    ]  # fmt: skip
    full, nano, first6, _, _, norms, cublas, hf = rows(capsys.readouterr().out)[2:]
    assert [norms[2], cublas[2]] == ["jaxgpt with XLA's norms", "jaxgpt with cuBLAS's products"]
    tokens = 16 * 1024
    assert full[3] == f"{tokens / 0.1:,.0f}"
    assert full[4] == "0.80"
    # nanoGPT's estimate, with all parameters but positions for N, is 0.1 % more: LayerNorms and biases
    estimate = (6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024) * tokens
    assert float(full[6]) == pytest.approx(estimate / 1e12, rel=2e-3)
    assert float(full[8].rstrip("%")) == pytest.approx(estimate / 0.1 / 989.4e10, abs=0.1)
    assert float(nano[8].rstrip("%")) == pytest.approx(estimate / 0.08 / 989.4e10, abs=0.1)
    # forward all of it, backward six blocks, and of the head the gradient of its input only
    block = 2 * 12 * 768 * 768 + 4 * 768 * 1024
    needed = (12 * block + 6 * 2 * block + 2 * 2 * 50257 * 768) * tokens
    assert float(first6[6]) == pytest.approx(needed / 1e12, rel=1e-3)
    assert full[9:] == ["13.0", "30"]
    assert hf[2] == "transformers, torch.compile"


def test_a_kernel_is_known_by_its_name_or_by_what_it_makes(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu_profile import kind_of

    made = {
        "nvjet_tst_128x256": ("", "GEMM"),
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": ("", "attention"),
        "norm_gradients": ("", "norms"),
        "MemcpyD2D": ("", "copies"),
        "loop_add_fusion_3": ('f32[3072] fusion(%state_opt_state), op_name="jit(train_step)/add"', "optimizer"),
        "input_reduce_fusion_2": ('f32[16,128] fusion(), op_name="jit(train_step)/jit(of_rows)/reduce_max"', "loss"),
        "loop_multiply_fusion": ('bf16[16,1024,3072] fusion(), op_name="jit(train_step)/jvp()/tanh"', "activations"),
        "fusion_12": ('bf16[16,1024,768] fusion(), op_name="jit(train_step)/jvp()/convert_element_type"', "norms"),
    }
    assert {name: kind_of(name, text, 50257) for name, (text, _) in made.items()} == {
        name: kind for name, (_, kind) in made.items()
    }


def test_out_of_memory_halves_the_batch_for_both(gpu, monkeypatch, capsys, tmp_path):
    def answer(case):
        fits = case["batch"] <= (8 if case["program"] == "jaxgpt" else 4)
        return measured(case, 0.1) if fits else {"no_memory": "…\nRESOURCE_EXHAUSTED: Out of memory"}

    asked = pretend(gpu, monkeypatch, answer, "--no-variants", "--models", "gpt2-medium", f"--json={tmp_path}/gpu.json")
    assert [c["batch"] for c in asked] == [16, 8, 8, 4, 4, 4, 4, 4, 4]
    said = capsys.readouterr().out
    assert "batch 4 x 1024; out of memory with 16, 8, so halved for all" in said
    assert len(rows(said)) == 2 + 6
    assert len(json.loads((tmp_path / "gpu.json").read_text())["results"]) == len(asked)


def test_what_fails_leaves_the_rest(gpu, monkeypatch, capsys):
    def answer(case):
        return measured(case, 0.1) if case["program"] == "jaxgpt" else {"failed": "Traceback\nRuntimeError: so it is"}

    with pytest.raises(SystemExit, match="not everything could be measured"):
        pretend(gpu, monkeypatch, answer, "--no-variants", "--models", "gpt2")
    said = capsys.readouterr()
    assert [row[2] for row in rows(said.out)[2:]] == ["jaxgpt", "jaxgpt", "jaxgpt, vocabulary padded to 50,304"]
    assert "gpt2, full, nanogpt, batch 16: RuntimeError: so it is" in said.err


def test_a_gpu_that_jax_can_not_use_is_named(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "ask", lambda command, cpu: {"platform": "cpu", "kind": "cpu"})
    monkeypatch.setattr(gpu, "smi", lambda query: "NVIDIA L4")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"a GPU \(NVIDIA L4\), but JAX sees none: pip install 'jaxgpt\[gpu\]'"):
        gpu.main()


def test_without_pytorch_there_are_our_rows(gpu, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    asked = pretend(
        gpu, monkeypatch, lambda case: measured(case, 0.1), "--no-variants", "--models", "gpt2", "--freeze", "full"
    )
    assert [case["program"] for case in asked] == ["jaxgpt", "jaxgpt"]


def test_a_process_that_fails_is_told_from_one_without_memory(gpu):
    assert "oh" in gpu.ask(["-c", "raise ValueError('oh')"], True)["failed"]
    assert "no_memory" in gpu.ask(["-c", "raise RuntimeError('CUDA out of memory. Tried to …')"], True)
    assert gpu.ask(["-c", "print('a warning'); print('{\"a\": 1}')"], True) == {"a": 1}
    assert gpu.ask(["-c", "import os; os._exit(3)"], True) == {"failed": "exit code 3"}
