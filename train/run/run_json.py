"""run.json: what a run is, as dataclasses, with one writer and one reader that does not trust the file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from jaxgpt.convert.disk import write_json
from jaxgpt.convert.errors import InputError

NAME = "run.json"

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""The errors that reading a damaged file may raise."""


@dataclass(frozen=True)
class PhaseInfo:
    """One phase of a run."""

    start: int
    """Steps that are made when it begins."""
    name: str
    """Its strategy."""
    trainable: int
    """Number of parameters that train."""
    trains: dict[str, float]
    """By module, the fraction of its parameters that train."""


@dataclass(frozen=True)
class DataInfo:
    """The data that a run learns from."""

    source: str = "unknown"
    kind: str = "text"
    """`text` or `chat`."""
    sha256: str | None = None
    """Digest of the contents of --data."""
    held_out_sha256: str | None = None
    """Digest of the held-out contents, where they are not a part of --data."""
    tokenizer: str | None = None
    """Digest of the tokenizer."""
    train: int = 0
    """Tokens to train on."""
    held_out: int = 0
    """Tokens to evaluate on."""
    rows: int = 0
    """Rows to train on."""
    notes: list[str] = field(default_factory=list)
    """Remarks: what was cut or left out, and how full the rows are."""


IDENTITY = {
    "sha256": "the contents of --data differ",
    "held_out_sha256": "the contents of --eval-data differ",
    "tokenizer": "the tokenizer differs",
}
"""Fields of `DataInfo` that make a run what it is, and what is said if they changed."""


def refusal(run: Path, changes: Sequence[str]) -> str:
    """Return why a run is not resumed."""
    return (
        f"--resume: this would be another run than {run} holds: {'; '.join(changes)}. Leave such flags out, or go on "
        "nevertheless with --resume-anyway"
    )


@dataclass(frozen=True)
class RunInfo:
    """All that run.json holds."""

    settings: dict[str, Any]
    """By name, as JSON has them."""
    command: str = "jaxgpt train"
    """The command line that makes the run."""
    resolved: dict[str, Any] = field(default_factory=dict)
    """The values that automatic defaults resolved to, by name."""
    steps: int = 0
    """Length of the run."""
    data: DataInfo = DataInfo()
    parameters: dict[str, int] = field(default_factory=dict)
    """Number of parameters: `all`, and `trainable` in the last phase."""
    phases: tuple[PhaseInfo, ...] = ()
    sanity: str = ""
    """The text before the first step."""
    changed: list[dict[str, Any]] = field(default_factory=list)
    """From which step on the run was another, and in what: see `--resume-anyway`."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Python, platform, devices, processes and packages."""

    def write(self, folder: Path) -> None:
        """Write run.json, whole or not at all."""
        path = folder / NAME
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        write_json(temporary, asdict(self))
        temporary.replace(path)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the run.json of a folder; fields that it lacks have their defaults, and others are ignored.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = folder / NAME
        try:
            found = json.loads(path.read_text("utf-8"))
            settings = dict(found["settings"])
            phases = tuple(
                PhaseInfo(int(p["start"]), str(p["name"]), int(p["trainable"]), {**p["trains"]})
                for p in found.get("phases", ())
            )
            known = {item.name: found[item.name] for item in fields(cls) if item.name in found}
            for name, kind in (("resolved", dict), ("parameters", dict), ("machine", dict), ("changed", list)):
                known[name] = known[name] if isinstance(known.get(name), kind) else kind()
            steps = found.get("steps", settings.get("steps"))
            known["steps"] = steps if isinstance(steps, int) else 0
            stored = dict(found.get("data") or {})
            data = {item.name: stored[item.name] for item in fields(DataInfo) if item.name in stored}
            return cls(**(known | {"settings": settings, "phases": phases, "data": DataInfo(**data)}))
        except UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path} can't be read as the run.json of a run ({reason})") from None
