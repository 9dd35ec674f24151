"""Parameters that the checkpoints of a run need not hold while frozen, since the model that it began as has them."""

import os
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt import convert
from jaxgpt.convert.base import Base, changed, digest
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.source import run_of
from jaxgpt.training.distributed import any_process, is_first


class RunBase:
    """The base of a run, and the parameters that training begins with as they are there."""

    def __init__(self, checkpoint: convert.Checkpoint, run: Path, before: Mapping[str, Array]):
        """Describe the base of a run.

        Args:
            checkpoint: what `--model` names. Of another run's, what that one's base has can be left there; what it has
                itself can't, as it may be deleted any time.
            before: its parameters by name, as they were loaded; those that a mesh has padded are not as in the base.
        """
        own = checkpoint.own
        self._before = {name: p for name, p in before.items() if name in own and p.shape == tuple(own[name].shape)}
        path = checkpoint.weights
        if checkpoint.base is not None:
            self._base, self._known = checkpoint.base, dict(checkpoint.base.digests)
        elif run_of(path) is None:
            self._base, self._known = Base.of(path, checkpoint.told, run), {}
        else:
            self._base, self._known, self._before = Base(""), {}, {}
        self._arrays = {name: array for name, array in own.items() if name in before}
        self.unchanged: frozenset[str] = frozenset()
        """Names of parameters that training begins with as the base has them."""
        self._digests: dict[str, Future[str]] = {}

    @property
    def model(self) -> str:
        """Where it is."""
        return self._base.model

    def compare(self, params: Mapping[str, Array]) -> None:
        """Find out which parameters are still those of the base, bit for bit. All processes must ask."""
        there = {name: p for name, p in params.items() if name in self._before and name in (self._known or params)}
        self.unchanged = frozenset(name for name, p in there.items() if _is_same(p, self._before[name]))
        self._before = {}

    def without(self, names: Collection[str]) -> Base | None:
        """Return the base for a checkpoint that leaves these parameters there; nothing if it leaves none.

        The first process knows the digests, and writes them.
        """
        if not names:
            return None
        told = self.digests(sorted(names)) if is_first() else {}
        return Base(self._base.model, self._base.told, self._base.beside, told)

    def digests(self, names: Collection[str]) -> dict[str, str]:
        """Return the digests of parameters of the base, by name; those that are not known are computed."""
        self.begin(names)
        return {name: self._known.get(name) or self._digests[name].result() for name in names}

    def begin(self, names: Collection[str]) -> None:
        """Compute digests in the background."""
        missing = [name for name in names if name not in self._known and name not in self._digests]
        if missing:
            pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="digests")
            self._digests |= {name: pool.submit(digest, self._arrays[name]) for name in missing}
            pool.shutdown(wait=False)

    def check(self, stored: Base) -> None:
        """Refuse a base that is not what it was when a checkpoint was written. All processes must ask.

        Each compares a part of it.

        Raises:
            InputError: in all of them.
        """
        names = sorted(stored.digests)
        missing = [name for name in names if name not in self._arrays]
        mine = [] if missing else names[jax.process_index() :: jax.process_count()]
        found = self.digests(mine)
        others = missing + [name for name in mine if found[name] != stored.digests[name]]
        if bool(any_process(bool(others))):
            raise InputError(f"--resume: {changed(self.model, others[0] if others else 'a parameter')}")


def _is_same(a: Array, b: Array) -> bool:
    """Tell whether two arrays have the same bits."""
    if a is b:
        return True
    return a.shape == b.shape and a.dtype == b.dtype and bool(_same_bits(a, b))


@jax.jit
def _same_bits(a: Array, b: Array) -> Array:
    bits = {4: jnp.uint32, 2: jnp.uint16}[a.dtype.itemsize]
    return jnp.all(jax.lax.bitcast_convert_type(a, bits) == jax.lax.bitcast_convert_type(b, bits))
