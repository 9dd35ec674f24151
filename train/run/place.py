"""The place of a folder: a folder that is renamed, replaced or removed while a program writes there is noticed."""

import errno
import os
from pathlib import Path


class FolderGone(OSError):
    """The folder is not where it was."""


class FolderRenamed(FolderGone):
    """The folder has another name, which is known, and holds what it held."""


class Place:
    """The folder that was there when it was remembered, whatever its name is now."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._descriptor: int | None = None

    def remember(self) -> None:
        """Take the folder that is there now for the right one."""
        self.forget()
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def forget(self) -> None:
        """Let go of the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def check(self) -> None:
        """Compare the folder with the one that was remembered, if one was.

        Raises:
            FolderGone: it is not there any more, or another one is.
        """
        if self._descriptor is None:
            return
        kept = os.fstat(self._descriptor)
        try:
            if os.path.samestat(kept, self._folder.stat()):
                return
        except FileNotFoundError as error:
            if kept.st_nlink == 0:
                raise FolderGone(error.errno, error.strerror, error.filename) from None
        gone, fate = self._fate()
        raise gone(errno.ESTALE, f"this folder was {fate} while the run was using it", str(self._folder))

    def _fate(self) -> tuple[type[FolderGone], str]:
        """Return what became of the folder, as far as the system tells: Linux knows its new name."""
        try:
            now = os.readlink(f"/proc/self/fd/{self._descriptor}")
        except OSError:
            return FolderGone, "renamed or replaced"
        return (FolderGone, "replaced") if now.endswith(" (deleted)") else (FolderRenamed, f"renamed to {now}")
