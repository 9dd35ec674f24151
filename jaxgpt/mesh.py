"""One mesh, `data x fsdp x tensor`: the sharding of each parameter, by its name, and of each activation."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.convert.errors import InputError
from jaxgpt.params import Rules, match

AXES = ("data", "fsdp", "tensor")

RULES: Rules[P] = (
    (r"tok_emb\.embedding", P("tensor", "fsdp")),
    (r"pos_emb\.embedding", P(None, "fsdp")),
    (r"blocks\.\d+\.attn\.c_attn\.kernel", P("fsdp", None, "tensor", None)),
    (r"blocks\.\d+\.attn\.c_attn\.bias", P(None, "tensor", None)),
    (r"blocks\.\d+\.attn\.[qkv]_proj\.kernel", P("fsdp", "tensor", None)),
    (r"blocks\.\d+\.attn\.[qkv]_proj\.bias", P("tensor", None)),
    (r"blocks\.\d+\.attn\.c_proj\.kernel", P("tensor", None, "fsdp")),
    (r"blocks\.\d+\.mlp\.(gate|fc1)\.kernel", P("fsdp", "tensor")),
    (r"blocks\.\d+\.mlp\.(gate|fc1)\.bias", P("tensor")),
    (r"blocks\.\d+\.mlp\.fc2\.kernel", P("tensor", "fsdp")),
    (r"lm_head\.kernel", P("fsdp", "tensor")),
    (r"lm_head\.bias", P("tensor")),
    (r".*\.(bias|scale|new|lora_[abm])", P()),
)
"""Matrices are split over `fsdp` along the width D; heads, the MLP's hidden layer and the vocabulary over `tensor`."""

WHOLE_VOCABULARY: Rules[P] = (
    (r"tok_emb\.embedding", P(None, "fsdp")),
    (r"lm_head\.kernel", P("fsdp", None)),
    (r"lm_head\.bias", P()),
    *RULES,
)
"""The same rules for a vocabulary that `tensor` does not divide, until it is padded."""

SHARED_HEADS = re.compile(r".*\.attn\.[kv]_proj\.(kernel|bias)")
"""Names of the layers of heads that are for several heads of queries each. Where `tensor` does not divide their number,
each of its devices has all of them."""

NARROW = 256
"""Below this width D a CPU computes in float32: with AMX a step in bfloat16 takes 0.7 of its time at 256, 0.9 at 64."""

ROWS = ("data", "fsdp")
"""The axes over which the rows of a batch are split."""


def make_mesh(text: str | None = None, *, devices: Sequence[Any] | None = None, width: int | None = None) -> Mesh:
    """Make the mesh that `"data=2,fsdp=4"` describes, over all devices of all processes.

    Args:
        devices: other devices, such as those of a topology that this machine does not have.
        width: D of the model. Without a text, `fsdp` gets as many devices as divide D and leave each at least 32 of
            it, and `data` the rest: for thinner slices XLA uses all-reduces, of twice the bytes.

    Raises:
        InputError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(AXES, 1)
    if text is None:
        n = sizes["fsdp"] = len(devices)
        if width is not None:
            sizes["fsdp"] = max(size for size in range(1, max(1, width // 32) + 1) if n % size == width % size == 0)
        sizes["data"] = len(devices) // sizes["fsdp"]
    else:
        for part in text.split(","):
            found = re.fullmatch(r"(data|fsdp|tensor)=([1-9]\d{0,5})", part.strip())
            if not found:
                raise InputError(f"mesh {text!r}: {part!r} is not AXIS=SIZE, with AXIS one of {', '.join(AXES)}")
            if text.count(f"{found[1]}=") > 1:
                raise InputError(f"mesh {text!r}: {found[1]} is given twice")
            sizes[found[1]] = int(found[2])
    if math.prod(sizes.values()) != len(devices):
        raise InputError(f"mesh {text!r} needs {math.prod(sizes.values())} devices, but there are {len(devices)}")
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(params: Mapping[str, Any], mesh: Mesh, rules: Rules[P] = RULES) -> dict[str, NamedSharding]:
    """Return the sharding of each parameter, by name.

    Raises:
        InputError: a parameter that no rule covers, a rule that has a mesh axis twice or more axes than the parameter,
            or a parameter that can't be divided evenly.
    """
    specs = match(rules, params)
    for name, spec in specs.items():
        if SHARED_HEADS.fullmatch(name) and params[name].shape[-2] % mesh.shape["tensor"]:
            spec = specs[name] = P(*(None if axis == "tensor" else axis for axis in spec))
        shape, axes = params[name].shape, [axis for axis in spec if axis is not None]
        if len(axes) > len(set(axes)) or len(spec) > len(shape):
            raise InputError(
                f"{name} {tuple(shape)}: invalid sharding {spec}: it names a mesh axis twice, or has more "
                "entries than the array has axes"
            )
        for size, axis in zip(shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{name} {tuple(shape)} can't be divided by the mesh's {axis}={mesh.shape[axis]}; "
                    "put more devices on `data`, which splits only the batch"
                )
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch `(B, T)`: its rows are split over `data` and `fsdp`."""
    return NamedSharding(mesh, P(ROWS))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def divides(*arrays: Any) -> bool:
    """Return whether each device has whole rows and heads of arrays `(B, T, N, H)`.

    The mesh is the one that is set, and must have our axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows, heads = (batch_shards(mesh), mesh.shape["tensor"]) if mesh.axis_names == AXES else (0, 0)
    return bool(rows) and not any(x.shape[0] % rows or x.shape[2] % heads for x in arrays)


def on_own_heads(attention: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Run a kernel of attention on each device's own rows and heads, where `divides` holds.

    Args:
        arrays: q, k, v `(B, T, N, H)` and, if rows hold several texts, their segments `(B, T)`.
    """
    heads = P(ROWS, None, "tensor", None)
    specs = (heads, heads, heads, P(ROWS, None))[: len(arrays)]
    return jax.shard_map(attention, in_specs=specs, out_specs=heads, check_vma=False)(*arrays)


