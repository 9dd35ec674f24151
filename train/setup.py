"""Everything a run needs before its first step, and everything that can be refused before its first file."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import convert
from jaxgpt.adapter import add_lora, merge_lora, separate_new_tokens
from jaxgpt.chat import prepare_chat, render
from jaxgpt.convert.command_line.console import busy, say
from jaxgpt.convert.disk import check_space, local_path
from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.formats.orbax import read_base
from jaxgpt.convert.source import BUNDLED, newest_step, resolve, steps_of
from jaxgpt.data.documents import Source
from jaxgpt.data.sources import peek
from jaxgpt.freeze.strategies import check_strategy, lora_of, names_new_tokens
from jaxgpt.int8 import Int8Kernel, quantise
from jaxgpt.mesh import make_mesh, shardings, usual_dtype
from jaxgpt.params import count_params, module_shares, named_params, with_params
from jaxgpt.tokenizer import add_tokens, begin_ids, check_vocabulary, encode_prompt, encode_text
from jaxgpt.training.command import check_settings
from jaxgpt.training.data.load import TrainingData, find_sources, load_data
from jaxgpt.training.distributed import check_processes_agree
from jaxgpt.training.run.base import RunBase
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.run.run_json import IDENTITY, PhaseInfo
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import STEPS, StepSpec, batch_shapes, make_step_spec
from jaxgpt.training.tracking.trackers import check_trackers
from jaxgpt.vocab import match_tokenizer, rebuilt, row_multiple

N_SAMPLES = 3
"""Texts of one time, at most."""

WORDS = 8
"""Tokens of a held-out text that a sample begins with."""


@dataclass(frozen=True)
class TrainingInputs:
    """All that a run needs before its first step."""

    spec: StepSpec
    tokenizer: Any
    added: tuple[str, ...]
    """Tokens that were new to the model and its tokenizer."""
    ends: str
    """The tokens that end a text, and who says so."""
    data: TrainingData
    prompts: list[list[int]]
    """The tokens with which the text samples begin."""
    base: RunBase
    """The model that the run began as, where the checkpoints leave what never trained."""

    @property
    def settings(self) -> Settings:
        return self.spec.settings

    def left_out(self, step: int) -> set[str]:
        """Return the names of the parameters that the checkpoint of a step leaves in the base."""
        frozen = self.spec.plan.partition(self.spec.params, step)[1]
        return set() if self.settings.standalone else frozen.keys() & self.base.unchanged

    def checkpoint_bytes(self, step: int) -> int:
        """Return the bytes of the parameters, moments and averages in the checkpoint of a step."""
        params, left_out = self.spec.params, self.left_out(step)
        state = self.spec.state(step)
        held = [p for name, p in params.items() if name not in left_out]
        moments = jax.tree.leaves((state.opt_state, state.ema))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in (*held, *moments))

    @property
    def is_chat(self) -> bool:
        return self.data.train.corpus.kind.startswith("chat")

    @property
    def has_adapter(self) -> bool:
        config = self.spec.model.config
        return config.lora is not None or config.n_new_tokens > 0

    @property
    def phases(self) -> tuple[PhaseInfo, ...]:
        """The phases of the plan, as run.json has them."""
        spec = self.spec
        parts = [spec.plan.partition(spec.params, phase.start)[0] for phase in spec.plan.phases]
        return tuple(
            PhaseInfo(phase.start, phase.name, count_params(part), module_shares(part, spec.params))
            for phase, part in zip(spec.plan.phases, parts, strict=True)
        )

    def in_words(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without those that the tokenizer begins each text with."""
        begin = begin_ids(self.tokenizer)
        return self.tokenizer.decode(tokens[len(begin) :] if begin and [*tokens[: len(begin)]] == begin else tokens)

    @property
    def resolved(self) -> dict[str, Any]:
        """The values that automatic defaults resolved to, by name."""
        spec, config = self.spec, self.spec.model.config
        rates = sorted({config.embd_pdrop, config.attn_pdrop, config.resid_pdrop})
        return {
            "lr": spec.peak_lr,
            "steps": spec.steps,
            "context": spec.context,
            "mesh": ",".join(f"{axis}={size}" for axis, size in spec.mesh.shape.items()),
            "dropout": rates[0] if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}",
            "rows": self.settings.rows or self.data.train.usual_rows,
            **({} if (how := spec.objective.preference) is None else {"beta": how.beta, "margin": how.margin}),
            "warmup_steps": spec.warmup_steps,
            "end_tokens": ", ".join(map(str, config.end_ids)) or "none",
            "prompts": [self.in_words(prompt) for prompt in self.prompts],
        }


