"""Bounds of time and memory: a test that is marked `bounded` fails if a refusal in this process takes more.

Processes that a test starts are not measured: `forked.run` waits for them only so long.
"""

import contextlib
import faulthandler
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROC = Path("/proc/self")
ROOM = 4 * 2**30
"""Bytes of address space that a test may add: more is a MemoryError, before the machine swaps."""

HANGS_AFTER = 120.0
"""Seconds after which a test is taken for hung, and its process ends with the stacks of its threads."""


@contextlib.contextmanager
def bounded(megabytes: float = 300, seconds: float = 5, stderr: int | None = None) -> Iterator[None]:
    """Fail if what is done within takes more memory or computes longer.

    What is promised is 300 MB, and 2 s on a machine that does nothing else. Here neighbours slow each other down,
    also in seconds of the CPU, and coverage may be traced: the bound is looser, for what takes hours or gigabytes.
    Where there is no /proc, memory is not measured.

    Args:
        megabytes: how far the peak of memory may be above what the process had before.
        seconds: of the CPU, in all threads of this process.
        stderr: where the stacks of a process that hangs go, if not to standard error.
    """
    before, limits = _reset_peak(), resource.getrlimit(resource.RLIMIT_AS)
    if before is not None:
        resource.setrlimit(resource.RLIMIT_AS, (_within(_status("VmSize") + ROOM, limits[1]), limits[1]))
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, **({} if stderr is None else {"file": stderr}))
    began = time.process_time()
    try:
        yield
    finally:
        took = time.process_time() - began
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    if took > seconds:
        pytest.fail(f"took {took:.1f} s of the CPU, and {seconds} are allowed")
    if before is not None and (peak := (_status("VmHWM") - before) / 1e6) > megabytes:
        pytest.fail(f"took {peak:.0f} MB of memory, and {megabytes} are allowed")


def _reset_peak() -> int | None:
    """Let the peak of memory begin anew, and return the bytes that are in use; None where the system can't."""
    try:
        (PROC / "clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name: str) -> int:
    """Return a number of bytes from /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", (PROC / "status").read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


def _within(n_bytes: int, hard: int) -> int:
    return n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