def constrain(x: jax.Array, *spec: str | None, rows: str | tuple[str, ...] | None = ROWS) -> jax.Array:
    """Shard an array over the mesh that is set (`with jax.set_mesh(mesh): ...`) while this is traced.

    The first axis is B and is split over `rows`, the others as the spec says. The parameters' shardings alone don't
    decide it: in a product of two matrices that are both split over `fsdp`, XLA may gather either. Without a mesh
    nothing happens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or mesh.axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, P(rows, *spec))


def exchange_columns(x: jax.Array) -> jax.Array:
    """Exchange the columns of an array `(B, T, D)` that is split over `fsdp` for its rows there."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or mesh.axis_names != AXES or x.shape[0] % batch_shards(mesh):
        return constrain(x)
    # by hand: XLA would first replicate the array where `data` splits it too
    swap = partial(jax.lax.all_to_all, axis_name="fsdp", split_axis=0, concat_axis=2, tiled=True)
    return jax.shard_map(swap, in_specs=P("data", None, "fsdp"), out_specs=P(ROWS), check_vma=False)(x)


def replicated(value: Any, mesh: Mesh) -> jax.Array:
    """Return a number that is the same in all processes, on every device."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, P()), lambda _: value)


def to_host(array: jax.Array) -> np.ndarray:
    """Return a copy of a whole array, in every process; the array may be donated then."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.array(array)


def usual_dtype(device: Any, width: int) -> Literal["float32", "bfloat16"]:
    """Return the format in which products are computed on such a device unless told otherwise: bfloat16 if it is fast.

    That is on TPUs, on NVIDIA's GPUs from Ampere on, on AMD's that JAX knows, and on CPUs with AMX.

    Args:
        width: D of the model. On a CPU, narrow ones gain little.
    """
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "cpu":
        return "bfloat16" if width >= NARROW and has_amx() else "float32"
    if device.platform not in ("gpu", "cuda", "rocm"):
        return "float32"
    found = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return "bfloat16" if found is None or int(found[1]) >= 8 else "float32"


def has_amx(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Return whether this machine's CPU has matrix instructions for bfloat16, as far as Linux says so."""
    try:
        return "amx_bf16" in Path(cpuinfo).read_text(errors="replace").split()
    except OSError:
        return False


def platform() -> str:
    """Return `cpu`, `gpu` or `tpu`: the device that the traced program is for, which this machine may not have."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def is_for_one_cpu() -> bool:
    """Return whether the traced program is for a single CPU, whose XLA backend some layers are written for."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
