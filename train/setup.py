"""Everything a run needs before its first step, and everything that can be refused before its first file."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import jaxgpt
from convert.disk import check_space
from convert.errors import InputError
from jaxgpt import freeze
from jaxgpt.mesh import batch_shards, make_mesh, shardings
from jaxgpt.modules import by_module, shares
from jaxgpt.params import count_params, named_params, with_params
from jaxgpt.tokenizer import add_tokens, check_vocabulary
from jaxgpt.vocab import mark_padding
from train.data import Data, Windows, load_data
from train.optimizer import make_optimizer, rate_factors, schedule
from train.run import Run
from train.settings import Settings
from train.step import shape_at
from train.trackers import check_trackers

ROWS = 128
"""An extended vocabulary is padded to a multiple of this: matrix units want it, and so do meshes."""


@dataclass(frozen=True)
class Setup:
    """What `prepare` makes of the settings."""

    settings: Settings
    mesh: Mesh
    model: jaxgpt.GPT
    """Shapes, and where they lie: the values are in the `State`."""
    tokenizer: Any
    added: tuple[str, ...]
    """Tokens that were new to the model and its tokenizer."""
    data: Data
    context: int
    plan: freeze.Plan
    schedule: optax.Schedule
    peak_lr: float
    rate_factors: dict[str, float]

    @property
    def params(self) -> dict[str, Any]:
        return named_params(self.model)

    @property
    def modules(self) -> list[str]:
        """`tok_emb`, `blocks.0` and so on, in the order of the network."""
        return list(by_module(self.params))

    def optimizer(self, trainable: dict[str, Any], step: int) -> optax.GradientTransformation:
        """AdamW for what trains in the phase of the step after `step`."""
        settings = self.settings
        return make_optimizer(
            self.plan, trainable, self.schedule, weight_decay=settings.weight_decay, clip=settings.clip,
            step=step, thaw_warmup=max(1, round(settings.steps * settings.thaw_warmup)),
        )  # fmt: skip

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says beside the settings."""
        data, params, phases = self.data, self.params, []
        for phase in self.plan.phases:
            trainable = self.plan.partition(params, phase.start)[0]
            phases.append(
                {
                    "start": phase.start,
                    "name": phase.name,
                    "trainable": count_params(trainable),
                    "trains": shares(trainable, params),
                }
            )
        return {
            "data": {
                "source": data.source,
                "sha256": data.digest,
                "train": len(data.train),
                "held_out": len(data.held_out),
            },
            "parameters": {"all": count_params(params), "trainable": phases[-1]["trainable"]},
            "phases": phases,
        }


def load_model(settings: Settings, mesh: Mesh) -> tuple[jaxgpt.GPT, Any, tuple[str, ...]]:
    """The model that training starts from, its tokenizer, and the tokens that are new to both."""
    model = jaxgpt.from_pretrained(settings.model, mesh=mesh, dtype=settings.dtype)
    tokenizer = jaxgpt.load_tokenizer(settings.tokenizer or settings.model)
    check_vocabulary(tokenizer, model.config)
    model = mark_padding(model, tokenizer)
    if settings.untie_head:
        model = jaxgpt.untie_head(model)
    added = add_tokens(tokenizer, settings.add_tokens.split(",")) if settings.add_tokens is not None else ()
    if added:
        model = jaxgpt.resize_vocab(model, tokenizer, pad_multiple=ROWS, seed=settings.seed)
    params = named_params(model)
    return with_params(model, jax.device_put(params, shardings(params, mesh))), tokenizer, added


def prepare(settings: Settings, run: Run) -> tuple[Setup, dict[str, jax.Array]]:
    """Loads model, tokenizer and text, and parses the plan; with the parameters before the first step.

    Raises:
        InputError: the first thing that does not fit.
    """
    _check_numbers(settings)
    check_trackers(settings.track)
    run.check(settings)
    mesh = make_mesh(settings.mesh)
    if settings.batch_size % batch_shards(mesh):
        raise InputError(f"--batch-size: {settings.batch_size} can't be divided over {batch_shards(mesh)} devices")
    model, tokenizer, added = load_model(settings, mesh)
    config = model.config
    context = settings.context or config.n_positions
    if context > config.n_positions:
        raise InputError(f"--context: {context} is more than the model's {config.n_positions} positions")
    if not 0 < len(tokenizer(settings.prompt)["input_ids"]) < config.n_positions:
        raise InputError(f"--prompt: must have from 1 to {config.n_positions - 1} tokens")
    data = load_data(settings.data, tokenizer, context)
    for tokens in (data.train, data.held_out):
        check_vocabulary(tokenizer, config, tokens)
    epoch_steps = len(Windows(data.train, context)) / settings.batch_size
    plan = freeze.parse(settings.freeze, config, settings.steps, epoch_steps=epoch_steps)
    params = named_params(model)
    trains = plan.partition(params, settings.steps)[0]
    factors = rate_factors(trains, config.n_layer, settings.layer_lr_decay, settings.lr_scale)
    kept = settings.keep + 1  # and the one that is being written
    check_space(run.checkpoints, kept * sum(p.nbytes for p in (*params.values(), *trains.values(), *trains.values())))
    shapes = with_params(model, {name: shape_at(p, p.sharding) for name, p in params.items()})
    return Setup(
        settings, mesh, shapes, tokenizer, added, data, context, plan,
        schedule=schedule(settings.steps, settings.warmup),
        peak_lr=settings.lr or 0.128 / config.n_embd,
        rate_factors=factors,
    ), params  # fmt: skip


def _check_numbers(settings: Settings) -> None:
    for name in ("steps", "batch_size", "eval_every", "checkpoint_every", "log_every", "keep", "context"):
        if (value := getattr(settings, name)) is not None and not 1 <= value <= 10**9:
            raise InputError(f"--{name.replace('_', '-')}: must be from 1 to 10^9, not {value}")
    for name, most in (("lr", 10), ("clip", math.inf), ("layer_lr_decay", 1)):
        if (value := getattr(settings, name)) is not None and not 0 < value <= most:
            raise InputError(
                f"--{name.replace('_', '-')}: must be above 0"
                + f" and at most {most}" * (most < math.inf)
                + f", not {value}"
            )
    for name, most in (("warmup", 1), ("thaw_warmup", 1), ("weight_decay", 10)):
        if not 0 <= (value := getattr(settings, name)) <= most:
            raise InputError(f"--{name.replace('_', '-')}: must be from 0 to {most}, not {value}")
    if not 0 <= settings.seed < 2**32:
        raise InputError(f"--seed: must be from 0 to 2^32 - 1, not {settings.seed}")
