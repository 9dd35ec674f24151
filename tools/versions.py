"""Test with the lowest versions that pyproject.toml allows, or with the newest there are.

pip install uv && python tools/versions.py lowest
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = (
    "tests/test_parity.py", "tests/test_convert.py", "tests/test_freeze.py", "tests/test_train.py",
    "tests/test_generate.py", "tests/test_lora.py", "tests/test_from_python.py", "tests/test_complete.py",
    "tests/test_tokenizer.py", "tests/test_report.py",
)  # fmt: skip
"""Tests that between them use every dependency that is not an extra."""

TOOLS = ("pytest", "pytest-xdist", "safetensors", "peft", "accelerate")
"""What these tests need besides PyTorch."""


def main() -> None:
    """Install into a new environment, and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("lowest", "newest"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python, versions = Path(folder) / "venv" / "bin" / "python", Path(folder) / "versions.txt"
        uv("venv", "--quiet", "--python", sys.executable, python.parent.parent)
        resolution = "lowest-direct" if given.which == "lowest" else "highest"
        uv("pip", "compile", "--quiet", "--resolution", resolution, "--only-binary", ":all:", "pyproject.toml",
           "--output-file", versions)  # fmt: skip
        uv("pip", "install", "--python", python, "--requirement", versions)
        uv("pip", "install", "--python", python, *TOOLS, pinned("torch"), "--constraint", versions)
        uv("pip", "install", "--python", python, "--no-deps", "--editable", ".")
        subprocess.run(
            [python, "-m", "pytest", *TESTS], cwd=ROOT, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        )


def uv(*arguments: str | Path) -> None:
    """Run uv, which chooses versions."""
    subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=ROOT, check=True)


def pinned(name: str) -> str:
    """Return the line of tests/constraints.txt about a package."""
    lines = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


if __name__ == "__main__":
    main()
