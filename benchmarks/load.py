"""Loading a checkpoint, side by side with PyTorch in one run: python benchmarks/load.py [--repeats 7]

The 124M shape. Ours: from the file to JAX arrays. Theirs: transformers' `from_pretrained`, or `torch.load(mmap=True)`,
and a clone of every tensor, since both map the file and read a tensor only when it is used. Needs the `test` extra.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TO_JAX = """
import jax, numpy as np
from jaxgpt.convert import read
from jaxgpt.loading import to_jax
def load():
    return jax.block_until_ready(to_jax(read(folder + SOURCE, **GIVEN), np.dtype("float32")))
"""
GIVEN = 'dict(n_head=12, activation="gelu_new")'

CASES = {
    "HF folder, jaxgpt arrays": TO_JAX.replace("SOURCE", "''").replace("GIVEN", "{}"),
    "HF folder, jaxgpt.from_pretrained": """
import jax, jaxgpt
def load():
    return jax.block_until_ready(jaxgpt.named_params(jaxgpt.from_pretrained(folder)))
""",
    "HF folder, transformers + clone": """
import torch
from transformers import GPT2LMHeadModel
from transformers.utils import logging
logging.disable_progress_bar()
def load():
    return [p.detach().clone() for p in GPT2LMHeadModel.from_pretrained(folder).parameters()]
""",
    ".bin in HF's layout, jaxgpt arrays": TO_JAX.replace("SOURCE", "'/hf.bin'").replace("GIVEN", "{}"),
    ".bin, torch.load + clone": """
import torch
def load():
    return [t.clone() for t in torch.load(folder + "/hf.bin", mmap=True, weights_only=True).values()]
""",
    ".pt of nn.Linear, jaxgpt arrays": TO_JAX.replace("SOURCE", "'/lesson.pt'").replace("GIVEN", GIVEN),
    "HF folder, inspect": """
from jaxgpt.convert import read
def load():
    return read(folder)
""",
    ".pt, inspect": """
from jaxgpt.convert import read
def load():
    return read(folder + "/hf.bin")
""",
}

LOOP = """
import sys, time, re
from pathlib import Path
folder, repeats = sys.argv[1], int(sys.argv[2])
{code}
load()
for _ in range(repeats):
    began = time.perf_counter()
    kept = load()
    print(time.perf_counter() - began)
    del kept
status = Path("/proc/self/status")
print(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0)
"""


def main() -> None:
    """Print the machine, versions, and a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    import jax
    import torch
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel

    from jaxgpt import convert

    versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        model = GPT2LMHeadModel(GPT2Config())
        model.save_pretrained(folder)
        state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        torch.save(state, Path(folder) / "hf.bin")
        source = convert.read(folder)
        convert.write(Path(folder) / "lesson.pt", source.params, source.config, to="lesson")
        print(f"{'':<36} {'median s':>9} {'min s':>7} {'peak MB':>8}")
        for name, code in CASES.items():
            command = [sys.executable, "-c", LOOP.replace("{code}", code), folder, str(repeats)]
            *seconds, peak = map(
                float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            )
            print(f"{name:<36} {statistics.median(seconds):>9.3f} {min(seconds):>7.3f} {peak / 1e3:>8,.0f}", flush=True)


if __name__ == "__main__":
    main()
