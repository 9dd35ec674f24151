"""Record commands as an animated picture of a terminal: examples/demo.svg.

python tools/record.py examples/demo.svg 'jaxgpt train --freeze=first6' 'jaxgpt generate runs/demo --prompt=The'
"""

import argparse
import html
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = 92
SIZE, LEADING, MARGIN = 13, 18, 16
"""Size of the letters, distance of lines, and margin, in pixels."""
LETTER = 7.83
"""Width of a letter of that size."""
LONGEST = 1.2
"""Seconds of the animation between two lines, at most; what took longer is shortened."""


def main() -> None:
    """Run the commands, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument(
        "--lines",
        type=int,
        default=30,
        help="lines of each command that are shown, the first and the last (default: 30)",
    )
    given = parser.parse_args()
    lines: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for command in given.commands:
            print(f"$ {command}", flush=True)
            said = record(command, Path(folder))
            lines += [(LONGEST, f"$ {command}"), *shortened(said, given.lines), (0.1, "")]
    given.out.write_text(picture(lines[:-1]), "utf-8")


def record(command: str, folder: Path) -> list[tuple[float, str]]:
    """Run a command in a terminal, and return its lines with the seconds that each came after the one before."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "dumb"}
    ours, theirs = pty.openpty()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command, shell=True, cwd=folder, env=environment | {"PATH": path}, stdout=theirs, stderr=subprocess.DEVNULL
    )
    os.close(theirs)
    found, rest, before = [], b"", time.monotonic()
    while True:
        try:
            ready, _, _ = select.select([ours], [], [], 0.05)
            new = os.read(ours, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        rest += new
        *whole, rest = rest.split(b"\n")
        for line in whole:
            now = time.monotonic()
            found.append((now - before, plain(line.decode("utf-8", "replace"))))
            before = now
        if process.poll() is not None and not ready:
            break
    if process.wait():
        raise SystemExit(f"{command}: exit code {process.returncode}")
    return [*found, (0.1, plain(rest.decode("utf-8", "replace")))] if rest else found


def plain(line: str) -> str:
    """Return a line as it stands at last, without what steers a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).rstrip("\r").rpartition("\r")[2].rstrip()


def shortened(lines: list[tuple[float, str]], most: int) -> list[tuple[float, str]]:
    """Return the first and the last lines, where there are too many, and no empty ones beside each other."""
    kept = [(wait, text) for i, (wait, text) in enumerate(lines) if text or (i and lines[i - 1][1])]
    head = most // 2
    return kept if len(kept) <= most else [*kept[:head], (0.3, "…"), *kept[head + 1 - most :]]


def picture(lines: list[tuple[float, str]]) -> str:
    """Return the animation as SVG; who wants less motion sees all lines at once, as does a printer."""
    width, height = round(COLUMNS * LETTER + 2 * MARGIN), len(lines) * LEADING + 2 * MARGIN
    shown, at = [], 0.0
    for row, (wait, text) in enumerate(lines):
        at += min(wait, LONGEST)
        kind = "command" if text.startswith("$ ") else "line"
        y = MARGIN + (row + 0.75) * LEADING
        shown.append(
            f'<text class="{kind}" x="{MARGIN}" y="{y:g}" style="animation-delay:{at:.1f}s">{html.escape(text)}</text>'
        )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"
  aria-label="A terminal with the output of jaxgpt">
<style>
text {{ font: {SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #d6deeb; white-space: pre; }}
.command {{ fill: #7fdbca; font-weight: bold; }}
@media (prefers-reduced-motion: no-preference) {{
  text {{ opacity: 0; animation: appear 0.1s forwards; }}
  @keyframes appear {{ to {{ opacity: 1; }} }}
}}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#1b2330"/>
{chr(10).join(shown)}
</svg>
"""


if __name__ == "__main__":
    main()
