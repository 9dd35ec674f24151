"""Generation against transformers, side by side in one run: python benchmarks/generate.py [--repeats 5] [--tiny]

The 124M shape with random weights, the same for both: greedy tokens per second of a whole call for prompts of 32
tokens, and the time to the first token after 512. They take turns, so that other load on the machine affects
both; medians. The table also says whether both wrote the same tokens. Needs the `torch` extra.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version

import jax
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import jaxgpt

TINY = {"n_embd": 128, "n_layer": 12, "n_head": 4, "vocab_size": 4096, "n_positions": 768}
CASES = ((1, 32, 128), (8, 32, 128), (1, 512, 1), (8, 512, 1))
"""Batch, tokens of each prompt, new tokens."""


def theirs(model: GPT2LMHeadModel, prompts: np.ndarray, new: int) -> np.ndarray:
    """Continue the prompts with transformers."""
    tokens = torch.tensor(prompts)
    settings = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings).numpy()


def timed(write, *arguments) -> tuple[float, np.ndarray]:
    """Return the seconds of a call and its result."""
    began = time.perf_counter()
    written = write(*arguments)
    return time.perf_counter() - began, written


def speed(seconds: float, batch: int, new: int) -> str:
    """Format the tokens per second of a call, or the time to its first token."""
    return f"{batch * new / seconds:.1f} tokens/s" if new > 1 else f"{seconds:.3f} s"


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the benchmark")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(GPT2Config(**(TINY if arguments.tiny else {}))).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        models = {name: jaxgpt.from_pretrained(folder, param_dtype=name) for name in ("float32", "bfloat16")}
        models["int8"] = jaxgpt.from_pretrained(folder, weights="int8")
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {packages}")
    print(f"{jaxgpt.count_params(models['float32']):,} parameters, medians of {arguments.repeats}\n")
    print(
        "| batch | prompt | new | transformers | jaxgpt | ratio | bfloat16 | int8 | its ratio | compile | same tokens |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for batch, length, new in CASES:
        prompts = np.random.default_rng(0).integers(0, reference.config.vocab_size, (batch, length))
        writers = {"transformers": lambda p, n: theirs(reference, p, n)}
        for name, model in models.items():
            writers[name] = lambda p, n, model=model: jaxgpt.generate(model, p, max_new_tokens=n)
        first = {name: timed(write, prompts, new) for name, write in writers.items()}
        times = {name: [] for name in writers}
        for _ in range(arguments.repeats):
            for name, write in writers.items():
                times[name].append(timed(write, prompts, new)[0])
        median = {name: statistics.median(values) for name, values in times.items()}
        said = {name: speed(seconds, batch, new) for name, seconds in median.items()}
        same = (first["float32"][1] == first["transformers"][1]).mean()
        print(
            f"| {batch} | {length} | {new} | {said['transformers']} | {said['float32']} "
            f"| {median['transformers'] / median['float32']:.2f}x | {said['bfloat16']} "
            f"| {said['int8']} | {median['float32'] / median['int8']:.2f}x "
            f"| {first['float32'][0] - median['float32']:.1f} s | {same:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
