"""Bytes that the chips send each other in a step, read from the text of a compiled program.

XLA writes a collective in several ways. An asynchronous one begins with `-start` and ends with `-done`; on a TPU it may
appear in several fusions under one `channel_id`. On some TPUs a reduce-scatter is an all-reduce in a computation called
`all-reduce-scatter`, or a ring of collective-permutes where it is fused with the product that it sums.
"""

import math
import re
from dataclasses import dataclass

from jaxgpt.training.compile_only.hlo import HloModule, Instruction, elements, size_in_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in one step."""

    n_runs: int
    bytes_sent: int
    """Bytes that each chip sends with a ring algorithm: for n chips, (n - 1)/n of the gathered, scattered or exchanged
    array, and twice that for an all-reduce."""


def collectives(program: HloModule, n_devices: int) -> dict[str, Traffic]:
    """Count the collectives in one run of a program and the bytes that they send, by kind.

    Args:
        n_devices: devices of the program, which is the size of a group that is not listed.
    """
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for name, times in program.runs().items():
        for instruction in program.computations[name]:
            if (kind := instruction.operation.removesuffix("-start")) in KINDS:
                sent = _sent(instruction, kind, n_devices)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind, sent = "reduce-scatter", sent // 2
                channel = re.search(r"\bchannel_id=(\d+)", instruction.rest)
                key = kind, channel[1] if channel else f"{name}/{instruction.name}"
                found[key] = max(found.get(key, (0, 0)), (times, times * sent))
    totals = {}
    for kind in KINDS:
        of_kind = [item for (its_kind, _), item in found.items() if its_kind == kind]
        totals[kind] = Traffic(sum(count for count, _ in of_kind), sum(sent for _, sent in of_kind))
    return totals


def _sent(instruction: Instruction, kind: str, n_devices: int) -> int:
    """Return the bytes that each chip sends."""
    n = group_size(instruction.rest, n_devices)
    is_start = instruction.operation != kind
    # the type of a `-start` holds operand, result and more; only an all-reduce's is the result alone
    parts = elements(instruction.shape)[:2] if is_start and kind != "all-reduce" else [instruction.shape]
    whole = max(map(size_in_bytes, parts))
    if kind == "collective-permute":
        return whole
    if kind == "reduce-scatter" and not is_start:
        whole *= n
    return whole * (n - 1) // n * (2 if kind == "all-reduce" else 1)


def group_size(rest: str, n_devices: int) -> int:
    """Return the number of chips in each group of a collective, from its attributes.

    Groups are listed, `{{0,1},{2,3}}`; or counted, `[2,2]<=[4]`; or named by axes of a mesh, `mesh['x'=2,'y'=4] {'y'}`,
    in which `'y':(1)2` is a part of an axis.
    """
    groups = rest.partition("replica_groups=")[2]
    if listed := re.match(r"\{\{([\d,]+)\}", groups):
        return len(listed[1].split(","))
    if counted := re.match(r"\[\d+,(\d+)\]", groups):
        return int(counted[1])
    if named := re.match(r"@?mesh\w*\[([^\]]*)\] ?\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        over = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in over)
    return n_devices
