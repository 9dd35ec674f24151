"""Our program beside nanoGPT's and transformers' on one GPU, in one run: python benchmarks/gpu.py [--json gpu.json]

Steps: the 124M and 350M shapes, everything trained (`full`) and with the embeddings and six blocks frozen (`first6`),
in bfloat16 over float32 weights, without dropout: our own program, as `jaxgpt train` runs it, and under torch.compile
nanoGPT's architecture and step, and transformers' GPT-2 (`gpu_torch.py`). Same GPU, same batch, same tokens; each in
its own process, one after the other, so that none keeps memory from another. Medians over windows of steps, after a
warm-up. If anything runs out of memory, the batch is halved for all that the shape is measured with. Then where the
time of our step goes, by kind of kernel.

Texts: the 124M shape in bfloat16, greedy, beside transformers' `generate`: 128 tokens after 32 for 1, 8 and 32 texts,
and the first token after 512 (`gpu_generate.py`).

Without PyTorch only our rows are measured; without a GPU nothing is. --cpu tries the benchmark on a tiny shape.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
SHAPES = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "tiny": {"n_layer": 7, "n_embd": 32, "n_head": 2, "vocab_size": 250, "n_positions": 64},
}
"""`tiny` is for --cpu."""
CASES = (
    ("jaxgpt", "full", False, ""),
    ("nanogpt", "full", True, ""),
    ("jaxgpt", "first6", False, ""),
    ("nanogpt", "first6", True, ""),
    ("jaxgpt", "full", True, ""),
    ("jaxgpt", "full", False, "XLA's norms"),
    ("jaxgpt", "full", False, "cuBLAS's products"),
    ("hf", "full", False, ""),
)
"""Program, strategy, whether the vocabulary is padded to a multiple of 64, and the variant of our program.

GPT-2's vocabulary has 50,257 tokens, which no power of two divides; nanoGPT always pads, ours does if the checkpoint
does. The variants are what was chosen by what the compiled program holds, without a GPU: our kernel of the norms'
gradient, and to let XLA choose between Triton's products and those of cuBLAS, whose epilogue computes GELU."""
TEXTS = ((1, 32, 128), (8, 32, 128), (32, 32, 128), (1, 512, 1), (8, 512, 1))
"""Texts, tokens of each prompt, and new tokens."""
SCRIPTS = {"jaxgpt": "gpu_jaxgpt.py", "nanogpt": "gpu_torch.py", "hf": "gpu_torch.py"}
NAMES = {"jaxgpt": "jaxgpt", "nanogpt": "nanoGPT", "hf": "transformers"}
TIMEOUT_SECONDS = 900
"""A measurement that takes longer is given up."""
NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory|OutOfMemory|ALLOC_FAILED", re.IGNORECASE)
PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "torch", "triton")
PROBE = """
import json, jax
device = jax.devices()[0]
print(json.dumps({"platform": device.platform, "kind": device.device_kind}))
"""


def environment(cpu: bool, folder: str) -> dict[str, str]:
    """Make the environment of a measurement: empty compilation caches, and as much memory for JAX as for PyTorch."""
    added = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }
    chosen = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "CUDA_VISIBLE_DEVICES": "0"}
    return chosen | dict(os.environ) | added | ({"JAX_PLATFORMS": "cpu"} if cpu else {})


