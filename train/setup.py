"""Everything a run needs before its first step, and everything that can be refused before its first file."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import convert
from jaxgpt.chat import prepare_chat, render
from jaxgpt.convert.disk import check_space
from jaxgpt.convert.errors import InputError, about
from jaxgpt.data.sources import peek
from jaxgpt.mesh import make_mesh, shardings
from jaxgpt.params import count_params, module_shares, named_params, with_params
from jaxgpt.tokenizer import add_tokens, check_vocabulary
from jaxgpt.train.bounds import check_numbers
from jaxgpt.train.data.load import Data, find_source, load_data, look_for
from jaxgpt.train.distributed import check_processes_agree
from jaxgpt.train.run.folder import IDENTITY, Run
from jaxgpt.train.settings import Settings
from jaxgpt.train.step.spec import STEPS, StepSpec, batch_shapes, make_step_spec
from jaxgpt.train.tracking.trackers import check_trackers
from jaxgpt.vocab import mark_padding, rebuilt, row_multiple


@dataclass(frozen=True)
class Setup(StepSpec):
    """What `prepare` makes of the settings."""

    tokenizer: Any
    added: tuple[str, ...]
    """Tokens that were new to the model and its tokenizer."""
    data: Data
    prompt: list[int]
    """What the text samples begin with."""

    @property
    def is_chat(self) -> bool:
        return self.data.train.corpus.kind == "chat"

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says beside the settings."""
        params, phases = self.params, []
        for phase in self.plan.phases:
            trainable = self.plan.partition(params, phase.start)[0]
            phases.append(
                {
                    "start": phase.start,
                    "name": phase.name,
                    "trainable": count_params(trainable),
                    "trains": module_shares(trainable, params),
                }
            )
        return {
            "steps": self.steps,
            "data": self.data.facts,
            "parameters": {"all": count_params(params), "trainable": phases[-1]["trainable"]},
            "phases": phases,
        }


def load_model(settings: Settings, mesh: Mesh) -> tuple[jaxgpt.GPT, Any, tuple[str, ...]]:
    """The model that training starts from, its tokenizer, and the tokens that are new to both."""
    model = jaxgpt.from_pretrained(settings.model, mesh=mesh, dtype=settings.dtype)
    tokenizer = jaxgpt.load_tokenizer(settings.tokenizer or settings.model)
    check_vocabulary(tokenizer, model.config)
    model = mark_padding(model, tokenizer)
    if settings.dropout is not None:
        p = settings.dropout
        dropping = replace(model.config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
        model = rebuilt(model, dropping, named_params(model))
    if settings.untie_head:
        model = jaxgpt.untie_head(model)
    added: tuple[str, ...] = ()
    if settings.add_tokens is not None:
        with about("--add-tokens"):
            added = add_tokens(tokenizer, settings.add_tokens.split(","))
    with about("--data"):
        kind = peek(find_source(settings))
    if kind == "chat":
        added += prepare_chat(tokenizer)
    if added:
        model = jaxgpt.resize_vocab(model, tokenizer, pad_multiple=row_multiple(mesh), seed=settings.seed)
    params = named_params(model)
    return with_params(model, jax.device_put(params, shardings(params, mesh))), tokenizer, added


def prepare(settings: Settings, run: Run) -> tuple[Setup, dict[str, jax.Array]]:
    """Loads model, tokenizer and text, and parses the plan; with the parameters before the first step.

    Raises:
        InputError: the first thing that does not fit.
    """
    check_numbers(settings)
    check_trackers(settings.track)
    run.check(settings)
    for flag, source in (("--data", find_source(settings)), ("--eval-data", settings.eval_data)):
        if source is not None:
            look_for(flag, source)
    config = convert.read(settings.model).config
    with about("--mesh"):
        mesh = make_mesh(settings.mesh, width=config.n_embd)
    batch_shapes(settings, mesh, config.n_positions, packed=False)  # before the model is read
    model, tokenizer, added = load_model(settings, mesh)
    data = load_data(settings, tokenizer, settings.context or config.n_positions)
    check_processes_agree({what: data.facts[name] for name, what in IDENTITY.items()})
    for part in (data.train, data.held_out):
        check_vocabulary(tokenizer, model.config, part.corpus.tokens)
    prompt = first_words(settings.prompt, tokenizer, data)
    if not 0 < len(prompt) < config.n_positions:
        raise InputError(f"--prompt: must have from 1 to {config.n_positions - 1} tokens, not {len(prompt)}")
    epoch_steps = len(data.train.rows) / settings.batch_size
    steps = settings.steps or STEPS
    if settings.epochs is not None:
        steps = max(1, math.ceil(settings.epochs * epoch_steps))
    packed = "segments" in data.train.rows[0]
    spec = make_step_spec(settings, mesh, model, steps=steps, packed=packed, epoch_steps=epoch_steps)
    params = named_params(model)
    trains = spec.plan.partition(params, steps)[0]
    kept = settings.keep + 2  # and the best, and the one that is being written
    check_space(run.checkpoints, kept * sum(p.nbytes for p in (*params.values(), *trains.values(), *trains.values())))
    return Setup(**vars(spec), tokenizer=tokenizer, added=added, data=data, prompt=prompt), params


def first_words(prompt: str | None, tokenizer: Any, data: Data) -> list[int]:
    """What the text samples begin with: of conversations a question, by default the first that is held out."""
    if data.train.corpus.kind != "chat":
        return tokenizer("The" if prompt is None else prompt)["input_ids"]
    if prompt is not None:
        asked = render(tokenizer, [{"role": "user", "content": prompt}], answer=True)
        return tokenizer(asked, add_special_tokens=False)["input_ids"]
    corpus, begin = data.held_out.corpus, data.held_out.rows.begins(0)[0]
    assert corpus.counts is not None
    return corpus.tokens[begin : begin + int(np.argmax(corpus.counts[begin:]))].tolist()
