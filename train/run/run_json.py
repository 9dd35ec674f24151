"""run.json: what a run is, as dataclasses, with one writer and one reader that does not trust the file."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from jaxgpt.convert.disk import write_json
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import field as field_of
from jaxgpt.convert.json_input import read_json

NAME = "run.json"


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
        f"--resume: this would be another run than {run} holds: {'; '.join(changes)}. Undo that, or go on nevertheless "
        f"with --out={shlex.quote(str(run))} --resume-anyway"
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
    failure: dict[str, Any] = field(default_factory=dict)
    """Where training broke off, if it did: `step`, and `what` was not finite."""

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
            return cls._of(read_json(path))
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{path} can't be read as the run.json of a run ({reason})") from None

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Self:
        settings = field_of(found, "settings", dict)
        phases = tuple(
            PhaseInfo(
                field_of(phase, "start", int),
                field_of(phase, "name", str),
                field_of(phase, "trainable", int),
                {module: field_of(phase["trains"], module, float) for module in field_of(phase, "trains", dict)},
            )
            for phase in field_of(found, "phases", list, [])
        )
        parameters = _or_empty(found, "parameters", dict)
        steps = found.get("steps", settings.get("steps"))
        stored = field_of({"data": found.get("data") or {}}, "data", dict)
        data = {item.name: _data_field(stored, item.name, item.default) for item in fields(DataInfo)}
        return cls(
            settings=settings,
            command=field_of(found, "command", str, cls.command),
            resolved=_or_empty(found, "resolved", dict),
            steps=field_of({"steps": steps if type(steps) is int else 0}, "steps", int),
            data=DataInfo(**{name: value for name, value in data.items() if name in stored}),
            parameters={name: field_of(parameters, name, int) for name in parameters},
            phases=phases,
            sanity=field_of(found, "sanity", str, cls.sanity),
            changed=[change for change in _or_empty(found, "changed", list) if isinstance(change, dict)],
            machine=_or_empty(found, "machine", dict),
            failure=_or_empty(found, "failure", dict),
        )


def _or_empty(found: dict[str, Any], name: str, kind: Any) -> Any:
    """Return a field, or nothing of its type where it has another, as in runs of old versions."""
    return found[name] if isinstance(found.get(name), kind) else kind()


def _data_field(stored: dict[str, Any], name: str, default: Any) -> Any:
    if name == "notes":
        return [str(note) for note in field_of(stored, name, list, [])]
    if stored.get(name) is None:
        return default
    return field_of(stored, name, int if isinstance(default, int) else str)
