"""The phases of a run: a compiled program for each, and that of the next is made while this one runs."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import freeze
from jaxgpt.mesh import everywhere
from jaxgpt.params import count_params
from jaxgpt.train.distributed import any_of
from jaxgpt.train.signals import Stop
from jaxgpt.train.step.spec import Recipe
from jaxgpt.train.step.step import Rates, State, init_state


@dataclass(frozen=True)
class Program:
    """What runs in a phase."""

    phase: freeze.Phase
    trainable: int
    """Number of parameters that train."""
    step: jax.stages.Compiled
    """From state, batch and rates to state and metrics."""
    rates: Rates
    enter: jax.stages.Compiled | None
    """From the optimizer state of the phase before to that of this one; None in the first."""


class Phases:
    """The programs of a run, one after the other."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._next: Future[Program] | None = None

    def init(self, params: dict[str, jax.Array]) -> State:
        """The state before the first step."""
        trainable, frozen = self._recipe.plan.partition(params)
        return init_state(trainable, frozen, self._recipe.optimizer(trainable, 0), self._recipe.mesh)

    def begin(self, state: State, step: int) -> tuple[State, Program]:
        """The program of the step after `step`, compiled here and now, and the state, which may thaw just then."""
        plan = self._recipe.plan
        index, before = plan.at(step), plan.at(max(step - 1, 0))
        program = self._compile(index)
        self._compile_ahead(index + 1)
        return (self._enter(state, program) if before < index else state), program

    def enter_next(self, state: State, stop: Stop) -> tuple[State, Program] | None:
        """Thaws what the next phase names, with its program, which is waited for; alone, not after a signal."""
        assert self._next is not None
        alone = jax.process_count() == 1
        while not self._next.done():
            if alone and stop.requested.is_set():
                return None
            time.sleep(0.05)
        if any_of(stop.requested.is_set()):
            return None
        program = self._next.result()
        self._compile_ahead(self._recipe.plan.phases.index(program.phase) + 1)
        return self._enter(state, program), program

    def _enter(self, state: State, program: Program) -> State:
        assert program.enter is not None
        trainable, frozen = self._recipe.plan.partition(state.params, program.phase.start)
        return State(state.step, trainable, frozen, program.enter(state.opt_state))

    @property
    def compiling(self) -> bool:
        """Whether a program is being compiled, which can't be interrupted."""
        return self._next is not None and self._next.running()

    def close(self) -> None:
        """Waits for no program that nobody will run."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile_ahead(self, index: int) -> None:
        more = index < len(self._recipe.plan.phases)
        self._next = self._pool.submit(self._compile, index) if more else None

    def _compile(self, index: int) -> Program:
        recipe, phase = self._recipe, self._recipe.plan.phases[index]
        state = recipe.state(phase.start)
        compiled, enter = recipe.lower(phase).compile(), None
        factors = {name: everywhere(np.float32(recipe.rate_factors[name]), recipe.mesh) for name in state.trainable}
        rates = Rates(everywhere(np.float32(recipe.peak_lr), recipe.mesh), factors)
        if index:
            tx, places = recipe.optimizer(state.trainable, phase.start), jax.tree.map(lambda leaf: leaf.sharding, state)

            def thaw(opt_state):
                return freeze.thaw(tx, jax.tree.map(jnp.zeros_like, state.trainable), opt_state)

            before = recipe.state(recipe.plan.phases[index - 1].start).opt_state
            # donated: what trained stays where it is
            enter = jax.jit(thaw, donate_argnums=0, out_shardings=places.opt_state).lower(before).compile()
        return Program(phase, count_params(state.trainable), compiled, rates, enter)
