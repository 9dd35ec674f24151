"""The text of a compiled program, as XLA prints it: computations, and how often a run goes through each."""

import math
import re
from dataclasses import dataclass

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
"""Of the types whose names do not end with their number of bits."""

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
    """As it is written: an array's, or a tuple's in parentheses."""
    operation: str
    rest: str
    """Operands and attributes."""
    is_root: bool = False
    """Whether it is what its computation returns."""
    known_trips: int | None = None
    """How often a loop is run, where it says so."""

    @property
    def operands(self) -> list[str]:
        """Names of what it is given."""
        return re.findall(r"%([^\s,()]+)", self.rest.partition(")")[0])

    @property
    def number(self) -> int | None:
        """The value of an integer that is constant."""
        is_one = self.operation == "constant" and NUMBER.match(self.shape)
        return int(self.rest.partition(")")[0]) if is_one else None

    @property
    def index(self) -> int:
        """Which element of a tuple it takes."""
        return int(self.rest.partition("index=")[2].partition(",")[0])

    @property
    def calls(self) -> list[str]:
        """Names of the computations that it runs."""
        return [name.strip("% ") for names in CALLED.findall(self.rest) for name in names.split(",") if name.strip()]


@dataclass(frozen=True)
class HloModule:
    """A parsed text."""

    computations: dict[str, list[Instruction]]
    entry: str

    def runs(self) -> dict[str, int]:
        """Computations that a run goes through, and how often; one that several call, as often as the busiest."""
        times: dict[str, int] = {}

        def visit(name: str, factor: int) -> None:
            if times.get(name, 0) >= factor:
                return
            times[name] = factor
            for instruction in self.computations[name]:
                for called in instruction.calls:
                    visit(called, factor * self._trips(instruction))

        visit(self.entry, 1)
        return times

    def _trips(self, instruction: Instruction) -> int:
        """How often an instruction runs what it calls; a loop that does not say counts from 0 up to its bound."""
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
    """What a turn of a loop adds to a counter, which XLA may have made several turns of: copies and additions."""
    total = 0
    while (i := body.get(name)) is not None and i.operation in ("add", "copy"):
        numbers = [body[operand].number or 0 for operand in i.operands if operand in body]
        total += sum(numbers)
        name = next((o for o in i.operands if o in body and body[o].number is None), "")
    return total


def parse(text: str) -> HloModule:
    """The program of `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if begins := COMPUTATION.match(line):
            here = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        elif computations and " = " in line:
            said, _, backend = line.partition(", backend_config=")  # which is long and says little
            if found := INSTRUCTION.match(said.partition(", metadata=")[0]):
                trips = TRIPS.search(backend)
                root, name, shape, operation, rest = found.groups()
                known = int(trips[1]) if trips else None
                here.append(Instruction(name, shape, operation, rest, bool(root), known))
    return HloModule(computations, entry)


def elements(shape: str) -> list[str]:
    """The types in a tuple's, or the one that it is."""
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
    """Bytes of all arrays in a type."""
    total = 0
    for dtype, dims in SHAPE.findall(shape):
        bits = BITS[dtype] if dtype in BITS else int(re.sub(r"\D", "", dtype) or 0)
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total
