"""Rotary positions in a `config.json`, in the fields of today's transformers or in those of older releases."""

import reprlib
from typing import Any

from jaxgpt.convert.config import GPTConfig, RopeScaling
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.family import Fields

NAMES = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Fields about rotary positions."""

THETA = 10000.0
"""The default of transformers."""

LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_positions",
}
"""Their names and ours of what the kind `llama3` says."""


def read_rotary(fields: Fields, theta: str = "rope_theta", share: str = "partial_rotary_factor") -> dict[str, Any]:
    """Return our fields about rotary positions.

    Args:
        theta: the name of the field of the base, where it has one of its own.
        share: the same for the share of a head that is rotated.

    Raises:
        InputError: the frequencies are changed in a way that we do not compute.
    """
    said = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(said, dict):
        raise InputError(f"config.json: rope_parameters must be an object, not {reprlib.repr(said)}")
    kinds = [said[name] for name in ("rope_type", "type") if said.get(name) is not None] or ["default"]
    kind = kinds[0]
    if kind not in ("default", "llama3") or any(other != kind for other in kinds):
        named = " and ".join(map(reprlib.repr, kinds))
        raise InputError(
            f"config.json: rotary positions of the kind {named} are not supported, only default or llama3: if the "
            "model works without such scaling in the context that you need, set rope_scaling to null"
        )
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *(LLAMA3 if kind == "llama3" else ())}
    if unknown := [name for name, value in said.items() if name not in known and value is not None]:
        raise InputError(f"config.json: rope_parameters: {unknown[0][:100]!r} is not supported")
    found: dict[str, Any] = {"rope_theta": _first(said.get("rope_theta"), fields.get(theta), THETA)}
    found["share"] = _first(said.get("partial_rotary_factor"), fields.get(share))
    if kind == "llama3":
        context = "original_max_position_embeddings"  # transformers takes it from beside them first
        numbers = said | {context: _first(fields.get(context), said.get(context), fields["max_position_embeddings"])}
        if absent := [name for name in LLAMA3 if numbers.get(name) is None]:
            raise InputError(f"config.json: rope_parameters of the kind llama3 lack {absent[0]}")
        found["rope_scaling"] = RopeScaling(**{ours: numbers[name] for name, ours in LLAMA3.items()})
    return found


def whole_heads(found: dict[str, Any]) -> dict[str, Any]:
    """Return the same for a family that rotates whole heads.

    Raises:
        InputError: only a share of each is to be rotated, which transformers ignores for such a family.
    """
    if found.pop("share") not in (None, 1, 1.0):
        raise InputError("config.json: partial_rotary_factor is not supported for this family, only 1.0")
    return found


def write_rotary(config: GPTConfig) -> dict[str, Any]:
    """Return the fields about rotary positions as older releases of transformers read them too."""
    said = config.rope_scaling
    scaling = None
    if said is not None:
        scaling = {"rope_type": "llama3"} | {name: getattr(said, ours) for name, ours in LLAMA3.items()}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