def prepare(settings: Settings, run: RunFolder) -> tuple[TrainingInputs, dict[str, jax.Array]]:
    """Load model, tokenizer and text, and parse the plan; return them with the parameters before the first step.

    Raises:
        InputError: the first thing that does not fit.
    """
    check_settings(settings)
    check_trackers(settings.track)
    run.check(settings)
    run.lock()
    with busy("looking for the data"):
        sources = find_sources(settings)
    with busy(f"looking for {settings.model}"), about("--model"):
        checkpoint = convert.read(resolve(find_model(settings, run)), **settings.how_to_read)
    config = checkpoint.config
    settings = replace(settings, dtype=settings.dtype or usual_dtype(jax.devices()[0], config.n_embd))
    mesh = make_mesh_of_run(settings, run, config.n_embd)
    batch_shapes(settings, mesh, config, packed=False)  # before the model is read, as is the strategy
    with about("--freeze"):
        check_strategy(settings.freeze, config)
    with busy(f"loading {settings.model}"):
        model, tokenizer, added, ends, base = load_model(settings, checkpoint, sources.train, mesh, run)
    data = load_data(settings, tokenizer, settings.context or config.usual_context, sources)
    info = asdict(data.info)
    check_processes_agree({what: info[name] for name, what in IDENTITY.items()})
    for part in (data.train, data.held_out):
        check_vocabulary(tokenizer, model.config, part.corpus.tokens)
    prompts = first_words(settings.prompt, tokenizer, data, config.n_positions // 2)
    if not 0 < len(prompts[0]) < config.n_positions:
        raise InputError(f"--prompt: must have from 1 to {config.n_positions - 1} tokens, not {len(prompts[0])}")
    epoch_steps = len(data.train.rows) / settings.batch_size
    steps = settings.steps or STEPS
    if settings.epochs is not None:
        steps = max(1, math.ceil(settings.epochs * epoch_steps))
    is_packed = "segments" in data.train.rows[0]
    spec = make_step_spec(
        settings, mesh, model, steps=steps, packed=is_packed, epoch_steps=epoch_steps, unchanged=base.unchanged
    )
    params: dict[str, Any] = named_params(model)
    del model
    for name, shape in spec.params.items():
        if params[name].dtype != shape.dtype:  # one after the other: each needs its memory twice
            params[name] = rounded(params[name], shape)
    inputs = TrainingInputs(spec, tokenizer, added, ends, data, prompts, base)
    base.begin(inputs.left_out(0))
    n_kept = settings.keep + 2  # and the best, and the one that is being written
    check_space(run.checkpoints, n_kept * inputs.checkpoint_bytes(steps))
    return inputs, params


def rounded(param: jax.Array, shape: Any) -> jax.Array | Int8Kernel:
    """Return a parameter in another format."""
    if isinstance(shape, Int8Kernel):
        return quantise(param, shape.n_in, jax.tree.map(lambda leaf: leaf.sharding, shape))
    return param.astype(shape.dtype)


def find_model(settings: Settings, run: RunFolder) -> str:
    """Return `--model`, or of a resumed run where its base is now: see `Base.place`."""
    steps = steps_of(run.folder) if settings.resume or settings.resume_anyway else []
    if (run.folder / "base").exists() and steps:
        return str(run.folder / "base")
    if not steps or settings.model in BUNDLED or local_path(settings.model).exists():
        return settings.model
    newest = newest_step(run.folder)
    base = read_base(newest)
    place = None if base is None else base.place(newest)
    return place if place is not None and os.path.exists(place) else settings.model


def make_mesh_of_run(settings: Settings, run: RunFolder, width: int) -> Mesh:
    """Make the mesh that is set. A resumed run's own gives way to the default where there are other devices now.

    Raises:
        InputError: it is no mesh, or does not fit the devices.
    """
    resumes = (settings.resume or settings.resume_anyway) and run.run_json.is_file()
    with about("--mesh"):
        try:
            return make_mesh(settings.mesh, width=width)
        except InputError:
            if not resumes or run.read().settings.get("mesh") != settings.mesh:
                raise
            n_devices = jax.device_count()
            say(f"the run's mesh, {settings.mesh}, does not fit the {n_devices} devices here; the default mesh is used")
            return make_mesh(width=width)


def load_model(
    settings: Settings, checkpoint: convert.Checkpoint, source: Source, mesh: Mesh, run: RunFolder
) -> tuple[jaxgpt.GPT, Any, tuple[str, ...], str, RunBase]:
    """Return the model that training starts from, its tokenizer, the tokens new to both, what ends a text, its base."""
    with about("--mesh"):
        model = jaxgpt.from_pretrained(checkpoint, mesh=mesh, dtype=settings.dtype)
    base = RunBase(checkpoint, run.folder, named_params(model))
    with about("--freeze"):
        lora, config = lora_of(settings.freeze, model.config), model.config
    if config.lora != lora or config.n_new_tokens:
        model = merge_lora(model)
    tokenizer = jaxgpt.load_tokenizer(checkpoint.path if settings.tokenizer is None else settings.tokenizer)
    model, ends = match_tokenizer(model, tokenizer)
    if (p := settings.dropout) is not None:
        config = replace(model.config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
        model = rebuilt(model, config, named_params(model))
    if settings.untie_head:
        model = jaxgpt.untie_head(model)
    added: tuple[str, ...] = ()
    if settings.add_tokens is not None:
        with about("--add-tokens"):
            added = add_tokens(tokenizer, settings.add_tokens.split(","))
    with about("--data"):
        if peek(source).startswith("chat"):
            added += prepare_chat(tokenizer)
        elif not tokenizer.is_fast and peek(source) == "pairs":
            raise InputError(
                "preferences need a tokenizer with a tokenizer.json, which says where in a text a token is"
            )
    if added:
        model = jaxgpt.resize_vocab(model, tokenizer, pad_multiple=row_multiple(mesh), seed=settings.seed)
    if lora is not None and model.config.lora is None:
        model = add_lora(model, lora, seed=settings.seed)
    if names_new_tokens(settings.freeze):
        if not added:
            raise InputError("--freeze: no tokens were added to the model, so that none are new: give --add-tokens")
        model = separate_new_tokens(model, len(added))
    params = named_params(model)
    base.compare(params)
    return with_params(model, jax.device_put(params, shardings(params, mesh))), tokenizer, added, ends, base


def first_words(prompt: str | None, tokenizer: Any, data: TrainingData, longest: int) -> list[list[int]]:
    """Return what the text samples begin with, in tokens.

    The prompt, if one was given. Otherwise “The” and the beginnings of two held-out rows; of conversations, held-out
    questions.

    Args:
        longest: tokens of the further beginnings, at most.
    """
    kind = data.train.corpus.kind
    is_chat = kind.startswith("chat")
    if prompt is not None and is_chat:
        asked = render(tokenizer, [{"role": "user", "content": prompt}], answer=True)
        return [encode_text(tokenizer, asked)]
    if prompt is not None:
        return [encode_prompt(tokenizer, prompt)]
    first = _first_question(data, 0) if is_chat else []
    found = [first or encode_prompt(tokenizer, "The")]  # nothing was asked where the assistant begins
    if kind.endswith("pairs"):
        return found
    rows = data.held_out.rows
    for row in sorted({i * len(rows) // N_SAMPLES for i in range(1, N_SAMPLES)} - {0}):
        words = _first_question(data, row) if is_chat else _first_tokens(data, row, tokenizer, longest)
        found += [words] if 0 < len(words) <= longest and words not in found else []
    return found


def _first_question(data: TrainingData, row: int) -> list[int]:
    """Return what comes before the assistant's first words in a held-out row."""
    corpus, begin = data.held_out.corpus, data.held_out.rows.begins(row)[0]
    assert corpus.counts is not None
    return corpus.tokens[begin : begin + int(np.argmax(corpus.counts[begin:]))].tolist()


def _first_tokens(data: TrainingData, row: int, tokenizer: Any, longest: int) -> list[int]:
    """Return the first tokens of a held-out row, with those that the tokenizer begins each text with."""
    begin, given = data.held_out.rows.begins(row)[0], begin_ids(tokenizer)
    words = data.held_out.corpus.tokens[begin : begin + min(WORDS, longest - len(given))].tolist()
    return words if words[: len(given)] == given else [*given, *words]
