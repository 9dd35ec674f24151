"""Build the wheel and the source distribution, install each by itself, and try it away from the repository.

python tools/try_package.py --out dist
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

RUN = ("--steps=4", "--batch-size=4", "--context=64", "--eval-every=2")
"""Flags of a short run."""


def main() -> None:
    """Build, install and try; an error of any command ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where the two files go (default: dist)")
    parser.add_argument("--constraint", type=Path, default=ROOT / "tests" / "constraints.txt", help="versions")
    given = parser.parse_args()
    out = given.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        build = make_environment(Path(folder) / "build")
        call(build, "-m", "pip", "install", "--quiet", "build", cwd=ROOT)
        call(build, "-m", "build", "--outdir", str(out), cwd=ROOT)
    for package in sorted([*out.glob("*.whl"), *out.glob("*.tar.gz")]):
        with tempfile.TemporaryDirectory() as folder:
            python = make_environment(Path(folder) / "environment")
            call(
                python, "-m", "pip", "install", "--quiet", str(package), "--constraint", str(given.constraint), cwd=out
            )
            try_it(python, Path(folder))
        print(f"{package.name}: installed by itself, and works", flush=True)


def make_environment(folder: Path) -> Path:
    """Make a virtual environment, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def try_it(python: Path, folder: Path) -> None:
    """Run the demo in short, resume it, export it, and the first notebook's code, in an empty folder."""
    work = folder / "work"
    work.mkdir()
    (work / "train.py").write_text("raise SystemExit('the train.py of a user was run')\n")  # it must not be in the way
    commands = [
        "--version", f"train --freeze=first6 {' '.join(RUN)}", "train --resume runs/demo",
        "generate runs/demo --prompt=The --max-new-tokens=8", "check tiny", "convert runs/demo out --to=hf",
    ]  # fmt: skip
    for command in commands:
        subprocess.run([python.parent / "jaxgpt", *shlex.split(command)], cwd=work, check=True)
    book = json.loads((ROOT / "examples" / "own_loop.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    call(python, "-c", "\n".join(cells).replace("STEPS = 30", "STEPS = 6"), cwd=work)


def call(python: Path, *arguments: str, cwd: Path) -> None:
    """Run this Python with arguments."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, *arguments], cwd=cwd, check=True, env=environment)


if __name__ == "__main__":
    main()
