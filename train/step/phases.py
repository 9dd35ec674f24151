"""The phases of a run: one compiled program for each, which is compiled while an earlier one runs."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import freeze
from jaxgpt.mesh import platform, replicated
from jaxgpt.params import count_params
from jaxgpt.training.distributed import any_process
from jaxgpt.training.signals import Stop
from jaxgpt.training.step.spec import StepSpec
from jaxgpt.training.step.step import Rates, TrainState, begin_average, init_state

T = TypeVar("T")


@dataclass(frozen=True)
class CompiledPhase:
    """The compiled programs of a phase."""

    phase: freeze.Phase
    n_trainable: int
    """Number of parameters that train."""
    step: jax.stages.Compiled
    """The training step: from state, batch and rates to state and metrics."""
    measuring: Future[jax.stages.Compiled] | None
    """That of the steps whose updates are kept, where it is another program; see `StepSpec.measures_apart`."""
    rates: Rates
    enter: jax.stages.Compiled | None
    """From the optimizer state of the phase before to that of this one; None in the first phase."""
    seconds: float
    """The time that tracing, lowering and compiling took."""


class PhaseCompiler:
    """Compiles the phases of a run: on a CPU the next one while one runs, and for accelerators all of them at once.

    An accelerator makes the steps of a short phase in less time than the next one takes to compile.
    """

    def __init__(self, spec: StepSpec):
        self._spec = spec
        self._n_ahead = 1 if platform() == "cpu" else len(spec.plan.phases)
        at_once = min(self._n_ahead, max(1, (os.cpu_count() or 1) // 2))
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="compile")
        self._programs: dict[int, Future[CompiledPhase]] = {}
        """Those that were asked for and not yet entered, by the index of the phase."""
        self._lowered: dict[int, Future[jax.stages.Lowered]] = {}
        self._measuring: Future[jax.stages.Compiled] | None = None
        """The newest; on a CPU the one before is compiled by then, since programs are compiled one after the other."""

    def init(self, params: dict[str, jax.Array]) -> TrainState:
        """Return the state before the first step."""
        trainable, frozen = self._spec.plan.partition(params)
        state = init_state(trainable, frozen, self._spec.optimizer(trainable, 0), self._spec.mesh)
        return state if self._spec.settings.ema is None else replace(state, ema=begin_average(trainable))

    def begin_ahead(self, step: int) -> None:
        """Trace and lower the step after `step` in the background, and compile it where that needs no accelerator.

        On a GPU, XLA measures kernels and needs memory while it compiles, so that `begin` does it when nothing else
        runs.
        """
        index = self._spec.plan.at(step)
        if platform() == "gpu":
            self._lowered[index] = self._pool.submit(self._spec.lower, self._spec.plan.phases[index])
        else:
            self._compile_ahead(index, 1)

    def begin(self, state: TrainState, step: int) -> tuple[TrainState, CompiledPhase]:
        """Compile the phase of the step after `step`; return it with the state, which may thaw just then."""
        plan = self._spec.plan
        index, before = plan.at(step), plan.at(max(step - 1, 0))
        self._compile_ahead(index, self._n_ahead)
        program = self._programs.pop(index).result()
        self._compile_ahead(index + 1, self._n_ahead)
        return (self._enter(state, program) if before < index else state), program

    def enter_next(self, state: TrainState, stop: Stop) -> tuple[TrainState, CompiledPhase] | None:
        """Wait for the next phase's program, and return it with the thawed state; None after a signal."""
        index = min(self._programs)
        if (compiled := wait(self._programs[index], stop)) is None:
            return None
        del self._programs[index]
        self._compile_ahead(index + 1, self._n_ahead)
        return self._enter(state, compiled), compiled

    def _enter(self, state: TrainState, program: CompiledPhase) -> TrainState:
        assert program.enter is not None
        trainable, frozen = self._spec.plan.partition(state.params, program.phase.start)
        ema = begin_average(trainable, state.ema) if state.ema else {}
        return TrainState(state.step, trainable, frozen, program.enter(state.opt_state), ema)

    @property
    def is_next_ready(self) -> bool:
        """True if the next phase needs no waiting for, whatever is compiled after it."""
        return self._programs[min(self._programs)].done()

    @property
    def is_compiling(self) -> bool:
        """True while a program is being compiled, which can't be interrupted."""
        programs: list[Future[Any] | None] = [*self._programs.values(), self._measuring]
        return any(program is not None and program.running() for program in programs)

    def close(self) -> None:
        """Cancel programs that nobody will run."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile_ahead(self, first: int, n: int) -> None:
        """Ask for the programs of n phases from one on, as far as there are so many."""
        for index in range(first, min(first + n, len(self._spec.plan.phases))):
            if index not in self._programs:
                self._programs[index] = self._pool.submit(self._compile, index)

    def _compile(self, index: int) -> CompiledPhase:
        spec, phase = self._spec, self._spec.plan.phases[index]
        state, began = spec.state(phase.start), time.perf_counter()
        is_apart, measuring = spec.measures_apart(phase), None
        lowered = self._lowered.pop(index).result() if index in self._lowered else spec.lower(phase, not is_apart)
        compiled = lowered.compile()
        if is_apart:
            self._measuring = measuring = self._pool.submit(lambda: spec.lower(phase).compile())
        enter = None
        factors = {name: replicated(np.float32(spec.rate_factors[name]), spec.mesh) for name in state.trainable}
        rates = Rates(replicated(np.float32(spec.peak_lr), spec.mesh), factors)
        if index:
            tx = spec.optimizer(state.trainable, phase.start)
            opt_shardings = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)

            def thaw(opt_state):
                return freeze.thaw(tx, jax.tree.map(jnp.zeros_like, state.trainable), opt_state)

            before = spec.state(spec.plan.phases[index - 1].start).opt_state
            # donated: what trained stays where it is
            enter = jax.jit(thaw, donate_argnums=0, out_shardings=opt_shardings).lower(before).compile()
        seconds = time.perf_counter() - began
        return CompiledPhase(phase, count_params(state.trainable), compiled, measuring, rates, enter, seconds)


def wait(program: Future[T], stop: Stop) -> T | None:
    """Wait for a program; return None after a signal."""
    is_alone = jax.process_count() == 1  # several processes must decide together, below
    while not program.done():
        if is_alone and stop.requested.is_set():
            return None
        time.sleep(0.05)
    return None if any_process(stop.requested.is_set()) else program.result()
