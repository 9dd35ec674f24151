"""Bytes that a step reads from a chip's memory and writes to it, by the text of a compiled program."""

from train.hlo import Program, size

CONTROL = frozenset(("while", "conditional", "call"))
"""Operations whose computations are run as they stand; a fusion's are one kernel, of which only the ends count."""

NO_TRAFFIC = CONTROL | {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
}  # fmt: skip

ON_CHIP = "S(1)"
"""A TPU's vector memory, in a layout."""


def memory_traffic(program: Program) -> int:
    """Each kernel reads what it is given once, and writes its result once; what stays on the chip does not count.

    A kernel that reads a piece of an array, or writes into one, counts all of it.
    """
    total = 0
    for name, times in program.runs(into=CONTROL):
        shapes = {instruction.name: instruction.shape for instruction in program.computations[name]}
        for instruction in program.computations[name]:
            if instruction.operation in NO_TRAFFIC or instruction.operation.endswith("-start"):
                continue
            arrays = [instruction.shape]
            if instruction.operation.endswith("-done"):
                arrays *= 2  # what it began with is as large
            else:
                arrays += [shapes[operand] for operand in instruction.operands if operand in shapes]
            total += times * sum(size(shape, memory=ON_CHIP) for shape in arrays)
    return total
