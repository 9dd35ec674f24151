"""What the chips send each other in a step, read from the text of a compiled program.

XLA writes a collective in several ways. One that computation hides begins with `-start` and ends with `-done`, or on a
TPU appears in each of the fusions that it is spread over, under one `channel_id`. A reduce-scatter is on some TPUs an
all-reduce in a computation called `all-reduce-scatter`; and where it is spread over the product that it sums, it is a
ring of collective-permutes.
"""

import math
import re
from dataclasses import dataclass

from jaxgpt.train.compile_only.hlo import HloModule, Instruction, elements, size_in_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Traffic:
    """Of one kind of collective, in one step."""

    n_runs: int
    bytes_sent: int
    """That each chip sends, where pieces are passed on in a ring: of n chips, (n - 1)/n of what is gathered, scattered
    or exchanged, and twice that of what is reduced for all."""


def collectives(program: HloModule, n_devices: int) -> dict[str, Traffic]:
    """What each kind of collective sends in a run of a program.

    Args:
        n_devices: of the program: the size of a group that is not spelled out.
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
    """Bytes that each chip sends."""
    n, starts = group_size(instruction.rest, n_devices), instruction.operation != kind
    # a start's type holds what goes in, what comes out, and more; only an all-reduce's is what comes out
    parts = elements(instruction.shape)[:2] if starts and kind != "all-reduce" else [instruction.shape]
    whole = max(map(size_in_bytes, parts))
    if kind == "collective-permute":
        return whole
    if kind == "reduce-scatter" and not starts:
        whole *= n
    return whole * (n - 1) // n * (2 if kind == "all-reduce" else 1)


def group_size(rest: str, n_devices: int) -> int:
    """How many chips take part in a collective together, by its attributes.

    They are listed, `{{0,1},{2,3}}`; or counted, `[2,2]<=[4]`; or named by axes of a mesh, `mesh['x'=2,'y'=4] {'y'}`,
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
