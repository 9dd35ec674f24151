"""Layouts of a tensor as einops strings, theirs on the left and ours on the right: `"D (C N H) -> D C N H"`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LazyArray:
    """An array that is read again each time it is used (`np.asarray`)."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


def shape_of(side: str, dims: dict[str, int]) -> Shape:
    """Compute the shape of one side of a layout: `"D (C N H)"` with GPT-2's dimensions is `(768, 2304)`."""
    return tuple(math.prod(dims.get(d) or int(d) for d in axis.strip("()").split()) for axis in axes_of(side))


def relayout(array: Any, layout: str, dims: dict[str, int]) -> np.ndarray | LazyArray:
    """Rearrange an array from the layout's left side to its right: a view of a NumPy array, lazily for any other."""
    left, right = layout.split(" -> ")
    if isinstance(array, np.ndarray):
        sizes = {d: dims[d] for d in set(re.findall("[A-Z]", left))}
        return einops.rearrange(array, layout, **sizes)
    if left == right:
        return array
    return LazyArray(shape_of(right, dims), array.dtype, lambda: np.asarray(relayout(np.asarray(array), layout, dims)))


def swap(layout: str) -> str:
    """Return the layout of the opposite direction."""
    left, right = layout.split(" -> ")
    return f"{right} -> {left}"


def axes_of(side: str) -> list[str]:
    """Return the axes of one side of a layout: `"D (C N H)"` has `D` and `(C N H)`."""
    return re.findall(r"\([^)]*\)|\S+", side)
