"""The specification of a training step: all that its program is made of. Shapes, shardings and numbers; no data."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

import jaxgpt
from jaxgpt import freeze
from jaxgpt.convert.adapter import input_axes
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError, about
from jaxgpt.int8 import int8_shapes
from jaxgpt.mesh import batch_sharding, batch_shards, platform, shardings
from jaxgpt.params import by_module, count_params, named_params, with_params
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import (
    ADAPTER_RATE,
    PEAK_LR,
    lr_schedule,
    make_optimizer,
    rate_factors,
    warmup_steps,
)
from jaxgpt.training.step.step import Objective, Preference, Rates, TrainState, make_train_step, state_shapes

OBJECTIVE_RATE = {"next-token": 1.0, "dpo": 0.05, "simpo": 0.05}
"""Factors of the default learning rate. Preferences are learned at small ones; TRL's defaults differ by as much."""

MEASUREMENTS = 150
"""Most steps of which the updates are kept."""

WORTH_A_PROGRAM = 4e9
"""Parameters times steps from which on it takes a CPU less time to compile a second step than to measure them all."""

STEPS = 150
"""The default length of a run: minutes on two cores for the bundled model."""


@dataclass(frozen=True)
class StepSpec:
    """All that a training step is compiled from."""

    settings: Settings
    mesh: Mesh
    model: jaxgpt.GPT
    """Shapes with their shardings: the values are in the `TrainState`."""
    steps: int
    plan: freeze.Plan
    batch: Batch
    """Shapes with their shardings."""
    schedule: optax.Schedule
    peak_lr: float
    rate_factors: dict[str, float]

    @property
    def context(self) -> int:
        """The number T of tokens of a row that are predicted."""
        return self.batch.weights.shape[-1]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch that are predicted, with padding."""
        return math.prod(self.batch.weights.shape)

    @cached_property
    def params(self) -> dict[str, Any]:
        return named_params(self.model)

    @cached_property
    def modules(self) -> list[str]:
        """`tok_emb`, `blocks.0` and so on, in the order of the network."""
        return list(by_module(self.params))

    def measures_apart(self, phase: freeze.Phase) -> bool:
        """Return whether the steps whose updates are kept are another program than those between.

        They are on a CPU, for which a norm is a pass over memory; on accelerators it costs nothing.
        """
        later = [other.start for other in self.plan.phases if other.start > phase.start]
        n_steps = min(later, default=self.steps) - phase.start
        n_trainable = count_params(self.plan.partition(self.params, phase.start)[0])
        is_alone = self.mesh.size == 1 and platform() == "cpu"
        return is_alone and measure_every(self.steps) > 1 and n_trainable * n_steps > WORTH_A_PROGRAM

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises to its peak."""
        return warmup_steps(self.steps, self.settings.warmup)

    @property
    def objective(self) -> Objective:
        """The loss that a step minimises, and the way to its gradient."""
        settings, preference = self.settings, None
        if settings.objective != "next-token":
            preference = Preference(beta_of(settings), margin_of(settings))
        return Objective(settings.label_smoothing, settings.accumulate, settings.remat, preference)

    def optimizer(self, trainable: dict[str, Any], step: int) -> optax.GradientTransformation:
        """Return the optimizer for what trains in the phase of the step after `step`."""
        settings = self.settings
        return make_optimizer(
            self.plan, trainable, self.schedule, weight_decay=settings.weight_decay, clip=settings.clip,
            step=step, thaw_warmup=max(1, round(self.steps * settings.thaw_warmup)), kind=settings.optimizer,
        )  # fmt: skip

    def state(self, step: int) -> TrainState:
        """Return the state in the phase of the step after `step`: shapes with their shardings."""
        if step not in self._states:
            trainable, frozen = self.plan.partition(self.params, step)
            state = state_shapes(trainable, frozen, self.optimizer(trainable, step), self.mesh)
            self._states[step] = state if self.settings.ema is None else replace(state, ema=dict(state.trainable))
        return self._states[step]

    @cached_property
    def _states(self) -> dict[int, TrainState]:
        return {}

    def lower(self, phase: freeze.Phase, measures: bool = True) -> jax.stages.Lowered:
        """Lower the step of a phase for the devices of the mesh, which need not be there."""
        state = self.state(phase.start)
        state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        tx = self.optimizer(state.trainable, phase.start)
        number: Any = jax.ShapeDtypeStruct((), np.float32, sharding=state_shardings.step)
        step = make_train_step(
            self.model, tx, self.schedule, self.settings.seed, state_shardings, self.objective, self.settings.ema,
            measures,
        )  # fmt: skip
        with jax.set_mesh(self.mesh):
            return step.lower(state, self.batch, Rates(number, dict.fromkeys(state.trainable, number)))


