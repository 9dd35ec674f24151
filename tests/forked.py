"""Processes forked from one that has imported everything: each begins at once, not after seconds of imports."""

import atexit
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parent.parent
TRAINING = ("transformers.AutoTokenizer", "jaxgpt.training.finetune", "jaxgpt.training.__main__")
"""What a training process imports. No backend of JAX is started, so that each process may have its own XLA_FLAGS."""

CONVERSION = ("jaxgpt.convert.__main__",)
CONVERT = "import sys; sys.argv[0] = 'convert'; from jaxgpt.convert.__main__ import main; main()"
"""`python -m convert`."""

RUN = "import sys; sys.argv[0] = 'train'; from jaxgpt.training.__main__ import main; main()"
"""`python -m train`."""


def simulated(devices: int) -> str:
    """Return the XLA_FLAGS of a process that has so many devices; it compiles in parts, as by default."""
    parts = "--xla_cpu_parallel_codegen_split_count=32"
    return f"{os.environ['XLA_FLAGS']} {parts} --xla_force_host_platform_device_count={devices}"


class Forked:
    """A process that executes some Python, with the interface of subprocess.Popen."""

    def __init__(
        self, code: str, *args: object, imports: tuple[str, ...] = TRAINING, stderr: int | None = None,
        samples: bool = True, **env: str,
    ):  # fmt: skip
        """Start it; `stderr=subprocess.STDOUT` merges both streams.

        A run draws no report, and writes texts only with `samples`.
        """
        out, err, (self._status, told) = os.pipe(), os.pipe(), os.pipe()
        request = {"code": code, "argv": ["-c", *map(str, args)], "env": os.environ | env, "cwd": os.getcwd()}
        request["samples"] = samples
        theirs = [out[1], out[1] if stderr == subprocess.STDOUT else err[1], told]
        socket.send_fds(_server(imports), [json.dumps(request).encode()], theirs)
        for descriptor in (out[1], err[1], told):
            os.close(descriptor)
        self.stdout: IO[str] = os.fdopen(out[0], buffering=1)
        self.stderr: IO[str] = os.fdopen(err[0])
        self.returncode: int | None = None
        self.pid = struct.unpack("i", os.read(self._status, 4))[0]
        self._end = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        self.returncode = struct.unpack("i", os.read(self._status, 4))[0]
        os.close(self._status)
        self._end.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        if not self._end.wait(timeout):
            raise subprocess.TimeoutExpired("a forked process", timeout)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Read both streams to their ends; a process that takes longer is killed."""
        timer, errors = threading.Timer(timeout, self.kill), []
        timer.start()
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()))
        reader.start()
        text = self.stdout.read()
        reader.join()
        self.wait(timeout)
        timer.cancel()
        return text, errors[0]

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def without_clock(text: str) -> str:
    """Leave out the lines that say what is under way, as happens on a machine that is slow."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.endswith("…\n"))


def run(code: str, *args: object, **how) -> subprocess.CompletedProcess:
    """Execute some Python in a process of its own, to its end."""
    process = Forked(code, *args, **how)
    out, err = process.communicate()
    return subprocess.CompletedProcess(args, process.wait(), out, err)


@cache
def _server(imports: tuple[str, ...]) -> socket.socket:
    """Start the process that the others are forked from; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = f"import forked; forked.serve({theirs.fileno()}, {imports})"
    path = os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))
    subprocess.Popen(
        [sys.executable, "-uc", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    theirs.close()
    return ours


# in the other process


def serve(descriptor: int, imports: tuple[str, ...]) -> None:
    """Fork a process for each request, and beside it one that waits for its end."""
    import importlib

    for name in imports:
        module, _, attribute = name.rpartition(".")
        if attribute[0].isupper():
            getattr(importlib.import_module(module), attribute)
        else:
            importlib.import_module(name)
    requests = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))  # the test that started this process may be bounded
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _keep(json.loads(message), *descriptors)
        for number in descriptors:
            os.close(number)


def _keep(request: dict, out: int, err: int, told: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (pid := os.fork()) == 0:
        os.close(told)
        _become(request, out, err)
    for number in (0, 1, 2, out, err):
        with contextlib.suppress(OSError):
            os.close(number)
    os.write(told, struct.pack("i", pid))
    os.write(told, struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


def _become(request: dict, out: int, err: int) -> NoReturn:
    """Execute the code as `python -c` would."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as long as the program has not asked for signals
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, max(out, err) + 1)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv, code = request["argv"], 0
    if training := sys.modules.get("jaxgpt.training.finetune"):
        training._write_report = lambda run: None
        if not request["samples"]:
            training.sample = lambda inputs, state: "none"
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)
