"""One mesh, `data x fsdp x tensor`, and where each parameter lies on it, decided by its name."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from convert.errors import InputError
from jaxgpt.params import Rules, match

AXES = ("data", "fsdp", "tensor")

RULES: Rules[P] = (
    (r"(tok|pos)_emb\.embedding", P(None, "fsdp")),
    (r"blocks\.\d+\.attn\.c_attn\.kernel", P("fsdp", None, "tensor", None)),
    (r"blocks\.\d+\.attn\.c_attn\.bias", P(None, "tensor", None)),
    (r"blocks\.\d+\.attn\.c_proj\.kernel", P("tensor", None, "fsdp")),
    (r"blocks\.\d+\.mlp\.fc1\.kernel", P("fsdp", "tensor")),
    (r"blocks\.\d+\.mlp\.fc1\.bias", P("tensor")),
    (r"blocks\.\d+\.mlp\.fc2\.kernel", P("tensor", "fsdp")),
    (r"lm_head\.kernel", P("fsdp", None)),
    (r".*\.(bias|scale)", P()),
)
"""Matrices are split over `fsdp` along the width D, and heads and the MLP's hidden layer over `tensor`."""


def make_mesh(text: str | None = None) -> Mesh:
    """The mesh that `"data=2,fsdp=4"` describes over all local devices; None puts them all on `fsdp`.

    Raises:
        InputError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.local_devices()
    sizes = dict.fromkeys(AXES, 1)
    if text is None:
        sizes["fsdp"] = len(devices)
    else:
        for part in text.split(","):
            found = re.fullmatch(r"(data|fsdp|tensor)=([1-9]\d{0,5})", part.strip())
            if not found:
                raise InputError(f"--mesh: {part!r} is not AXIS=SIZE, with AXIS one of {', '.join(AXES)}")
            sizes[found[1]] = int(found[2])
    if math.prod(sizes.values()) != len(devices):
        raise InputError(f"--mesh: {text} makes {math.prod(sizes.values())} devices, but there are {len(devices)}")
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def shardings(params: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Where each parameter lies, by name.

    Raises:
        InputError: a parameter's axis can't be divided evenly over the mesh's.
    """
    specs = match(RULES, params)
    for name, spec in specs.items():
        for size, axis in zip(params[name].shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"--mesh: {name} {tuple(params[name].shape)} can't be divided by {axis}={mesh.shape[axis]}; "
                    "put more devices on `data`, which splits only the batch"
                )
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch `(B, T)` lies: its rows over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
