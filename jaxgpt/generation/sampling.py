"""The choice of the next token: a chain of samplers, each of which reweighs or narrows the candidates.

The kinds of samplers are compiled into a program; their numbers are its arguments, but for the k of top-k.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgpt.arguments import integer, real


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """K tokens of which one will be drawn, and the logits to draw with."""

    logits: Float[Array, "B K"]
    ids: Int[Array, "B K"] | None = None
    """None: every token, in the order of the vocabulary."""
    sorted: bool = field(default=False, metadata={"static": True})
    """The likeliest first."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """The likeliest token alone; among equals the first."""

    def __call__(self, candidates: Candidates, seen: Bool[Array, "B V"] | None) -> Candidates:
        best = jnp.argmax(candidates.logits, -1, keepdims=True).astype(jnp.int32)
        return _take(candidates, best, sorted=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RepetitionPenalty:
    """A penalty on tokens that the text holds already (Keskar 2019).

    Positive logits are divided by it, and negative ones multiplied.
    """

    penalty: float

    def __call__(self, candidates: Candidates, seen: Bool[Array, "B V"] | None) -> Candidates:
        assert seen is not None  # decoding remembers the tokens for this penalty
        logits = candidates.logits
        penalised = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return Candidates(jnp.where(seen, penalised, logits))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Temperature:
    """A divisor of logits: below 1 it favours the likely tokens, above 1 the others."""

    temperature: float

    def __call__(self, candidates: Candidates, seen: Bool[Array, "B V"] | None) -> Candidates:
        # from the largest on, so that no temperature, however small, gives an infinity or 0 / 0
        logits = candidates.logits - candidates.logits.max(-1, keepdims=True)
        return Candidates(logits / jnp.maximum(self.temperature, 1e-30), candidates.ids, candidates.sorted)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopK:
    """The k likeliest tokens; among equals the first (Fan et al. 2018)."""

    k: int = field(metadata={"static": True})

    def __call__(self, candidates: Candidates, seen: Bool[Array, "B V"] | None) -> Candidates:
        _, index = jax.lax.top_k(candidates.logits, min(self.k, candidates.logits.shape[-1]))
        return _take(candidates, index, sorted=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopP:
    """The fewest tokens whose probabilities sum to at least p (Holtzman et al. 2020)."""

    p: float

    def __call__(self, candidates: Candidates, seen: Bool[Array, "B V"] | None) -> Candidates:
        if not candidates.sorted:
            candidates = TopK(candidates.logits.shape[-1])(candidates, seen)
        probabilities = jax.nn.softmax(candidates.logits)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        return _keep(candidates, before < self.p)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MinP:
    """Tokens at least p times as probable as the likeliest (Nguyen et al. 2024)."""

    p: float

    def __call__(self, candidates: Candidates, seen: Bool[Array, "B V"] | None) -> Candidates:
        logits = candidates.logits
        return _keep(candidates, logits >= logits.max(-1, keepdims=True) + jnp.log(self.p))


Sampler = Callable[[Candidates, Bool[Array, "B V"] | None], Candidates]


def make_samplers(
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> tuple[Sampler, ...]:
    """Make the chain that `generate` describes, in transformers' order.

    Raises:
        InputError: a number out of its bounds.
    """
    heat = real("temperature", temperature, 0, 1e30)
    penalty = real("repetition_penalty", repetition_penalty, 1e-6, 1e6)
    narrowing: list[Sampler] = []
    if top_k is not None:
        narrowing.append(TopK(integer("top_k", top_k, 1)))
    if top_p is not None:
        narrowing.append(TopP(real("top_p", top_p, 1e-30, 1)))
    if min_p is not None:
        narrowing.append(MinP(real("min_p", min_p, 1e-30, 1)))
    first = () if penalty == 1 else (RepetitionPenalty(penalty),)
    return (*first, Temperature(heat), *narrowing) if heat else (*first, Greedy())


def draw(
    samplers: tuple[Sampler, ...], logits: Float[Array, "B V"], seen: Bool[Array, "B V"] | None, key: Array
) -> Int[Array, " B"]:
    """Draw a token for each row, which does not depend on how many other rows there are."""
    candidates = Candidates(logits)
    for narrow in samplers:
        candidates = narrow(candidates, seen)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(logits.shape[0]))
    drawn = jax.vmap(jax.random.categorical)(keys, candidates.logits)[:, None]
    ids = drawn if candidates.ids is None else jnp.take_along_axis(candidates.ids, drawn, axis=1)
    return ids[:, 0].astype(jnp.int32)


def _take(candidates: Candidates, index: Int[Array, "B K"], *, sorted: bool) -> Candidates:
    ids = index if candidates.ids is None else jnp.take_along_axis(candidates.ids, index, axis=1)
    return Candidates(jnp.take_along_axis(candidates.logits, index, axis=1), ids, sorted)


def _keep(candidates: Candidates, kept: Bool[Array, "B K"]) -> Candidates:
    return Candidates(jnp.where(kept, candidates.logits, -jnp.inf), candidates.ids, candidates.sorted)
