"""The training step: one pure, jitted function from state and batch to state and metrics."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxgpt.loss import next_token_gradients, next_token_loss, preference_loss
from jaxgpt.mesh import platform, replicated
from jaxgpt.model.gpt import GPT
from jaxgpt.params import by_module, param_name, with_params
from jaxgpt.training.step.batch import Batch, micro_batches
from jaxgpt.training.step.optimizer import norm, norms

Metrics = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """All that changes in training, and the frozen parameters beside it."""

    step: Any
    """Number of optimizer steps that were made, int32."""
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any] = field(default_factory=dict)
    """The exponential moving average of what trains; empty in a run that keeps none."""

    @property
    def params(self) -> dict[str, Any]:
        return self.trainable | self.frozen

    @property
    def averaged_params(self) -> dict[str, Any]:
        """All parameters, those that train by their average."""
        return self.params | self.ema


@jax.tree_util.register_dataclass
@dataclass
class Rates:
    """Learning rates: arguments of the step, so that other rates need no other program."""

    peak: Float[Array, ""]
    """The peak rate, for which the schedule has 1."""
    factors: dict[str, Float[Array, ""]]
    """The factor of the rate of each trainable parameter."""


def state_shapes(
    trainable: dict[str, Any], frozen: dict[str, Any], tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the shapes of a state with their shardings: moments as their parameters, numbers on every device."""
    on_all = NamedSharding(mesh, P())

    def with_sharding(path, leaf):
        name = param_name(path[-1:])
        is_moment = name in trainable and trainable[name].shape == leaf.shape  # and no row sums of Adafactor's
        return shape_at(leaf, trainable[name].sharding if is_moment else on_all)

    opt_state = jax.tree_util.tree_map_with_path(with_sharding, jax.eval_shape(tx.init, trainable))
    trainable, frozen = jax.tree.map(lambda p: shape_at(p, p.sharding), (trainable, frozen))
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=on_all), trainable, frozen, opt_state)


