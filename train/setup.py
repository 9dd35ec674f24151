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
from jaxgpt.mesh import batch_shards, make_mesh
from jaxgpt.params import count_params, named_params
from jaxgpt.tokenizer import check_vocabulary
from train.data import Data, load_data
from train.optimizer import make_optimizer, schedule
from train.run import Run
from train.settings import Settings
from train.step import State, init_state


@dataclass(frozen=True)
class Setup:
    """What `prepare` makes of the settings."""

    settings: Settings
    mesh: Mesh
    model: jaxgpt.GPT
    tokenizer: Any
    data: Data
    context: int
    plan: freeze.Plan
    lr: optax.Schedule
    tx: optax.GradientTransformation

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says beside the settings."""
        data, params = self.data, named_params(self.model)
        return {
            "data": {
                "source": data.source,
                "sha256": data.digest,
                "train": len(data.train),
                "held_out": len(data.held_out),
            },
            "parameters": {"all": count_params(params), "trainable": count_params(self.plan.partition(params)[0])},
        }


def prepare(settings: Settings, run: Run) -> tuple[Setup, State]:
    """Loads model, tokenizer and text, parses the plan, and makes the state before the first step.

    Raises:
        InputError: the first thing that does not fit.
    """
    _check_numbers(settings)
    run.check(settings)
    mesh = make_mesh(settings.mesh)
    if settings.batch_size % batch_shards(mesh):
        raise InputError(f"--batch-size: {settings.batch_size} can't be divided over {batch_shards(mesh)} devices")
    model = jaxgpt.from_pretrained(settings.model, mesh=mesh, dtype=settings.dtype)
    config = model.config
    context = settings.context or config.n_positions
    if context > config.n_positions:
        raise InputError(f"--context: {context} is more than the model's {config.n_positions} positions")
    plan = freeze.parse(settings.freeze, config)
    tokenizer = jaxgpt.load_tokenizer(settings.tokenizer or settings.model)
    check_vocabulary(tokenizer, config)
    if not 0 < len(tokenizer(settings.prompt)["input_ids"]) < config.n_positions:
        raise InputError(f"--prompt: must have from 1 to {config.n_positions - 1} tokens")
    data = load_data(settings.data, tokenizer, context)
    for tokens in (data.train, data.held_out):
        check_vocabulary(tokenizer, config, tokens)
    trainable, frozen = plan.partition(named_params(model))
    lr = schedule(settings.lr or 0.128 / config.n_embd, settings.steps, settings.warmup)
    tx = make_optimizer(plan, trainable, lr, weight_decay=settings.weight_decay, clip=settings.clip)
    state = init_state(trainable, frozen, tx, mesh)
    kept = settings.keep + 1  # and the one that is being written
    check_space(run.checkpoints, kept * sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state))))
    return Setup(settings, mesh, model, tokenizer, data, context, plan, lr, tx), state


def _check_numbers(settings: Settings) -> None:
    for name in ("steps", "batch_size", "eval_every", "checkpoint_every", "log_every", "keep", "context"):
        if (value := getattr(settings, name)) is not None and not 1 <= value <= 10**9:
            raise InputError(f"--{name.replace('_', '-')}: must be from 1 to 10^9, not {value}")
    for name, most in (("lr", 10), ("clip", math.inf)):
        if (value := getattr(settings, name)) is not None and not 0 < value <= most:
            raise InputError(
                f"--{name}: must be above 0" + f" and at most {most}" * (most < math.inf) + f", not {value}"
            )
    for name, most in (("warmup", 1), ("weight_decay", 10)):
        if not 0 <= (value := getattr(settings, name)) <= most:
            raise InputError(f"--{name.replace('_', '-')}: must be from 0 to {most}, not {value}")
    if not 0 <= settings.seed < 2**32:
        raise InputError(f"--seed: must be from 0 to 2^32 - 1, not {settings.seed}")
