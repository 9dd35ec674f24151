"""The base of a run: the model that it began as, in which its checkpoints leave the parameters that never trained."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import field as field_of
from jaxgpt.convert.layout import LazyArray
from jaxgpt.convert.source import BUNDLED, HUB_NAME, run_of

TOLD: dict[str, Any] = {"dialect": str, "n_head": int, "activation": str, "drop_heads": bool, "averaged": bool}
"""Arguments of `convert.read` that say how a model is read, and their types."""


@dataclass(frozen=True)
class Base:
    """Where some parameters of a checkpoint are that it does not hold itself.

    A checkpoint comes from a stranger, and so does this name of a place. It is opened as a checkpoint, which executes
    nothing, and no number is taken from it but where its digest is the one here, so that whoever wrote the digest knew
    the numbers.
    """

    model: str
    """An absolute path, the name of a bundled model, or a name of the hub with its revision."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """How it is read: some arguments of `convert.read`."""
    beside: str = ""
    """The path as seen from the run's folder, so that both can be moved together."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By name, the SHA-256 of each parameter that is there: of its dtype, shape and numbers, in our layout."""

    @classmethod
    def of(cls, path: Path, told: Mapping[str, Any], run: Path) -> Self:
        """Describe where a model is that was found at a path.

        Args:
            told: arguments of `convert.read`; others than `TOLD` are left out.
            run: the folder of the run whose base it is.
        """
        told = {name: told[name] for name in TOLD if told.get(name) is not None}
        if os.path.isfile(dialect := str(told.get("dialect", ""))):
            told["dialect"] = os.path.abspath(dialect)
        for name, bundled in BUNDLED.items():
            if path == bundled:
                return cls(name, told)
        repository = path.parent.parent.name.split("--")
        if path.parent.name == "snapshots" and repository[0] == "models":  # as the cache of the hub names its folders
            return cls(f"{'/'.join(repository[1:])}@{path.name}", told)
        whole = os.path.abspath(path)
        return cls(whole, told, os.path.relpath(whole, os.path.abspath(run)))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read what `as_json` made, by hands that are not trusted.

        Raises:
            InputError: it is something else.
        """
        told = field_of(found, "told", dict)
        told = {name: field_of(told, name, kind) for name, kind in TOLD.items() if told.get(name) is not None}
        digests = field_of(found, "digests", dict)
        base = cls(
            field_of(found, "model", str), told, field_of(found, "beside", str),
            {name: field_of(digests, name, str) for name in digests},
        )  # fmt: skip
        if not (base.model in BUNDLED or os.path.isabs(base.model) or HUB_NAME.fullmatch(base.model)):
            raise InputError(f"the model {base.model[:100]!r} is neither an absolute path nor a hub name such as gpt2")
        return base

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"model": self.model, "told": dict(self.told), "beside": self.beside, "digests": dict(self.digests)}

    def place(self, checkpoint: Path) -> str:
        """Return where the model is: at `base` in the run's folder, or else where it was, or was beside the run."""
        run = run_of(checkpoint)
        if run is not None and (run / "base").exists():
            return str(run / "base")
        if os.path.isabs(self.model) and not os.path.exists(self.model) and run is not None and self.beside:
            moved = os.path.normpath(run.absolute() / self.beside)
            return moved if os.path.exists(moved) else self.model
        return self.model

    def checked(self, name: str, array: Any, place: str) -> LazyArray:
        """Return a parameter in float32, as runs have it, which is refused when it is read if it has changed."""

        def read() -> np.ndarray:
            found = np.asarray(array)
            if digest(found) != self.digests[name]:
                raise InputError(changed(place, name))
            return found.astype(np.float32, copy=False)

        return LazyArray(tuple(array.shape), np.dtype(np.float32), read)


def changed(place: str, name: str) -> str:
    """Return what is said of a base that is not what it was."""
    return (
        f"{place} has changed since the run began: {name} has other numbers, and the run's checkpoints need the old "
        "ones, as they hold only what trained; put back the model that was there, or copy it to RUN/base"
    )


def digest(array: Any) -> str:
    """Return the SHA-256 of an array: of its dtype, its shape and its numbers in row-major order."""
    found = np.asarray(array)
    said = hashlib.sha256(f"{found.dtype.name} {found.shape} ".encode())
    said.update(np.ascontiguousarray(found).reshape(-1).view(np.uint8).data)
    return said.hexdigest()
