"""Results of checks: a verdict each, and all of them as a table for people or as JSON for programs."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxgpt.convert.command_line.console import table, wrapped
from jaxgpt.convert.errors import escaped
from jaxgpt.sanity.parity import Parity

WORDS = {True: "ok", False: "FAILED", None: "not judged"}


@dataclass(frozen=True)
class Check:
    """One check of a model: what was measured, and what was expected."""

    name: str
    ok: bool | None
    """None: it could not be done, and is no failure."""
    measured: str
    expected: str
    detail: str = ""
    """Usual cause of a failure."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The measured numbers by name; losses and entropies in nats."""


@dataclass(frozen=True)
class Report:
    """All checks of a model."""

    model: str
    checks: tuple[Check, ...]
    text: str | None = None
    """Text that the model wrote, with its prompt; None where that was skipped."""
    parity: Parity | None = None
    """The comparison with PyTorch; None without a reference."""

    @property
    def ok(self) -> bool:
        """True if nothing failed; what could not be judged is no failure."""
        return all(check.ok is not False for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return dicts, lists, text and finite numbers for JSON; a number that is not finite is null."""
        parity = None if self.parity is None else self.parity.as_json()
        checks = [asdict(check) for check in self.checks]
        return finite({"model": self.model, "ok": self.ok, "checks": checks, "text": self.text, "parity": parity})

    def __str__(self) -> str:
        return self.rendered()

    def rendered(self, width: int | None = None) -> str:
        """Return all that was found, wrapped to a width."""
        rows = [("check", "verdict", "measured", "expected")]
        rows += [(check.name, WORDS[check.ok], check.measured, check.expected) for check in self.checks]
        parts = [table(rows, width)]
        parts += [wrapped(escaped(f"{check.name}: {check.detail}"), width) for check in self.checks if check.detail]
        if self.text is not None:
            parts += ["the model wrote:\n" + textwrap.indent(wrapped(self.text, width and width - 4), "    ")]
        if self.parity is not None:
            parts += [self.parity.table()]
        failed = [check.name for check in self.checks if check.ok is False]
        open_ = [check.name for check in self.checks if check.ok is None]
        end = f"FAILED: {', '.join(failed)}" if failed else "fine"
        end += f" (not judged: {', '.join(open_)})" if open_ else ""
        return "\n\n".join([*parts, f"{escaped(self.model)}: {end}"])


def finite(tree: Any) -> Any:
    """Return the same with None for each infinity and NaN, which JSON does not have, and lists for tuples."""
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