def ask(command: list[str], cpu: bool) -> dict[str, Any]:
    """Run a process and return the JSON of its last line, or `no_memory` or `failed` with the end of its output."""
    with tempfile.TemporaryDirectory(prefix="jaxgpt-gpu-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, *command],
                env=environment(cpu, folder),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no answer within {TIMEOUT_SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    said = (done.stdout + done.stderr).strip()[-4000:] or f"exit code {done.returncode}"
    return {"no_memory" if NO_MEMORY.search(said) else "failed": said}


def smi(query: str) -> str | None:
    """Ask nvidia-smi about the first GPU; return None without it, or without a GPU."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def versions() -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def flops_of(case: dict[str, Any]) -> int:
    """Count the model FLOPs of a step; what freezing saves does not count, nor does padding."""
    sys.path.insert(0, str(HERE.parent))
    import jax

    jax.config.update("jax_platforms", "cpu")  # in this process only: measurements need the GPU
    from jaxgpt import freeze
    from jaxgpt.convert import GPTConfig
    from jaxgpt.convert.dialects.jaxgpt import JAXGPT
    from jaxgpt.training.compile_only.flops import step_flops

    config = GPTConfig(**case["shape"])
    names = {row.ours: None for row in JAXGPT.expand(config)}
    trainable, _ = freeze.parse(case["freeze"], config).partition(names)
    return step_flops(config, trainable, (case["batch"], case["context"])).model


def peak_of(kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a GPU by its name; None if it is not in the table."""
    sys.path.insert(0, str(HERE.parent))
    from jaxgpt.training.compile_only.chips import chip_of

    chip = chip_of(SimpleNamespace(device_kind=kind))
    return chip.flops if chip else None


def cases_of(model: str, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """List the measurements of a shape, for the chosen programs and strategies."""
    shape = {"vocab_size": 50257, "n_positions": 1024} | SHAPES[model]
    shape["n_inner"] = 4 * shape["n_embd"]
    common = {
        "model": model, "shape": shape, "batch": batch, "context": shape["n_positions"], "vocab": shape["vocab_size"],
        "cpu": arguments.cpu, "warmup": 2 if arguments.cpu else 10, "window": 2 if arguments.cpu else 20,
        "seconds": arguments.seconds, "steps": arguments.steps,
    }  # fmt: skip
    return [
        common
        | {"program": program, "freeze": freeze, "variant": variant}
        | {"padding": -shape["vocab_size"] % 64 if padded else 0}
        for program, freeze, padded, variant in CASES
        if program in arguments.programs and freeze in arguments.freeze
        if arguments.variants or not variant
    ]


def measure(model: str, arguments: argparse.Namespace, keep) -> list[dict[str, Any]]:
    """Measure all cases of a shape with the largest batch of B, B/2, B/4 … that fits into memory for all of them."""
    batch = arguments.batch_size
    while batch:
        found = []
        for case in cases_of(model, batch, arguments):
            result = case | ask([str(HERE / SCRIPTS[case["program"]]), json.dumps(case)], arguments.cpu)
            result |= {"flops": flops_of(case)} if "step_seconds" in result else {}
            keep(result)
            found.append(result)
            words = result.get("failed") or result.get("skipped") or result.get("no_memory")
            name = f"{model}, {case['freeze']}, {case['program']}{with_variant(case)}, batch {batch}"
            said = words.splitlines()[-1][:300] if words else f"{1000 * seconds_of(result):,.1f} ms a step"
            print(f"{name}: {said}", file=sys.stderr, flush=True)
            if "no_memory" in result:
                break
        else:
            return found
        batch //= 2
    return found


def measure_texts(arguments: argparse.Namespace, keep) -> list[dict[str, Any]]:
    """Measure how fast texts are written, in one process for each program."""
    shape = {"vocab_size": 50257, "n_positions": 1024} | SHAPES["tiny" if arguments.cpu else "gpt2"]
    shape["n_inner"] = 4 * shape["n_embd"]
    texts = ((1, 8, 8), (1, 16, 1)) if arguments.cpu else TEXTS
    found = []
    for program in ("jaxgpt", "hf"):
        if program in arguments.programs:
            case = {"program": program, "shape": shape, "texts": texts, "cpu": arguments.cpu}
            result = case | ask([str(HERE / "gpu_generate.py"), json.dumps(case)], arguments.cpu)
            keep(result)
            found.append(result)
            words = result.get("failed") or result.get("skipped") or result.get("no_memory")
            print(f"texts, {program}: {words.splitlines()[-1][:300] if words else 'written'}", file=sys.stderr)
    return found


def table_of_texts(results: list[dict[str, Any]]) -> str:
    """Format a table in Markdown: tokens per second of whole calls, or milliseconds to the first token."""
    names = [NAMES[result["program"]] for result in results]
    lines = ["| texts | prompt | new | " + " | ".join(names) + " |", "|---:|---:|---:|" + "---:|" * len(names)]
    for i, (n, length, new) in enumerate(results[0]["texts"]):
        seconds = [statistics.median(result["seconds"][i]) for result in results]
        said = [f"{n * new / s:,.0f} tokens/s" if new > 1 else f"{1000 * s:.1f} ms" for s in seconds]
        lines.append(f"| {n} | {length} | {new} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def with_variant(case: dict[str, Any]) -> str:
    """Return what is added to the name of our program where it is measured in another way."""
    return f" with {case['variant']}" if case["variant"] else ""


def seconds_of(result: dict[str, Any]) -> float:
    """Return the seconds of a step: the median over windows."""
    return statistics.median(result["step_seconds"])


def table(results: list[dict[str, Any]], peak: float | None) -> str:
    """Format a table in Markdown with a row for each measurement."""
    lines = [
        "| shape | trains | program | tokens/s | of nanoGPT | step ms | TFLOP per step | TFLOP/s | MFU | peak GiB "
        "| compile s |", "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    theirs = {(r["model"], r["freeze"]): seconds_of(r) for r in results if r["program"] == "nanogpt"}
    for r in results:
        seconds, other = seconds_of(r), theirs.get((r["model"], r["freeze"]))
        program = NAMES[r["program"]] + with_variant(r)
        if r["program"] != "jaxgpt" and not r["cpu"]:
            program += ", torch.compile"
        if r["program"] == "jaxgpt" and r["padding"]:
            program += f", vocabulary padded to {r['vocab'] + r['padding']:,}"
        used = f"{r['flops'] / seconds / peak:.1%}" if peak else "–"
        memory = "–" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**30:.1f}"
        lines.append(
            f"| {r['model']} | `{r['freeze']}` | {program} | {r['batch'] * r['context'] / seconds:,.0f} "
            f"| {f'{other / seconds:.2f}' if other else '–'} | {1000 * seconds:,.1f} | {r['flops'] / 1e12:,.2f} "
            f"| {r['flops'] / seconds / 1e12:,.1f} | {used} "
            f"| {memory} | {r['compile_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print a table in Markdown, and what the numbers mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("gpt2", "gpt2-medium"), default=["gpt2", "gpt2-medium"])
    parser.add_argument("--freeze", nargs="+", choices=("full", "first6"), default=["full", "first6"])
    parser.add_argument("--programs", nargs="+", choices=tuple(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument(
        "--variants", action=argparse.BooleanOptionalAction, default=True, help="also our step in two other ways"
    )
    parser.add_argument("--texts", action=argparse.BooleanOptionalAction, default=True, help="also write texts")
    parser.add_argument("--batch-size", type=int, default=None, help="sequences of 1024 tokens in a step; default: 16")
    parser.add_argument(
        "--seconds", type=float, default=10, help="seconds that each is measured, in windows of 20 steps"
    )
    parser.add_argument("--steps", type=int, default=None, help="measured steps, instead of --seconds")
    parser.add_argument(
        "--peak", type=float, default=None, help="the GPU's dense bfloat16 TFLOP/s, if it is not in the table"
    )
    parser.add_argument("--json", type=Path, default=None, help="file for all measurements")
    parser.add_argument("--cpu", action="store_true", help="a tiny shape on the CPU, to try the benchmark")
    arguments = parser.parse_args()
    if arguments.batch_size is None:
        arguments.batch_size = 4 if arguments.cpu else 16
    if min(arguments.batch_size, arguments.seconds, arguments.steps or 1, arguments.peak or 1) <= 0:
        parser.error("numbers must be above 0")
    if arguments.cpu:
        arguments.models = ["tiny"]
    probe = ask(["-c", PROBE], arguments.cpu)
    if "kind" not in probe:
        sys.exit(f"gpu.py: JAX does not start: {next(iter(probe.values())).splitlines()[-1]}")
    if probe["platform"] != "gpu" and not arguments.cpu:
        if name := smi("name"):
            sys.exit(
                f"gpu.py: there is a GPU ({name}), but JAX sees none: pip install 'jaxgpt[gpu]', and no JAX_PLATFORMS"
            )
        print("no GPU here: nothing is measured (--cpu tries the benchmark on a tiny shape)")
        return
    if arguments.programs != ["jaxgpt"] and importlib.util.find_spec("torch") is None:
        arguments.programs = ["jaxgpt"]
        print("PyTorch is not installed: only our rows", file=sys.stderr)
    about = {
        "date": datetime.date.today().isoformat(), "gpu": probe["kind"], "driver": smi("driver_version"),
        "versions": versions(), "flags": {name: os.environ.get(name) for name in ("XLA_FLAGS",)},
    }  # fmt: skip
    kept: list[dict[str, Any]] = []

    def keep(result: dict[str, Any]) -> None:
        kept.append(result)
        if arguments.json:
            arguments.json.write_text(json.dumps(about | {"results": kept}, indent=1))

    results = [result for model in arguments.models for result in measure(model, arguments, keep)]
    texts = measure_texts(arguments, keep) if arguments.texts else []
    measured = [result for result in results if "step_seconds" in result]
    if measured:
        report(measured, kept, about, arguments.peak * 1e12 if arguments.peak else peak_of(probe["kind"]))
    if written := [text for text in texts if "seconds" in text]:
        print(f"\n{table_of_texts(written)}")
    if any("failed" in result or "no_memory" in result for result in (*results, *texts)):
        sys.exit("gpu.py: not everything could be measured; the reasons are above, and whole in --json")


def report(
    results: list[dict[str, Any]], kept: list[dict[str, Any]], about: dict[str, Any], peak: float | None
) -> None:
    """Print the table and an explanation of its columns."""
    day = datetime.date.fromisoformat(about["date"])
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    print(f"\n{about['gpu']}, driver {about['driver'] or 'unknown'}; {packages}; {day.day} {day:%B %Y}")
    if flags := about["flags"]["XLA_FLAGS"]:
        print(f"XLA_FLAGS={flags}")
    for model in dict.fromkeys(r["model"] for r in results):
        r = next(r for r in results if r["model"] == model)
        tried = sorted({k["batch"] for k in kept if k.get("model") == model and "no_memory" in k}, reverse=True)
        halved = f"; out of memory with {', '.join(map(str, tried))}, so halved for all" if tried else ""
        print(f"{model}: {r['parameters']:,} parameters, batch {r['batch']} x {r['context']}{halved}")
    print(f"\n{table(results, peak)}\n")
    for r in results:
        if kinds := r.get("kinds"):
            said = ", ".join(f"{kind} {ms:.1f}" for kind, ms in kinds.items())
            what = f"{r['model']}, {r['freeze']}{with_variant(r)}"
            print(f"{what}, milliseconds of a step by kind of kernel: {said}")
    print(
        "Steps: medians over windows of "
        f"{results[0]['window']} after {results[0]['warmup'] + 1}. FLOPs: of the model, matrix products forward and "
        "backward over all T x T pairs (PaLM, appendix B: for `full` 6 N + 12 L D T a token, as nanoGPT estimates it), "
        "without padding and without what freezing saves: a frozen kernel needs no gradient of its own, and nothing "
        "below the lowest trainable layer is differentiated. "
        + (f"MFU: of {peak / 1e12:,.0f} TFLOP/s, dense bfloat16. " if peak else "MFU: this chip's peak is unknown. ")
        + "Memory: the most that was allocated. Compiling: the time until the first step ends, less a step."
    )


if __name__ == "__main__":
    main()