def make_step_spec(
    settings: Settings, mesh: Mesh, model: jaxgpt.GPT, *, steps: int, packed: bool, epoch_steps: float | None = None,
    unchanged: Collection[str] | None = None,
) -> StepSpec:  # fmt: skip
    """Return the specification of the steps of a run.

    Args:
        model: its parameters are arrays or shapes; the rules of `jaxgpt.mesh` say how they are sharded.
        packed: whether rows hold several texts.
        epoch_steps: steps that a pass over the data takes, if it is known.
        unchanged: names of the parameters that may be rounded, since a checkpoint need not hold them; all by default.

    Raises:
        InputError: a strategy that means nothing, or a model or batch that the mesh can't divide.
    """
    config, params = model.config, named_params(model)
    with about("--mesh"):
        param_shardings = shardings(params, mesh)
    with about("--freeze"):
        plan = freeze.parse(settings.freeze, config, steps, epoch_steps=epoch_steps)
    trainable, frozen = plan.partition(params, steps)
    rounded: set[str] = set()
    if settings.frozen_dtype != "float32":
        rounded = {name for name in frozen if name.endswith(".kernel") and (unchanged is None or name in unchanged)}
    if settings.frozen_dtype != "float32" and not rounded:
        raise InputError(
            f"--frozen-dtype={settings.frozen_dtype}: there is nothing to round, so leave the flag out. Only "
            "kernels that never train are rounded; if --model is an earlier run, those which that run trained are not "
            "rounded either"
        )
    shapes = {
        name: _shape(name, p, settings.frozen_dtype if name in rounded else p.dtype, param_shardings[name])
        for name, p in params.items()
    }
    factors = rate_factors(trainable, config.n_layer, settings.layer_lr_decay, settings.lr_scale)
    if settings.lr is None:
        factors = {name: factor * (ADAPTER_RATE if ".lora_" in name else 1) for name, factor in factors.items()}
    return StepSpec(
        settings=settings,
        mesh=mesh,
        model=with_params(model, shapes),
        steps=steps,
        plan=plan,
        batch=batch_shapes(settings, mesh, config, packed=packed),
        schedule=lr_schedule(steps, settings.warmup, settings.schedule),
        peak_lr=settings.lr or PEAK_LR[settings.optimizer] / config.n_embd * OBJECTIVE_RATE[settings.objective],
        rate_factors=factors,
    )


def measure_every(n_steps: int) -> int:
    """Return of how many steps one has its updates kept."""
    return -(-n_steps // MEASUREMENTS)


def _shape(name: str, param: Any, dtype: Any, sharding: NamedSharding) -> Any:
    if dtype == "int8":
        return int8_shapes(param, input_axes(name.removesuffix(".kernel")), sharding)
    return jax.ShapeDtypeStruct(param.shape, np.dtype(dtype), sharding=sharding)


def batch_shapes(settings: Settings, mesh: Mesh, config: GPTConfig, *, packed: bool) -> Batch:
    """Return the shapes and shardings of the batch that a step is given.

    Raises:
        InputError: more positions than the model has, or rows that can't be divided over the devices.
    """
    T, B = settings.context or config.usual_context, settings.batch_size
    if config.n_positions < T:
        raise InputError(f"--context: {T} is more than the model's context of {config.n_positions}")
    if B % (batch_shards(mesh) * settings.accumulate):
        parts = f"{settings.accumulate} micro-batches (--accumulate) on " if settings.accumulate > 1 else ""
        raise InputError(f"--batch-size: {B} can't be divided over {parts}{batch_shards(mesh)} devices")
    sharding = batch_sharding(mesh)
    rows = (B,) if settings.objective == "next-token" else (B, 2)
    ids = jax.ShapeDtypeStruct((*rows, T + 1), np.int32, sharding=sharding)
    weights = jax.ShapeDtypeStruct((*rows, T), np.float32, sharding=sharding)
    reference = jax.ShapeDtypeStruct(rows, np.float32, sharding=sharding) if settings.objective == "dpo" else None
    return Batch(ids, weights, ids if packed else None, reference)


def beta_of(settings: Settings) -> float:
    """Return the factor of the reward."""
    return settings.beta if settings.beta is not None else {"dpo": 0.1, "simpo": 2.0}[settings.objective]


def margin_of(settings: Settings) -> float:
    """Return how much more reward the better answer should have."""
    if settings.objective == "dpo":
        return 0.0
    return settings.margin if settings.margin is not None else 0.5 * beta_of(settings)
