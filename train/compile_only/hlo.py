"""Parser of XLA's text of a compiled program: its computations, and how often one run executes each."""

import math
import re
from dataclasses import dataclass
from functools import cache

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
"""Bits of the types whose names do not end with that number."""

COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+[0-9]*)(?:e\dm\d\w*)?\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%[^\s,{}]+(?:, )?)+)")
NUMBER = re.compile(r"[su]\d+\[\]")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Instruction:
    """A line such as `%name = f32[8]{0} all-gather(%x), channel_id=1, …`."""

    name: str
    shape: str
    """Type as text: an array's, or a tuple's in parentheses."""
    operation: str
    rest: str
    """Operands and attributes."""
    is_root: bool = False
    """It is the result of its computation."""
    known_trips: int | None = None
    """Number of iterations of a loop, where the text states it."""

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([^\s,()]+)", self.rest.partition(")")[0])

    @property
    def number(self) -> int | None:
        """Value of a constant integer; None for anything else."""
        is_number = self.operation == "constant" and NUMBER.match(self.shape)
        return int(self.rest.partition(")")[0]) if is_number else None

    @property
    def index(self) -> int:
        """Index of the tuple element that a get-tuple-element reads."""
        return int(self.rest.partition("index=")[2].partition(",")[0])

    @property
    def calls(self) -> list[str]:
        """Names of the computations that it calls."""
        return [name.strip("% ") for names in CALLED.findall(self.rest) for name in names.split(",") if name.strip()]


@dataclass(frozen=True)
class HloModule:
    """A parsed program."""

    computations: dict[str, list[Instruction]]
    entry: str

    def runs(self) -> dict[str, int]:
        """Count how often one run executes each computation: blocks that are alike may share one, and call it."""
        callers: dict[str, list[tuple[str, int]]] = {}
        for caller, instructions in self.computations.items():
            for instruction in instructions:
                for called in instruction.calls:
                    callers.setdefault(called, []).append((caller, self._trips(instruction)))

        @cache
        def times(name: str) -> int:
            if name == self.entry:
                return 1
            return sum(times(caller) * trips for caller, trips in callers.get(name, ()))

        return {name: n for name in self.computations if (n := times(name))}

    def _trips(self, instruction: Instruction) -> int:
        """Return how often an instruction runs what it calls; a loop without a stated count counts from 0."""
        if instruction.operation != "while":
            return 1
        if instruction.known_trips is not None:
            return instruction.known_trips
        condition, body = (
            {i.name: i for i in self.computations[found[1]]}
            for found in re.finditer(r"\b(?:condition|body)=%([^\s,]+)", instruction.rest)
        )
        bounds = [i.number for i in condition.values() if i.number is not None]
        counters = [i.index for i in condition.values() if i.operation == "get-tuple-element"]
        if len(bounds) != 1 or len(counters) != 1:
            return max(bounds, default=1)
        (end,) = [i for i in body.values() if i.is_root]
        step = _increment_of(body, end.operands[counters[0]]) if end.operation == "tuple" else 1
        return math.ceil(bounds[0] / max(step, 1))


def _increment_of(body: dict[str, Instruction], name: str) -> int:
    """Return the sum that one iteration adds to a loop counter; XLA may have unrolled it into several additions."""
    total = 0
    while (i := body.get(name)) is not None and i.operation in ("add", "copy"):
        numbers = [body[operand].number or 0 for operand in i.operands if operand in body]
        total += sum(numbers)
        name = next((o for o in i.operands if o in body and body[o].number is None), "")
    return total


def parse(text: str) -> HloModule:
    """Parse the text that `compiled.as_text()` returns."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if begins := COMPUTATION.match(line):
            here = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        elif computations and " = " in line:
            said, _, backend = line.partition(", backend_config=")  # long, and only the trip count is of use
            if found := INSTRUCTION.match(said.partition(", metadata=")[0]):
                trips = TRIPS.search(backend)
                root, name, shape, operation, rest = found.groups()
                known = int(trips[1]) if trips else None
                here.append(Instruction(name, shape, operation, rest, bool(root), known))
    return HloModule(computations, entry)


def elements(shape: str) -> list[str]:
    """Split the type of a tuple into the types of its elements; any other type is its only element."""
    if not shape.startswith("("):
        return [shape]
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def size_in_bytes(shape: str) -> int:
    """Return the bytes of all arrays in a type."""
    total = 0
    for dtype, dims in SHAPE.findall(shape):
        bits = BITS[dtype] if dtype in BITS else int(re.sub(r"\D", "", dtype) or 0)
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total
