"""The lock on a run's folder: one process at a time writes there, and its death gives the lock back."""

import fcntl
import os
import socket
from pathlib import Path

from jaxgpt.convert.errors import InputError

NAME = "run.lock"
"""The file in the run's folder that is locked, and says by whom."""


class RunLock:
    """A lock that the process holds from `take` until it ends, or until `give_back`."""

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock, if the folder is there; once.

        Raises:
            InputError: another process holds it; the message says which.
        """
        while self._descriptor is None and self._path.parent.is_dir():
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise InputError(
                    f"--out: {self._path.parent} is in use by another process ({holder or 'which has just begun'}): "
                    "wait until it ends, or choose another folder"
                ) from None
            except OSError:  # a file system without locks: nothing better can be done than to go on
                os.close(descriptor)
                return
            if self._is_there(descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode("ascii", "replace"), 0
                )
                self._descriptor = descriptor
            else:  # whoever held it has removed the file meanwhile
                os.close(descriptor)

    def give_back(self) -> None:
        """Remove the file, and with it the lock."""
        if self._descriptor is not None:
            if self._is_there(self._descriptor):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat(follow_symlinks=False))
        except FileNotFoundError:
            return False
