"""How soon a command does something, without and with programs in the compilation cache: python benchmarks/start.py.

`jaxgpt train` up to its first step, and `jaxgpt generate tiny` up to the end of a text of one token. Where others use
the machine, only the CPU time says something.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "train": (("train", "--out={}/run", "--force"), "compiled the training step"),
    "generate": (("generate", "tiny", "--max-new-tokens=1"), None),
}
"""Arguments, and the line after which a command is ended."""


def start(arguments: list[str], until: str | None, cache: str) -> tuple[float, float]:
    """Return the seconds that a command takes, and those of CPU time."""
    before, began = sum(os.times()[2:4]), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "jaxgpt", *arguments],
        env=os.environ | {"XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        if not any(until is not None and until in line for line in process.stdout):
            process.wait()
        seconds = time.perf_counter() - began
        process.kill()
    return seconds, sum(os.times()[2:4]) - before


def main() -> None:
    """Print the machine, and a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<18} {'s':>6} {'CPU s':>6}")
    for name, (arguments, until) in COMMANDS.items():
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                given = [argument.format(folder) for argument in arguments]
                for which in ("first", "second"):
                    seconds, cpu = start(given, until, str(Path(folder) / "cache"))
                    print(f"{name:<9} {which:<8} {seconds:>6.1f} {cpu:>6.1f}", flush=True)


if __name__ == "__main__":
    main()