def init_state(
    trainable: dict[str, Array], frozen: dict[str, Array], tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the state before the first step; each moment is born with the sharding of its parameter."""
    shapes = state_shapes(trainable, frozen, tx, mesh)
    opt_shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes.opt_state)
    step = replicated(np.int32(0), mesh)
    return TrainState(step, trainable, frozen, jax.jit(tx.init, out_shardings=opt_shardings)(trainable))


def shape_at(array: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """Return an array's shape and dtype with a sharding."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


REWARDS = ("reward_margin", "reward_accuracy")
"""Measures of preferences: how much more reward the better answers have, and how often they have
more; where both have the same, half."""


@dataclass(frozen=True)
class Preference:
    """How two answers are compared; see `preference_loss`."""

    beta: float
    margin: float = 0.0


@dataclass(frozen=True)
class Objective:
    """The loss that a step minimises, and the way to its gradient."""

    label_smoothing: float = 0.0
    accumulate: int = 1
    """Parts of a batch that are differentiated one after the other: the memory of one, the gradient of all."""
    remat: bool = False
    preference: Preference | None = None
    """How pairs of answers are compared; without, each next token is learned."""

    def loss_and_grads(
        self, model: GPT, state: TrainState, batch: Batch, key: Array | None
    ) -> tuple[tuple[Float[Array, ""], Metrics], dict[str, Array]]:
        """Return the mean loss of all that counts in the batch, what else is measured, and the gradient."""
        if batch.weights is None:
            batch = replace(batch, weights=jnp.ones(batch.tokens[:, 1:].shape, jnp.float32))
        total = jnp.maximum(batch.weights.sum() if self.preference is None else n_pairs(batch), 1)

        def next_token(trainable, part, key):
            loss, grads = next_token_gradients(
                with_params(model, trainable | state.frozen), trainable, part.tokens, part.weights / total,
                segments=part.segments, dropout_key=key, label_smoothing=self.label_smoothing, remat=self.remat,
            )  # fmt: skip
            return (loss, {}), grads

        def loss_of(trainable, part, key):
            losses, measured = self.losses(with_params(model, trainable | state.frozen), part, key)
            return jnp.sum(losses) / total, {name: jnp.sum(x) / total for name, x in measured.items()}

        grad = next_token if self.preference is None else jax.value_and_grad(loss_of, has_aux=True)
        if self.accumulate == 1:
            return grad(state.trainable, batch, key)

        def add(sums, part):
            i, part = part
            part_key = None if key is None else jax.random.fold_in(key, i)
            return jax.tree.map(jnp.add, sums, grad(state.trainable, part, part_key)), None

        parts = jnp.arange(self.accumulate), micro_batches(batch, self.accumulate)
        measured = {} if self.preference is None else dict.fromkeys(REWARDS, jnp.float32(0))
        zeros = (jnp.float32(0), measured), jax.tree.map(jnp.zeros_like, state.trainable)
        return jax.lax.scan(add, zeros, parts)[0]

    def losses(self, model: GPT, batch: Batch, key: Array | None = None) -> tuple[Array, Metrics]:
        """Return the losses of tokens "B T" or pairs "B", each times its weight, and what else is measured of pairs.

        Those of tokens are without label smoothing.
        """
        flat = batch if self.preference is None else Batch(*(merge_pairs(x) for x in (batch.tokens, batch.weights)))
        losses = next_token_loss(model, flat.tokens, segments=flat.segments, dropout_key=key, remat=self.remat)
        losses = losses * flat.weights
        if self.preference is None:
            return losses, {}
        losses, rewards = preference_loss(
            -losses.sum(1).reshape(-1, 2), batch.weights.sum(2), batch.reference,
            beta=self.preference.beta, margin=self.preference.margin, label_smoothing=self.label_smoothing,
        )  # fmt: skip
        counts = (batch.weights.sum((1, 2)) > 0).astype(jnp.float32)
        margins = rewards[:, 0] - rewards[:, 1]
        right = (1 + jnp.sign(margins)) / 2
        return losses * counts, dict(zip(REWARDS, (margins * counts, right * counts), strict=True))


def merge_pairs(x: Array) -> Array:
    """Return the two texts of each row as rows of their own."""
    return x.reshape(-1, x.shape[-1])


def n_pairs(batch: Batch) -> Float[Array, ""]:
    """Count the preferences of a batch, without rows that fill it up."""
    return jnp.sum(batch.weights.sum((1, 2)) > 0, dtype=jnp.float32)


def make_train_step(
    model: GPT,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    state_shardings: TrainState | None = None,
    objective: Objective = Objective(),
    ema_decay: float | None = None,
    measures: bool = True,
) -> jax.stages.Wrapped:
    """Return the step, which differentiates the trainable parameters only: XLA drops the rest of the backward pass.

    Args:
        tx: updates at a peak learning rate of 1, which the step's `Rates` multiply.
        state_shardings: the shardings of the state, which it keeps.
        ema_decay: what remains of the moving average in a step, if the state has one; see `move_average`.
        measures: whether the metrics say how far each module moved.
    """
    config = model.config
    adapter_pdrop = config.lora.dropout if config.lora else 0.0
    has_dropout = max(config.embd_pdrop, config.attn_pdrop, config.resid_pdrop, adapter_pdrop) > 0

    def train_step(state: TrainState, batch: Batch, rates: Rates) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if has_dropout else None
        (loss, measured), grads = objective.loss_and_grads(model, state, batch, key)
        weights, sizes = with_norms(state.trainable) if measures else (state.trainable, {})
        updates, opt_state = tx.update(grads, state.opt_state, weights)
        updates = {name: update * (rates.peak * rates.factors[name]) for name, update in updates.items()}
        trainable = optax.apply_updates(weights, updates)
        metrics = {
            "loss": loss,
            "lr": rates.peak * schedule(state.step),
            "grad_norm": norm(grads),
            **measured,
        }
        if measures:
            moves = norms(by_module(updates))
            metrics["update_norm"] = jnp.sqrt(sum(jnp.square(move) for move in moves.values()))
            metrics["updates"] = {module: moves[module] / size for module, size in sizes.items()}
        ema = {} if ema_decay is None else move_average(state.ema, trainable, ema_decay)
        return TrainState(state.step + 1, trainable, state.frozen, opt_state, ema), metrics

    out_shardings = (state_shardings, state_shardings.step) if state_shardings else None
    return jax.jit(train_step, donate_argnames="state", out_shardings=out_shardings)


def begin_average(trainable: dict[str, Array], ema: dict[str, Array] | None = None) -> dict[str, Array]:
    """Return the average with which a phase begins: what thaws enters with its value, in a buffer of its own."""
    ema = ema or {}
    return {name: ema[name] if name in ema else jnp.copy(p) for name, p in trainable.items()}


def move_average(ema: dict[str, Array], trainable: dict[str, Array], decay: float) -> dict[str, Array]:
    """Move each average by 1 - decay of the way to the parameter.

    It begins at the parameter's own value, not at zero, so that there is no bias to correct.
    """
    return {name: average + (1 - decay) * (trainable[name] - average) for name, average in ema.items()}


def with_norms(trainable: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the weights, and the norm of those of each module, which costs an accelerator nothing: it fuses."""
    sizes = norms(by_module(trainable))
    # on a GPU before the weights are updated, or that can't happen in place
    return jax.lax.optimization_barrier((trainable, sizes)) if platform() == "gpu" else (trainable, sizes)


def make_eval_step(model: GPT, objective: Objective = Objective()) -> jax.stages.Wrapped:
    """Return a function to the sum of a batch's losses without label smoothing, and of what counts: tokens or pairs.

    Of pairs it also sums how often the better answer has the higher reward.
    """
    objective = replace(objective, label_smoothing=0.0, remat=False)

    def eval_step(params: dict[str, Array], batch: Batch) -> tuple[Float[Array, ""], ...]:
        losses, measured = objective.losses(with_params(model, params), batch)
        if objective.preference is None:
            return jnp.sum(losses), jnp.sum(batch.weights)
        return jnp.sum(losses), n_pairs(batch), jnp.sum(measured["reward_accuracy"])

    return jax.jit(eval_step)


def make_reference_step(model: GPT) -> jax.stages.Wrapped:
    """Return a function to the log-likelihoods "B 2" of a batch's answers."""

    def reference_step(params: dict[str, Array], batch: Batch) -> Float[Array, "B 2"]:
        losses = next_token_loss(with_params(model, params), merge_pairs(batch.tokens))
        return -jnp.sum(losses * merge_pairs(batch.weights), 1).reshape(-1, 2)

    return jax.jit(reference_step)
