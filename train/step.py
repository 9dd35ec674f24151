"""The training step: one pure, jitted function from state and batch to state and metrics."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from jaxgpt.loss import next_token_loss
from jaxgpt.model import GPT
from jaxgpt.params import with_params

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass
class State:
    """All that changes in training, and the frozen parameters beside it."""

    step: Int[Array, ""]
    """Optimizer steps that were made."""
    trainable: dict[str, Array]
    frozen: dict[str, Array]
    opt_state: Any

    @property
    def params(self) -> dict[str, Array]:
        return self.trainable | self.frozen


def init_state(
    trainable: dict[str, Array], frozen: dict[str, Array], tx: optax.GradientTransformation, mesh: Mesh
) -> State:
    """The state before the first step; each moment is born where its parameter lies."""
    places = opt_shardings(tx, trainable, mesh)
    step = jax.device_put(jnp.int32(0), NamedSharding(mesh, P()))
    return State(step, trainable, frozen, jax.jit(tx.init, out_shardings=places)(trainable))


def opt_shardings(tx: optax.GradientTransformation, trainable: dict[str, Array], mesh: Mesh) -> Any:
    """Where the optimizer's state lies: moments with their parameters, counters everywhere."""

    def place(path, leaf):
        name = getattr(path[-1], "key", None)
        return trainable[name].sharding if name in trainable else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, trainable))


def make_train_step(
    model: GPT, tx: optax.GradientTransformation, lr: optax.Schedule, seed: int, places: State | None = None
) -> jax.stages.Wrapped:
    """The step; only the trainable parameters are differentiated, so that XLA drops the backward pass of the rest.

    `places` are the state's shardings, which it keeps.
    """
    config = model.config
    has_dropout = max(config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) > 0

    def train_step(state: State, tokens: Int[Array, "B T+1"]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if has_dropout else None

        def loss_of(trainable):
            return next_token_loss(with_params(model, trainable | state.frozen), tokens, dropout_key=key).mean()

        loss, grads = jax.value_and_grad(loss_of)(state.trainable)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, "lr": jnp.asarray(lr(state.step)), "grad_norm": optax.tree.norm(grads)}
        return State(state.step + 1, trainable, state.frozen, opt_state), metrics

    return jax.jit(train_step, donate_argnames="state", out_shardings=places and (places, None))


def make_eval_step(
    model: GPT,
) -> jax.stages.Wrapped:
    """The sum of the losses of a batch's tokens, each times its weight."""

    def eval_step(params, tokens, weights):
        return jnp.sum(next_token_loss(with_params(model, params), tokens) * weights)

    return jax.jit(eval_step)
