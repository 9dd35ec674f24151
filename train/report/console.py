"""What a run tells a person before its first step and after its last."""

import math
import shlex

import jax

import jaxgpt
from jaxgpt.mesh import batch_sharding, to_host
from jaxgpt.model.gpt import abstract
from jaxgpt.params import count_params, with_params
from jaxgpt.train.data.load import eval_batches
from jaxgpt.train.distributed import any_process, is_first, local_rows, to_devices
from jaxgpt.train.report import plots
from jaxgpt.train.run.eval_state import EvalState
from jaxgpt.train.run.folder import Run
from jaxgpt.train.run.run_json import read_lines
from jaxgpt.train.setup import Setup
from jaxgpt.train.signals import StopSignals
from jaxgpt.train.step.batch import Batch
from jaxgpt.train.step.step import TrainState, make_eval_step

SAMPLE_TOKENS = 120


class Evaluation:
    """The held-out part, and the loss on it."""

    def __init__(self, setup: Setup):
        self._setup, self._step = setup, make_eval_step(setup.model)

    def loss(self, state: TrainState, stop: StopSignals) -> float | None:
        """Mean loss of the held-out tokens that count, in nats; None if a signal came before it was known."""
        setup, nats, tokens = self._setup, 0.0, 0.0
        n = setup.settings.batch_size // setup.settings.accumulate  # what is known to fit
        place = batch_sharding(setup.mesh)
        own = local_rows(place, n)
        for rows in eval_batches(setup.data.held_out.rows, n, own):
            if any_process(stop.requested.is_set()):
                return None
            with jax.set_mesh(setup.mesh):
                more = self._step(state.params, Batch(**to_devices(rows, own, place, n)))
            nats, tokens = nats + float(more[0]), tokens + float(more[1])
        return nats / tokens


def sample(setup: Setup, state: TrainState) -> str:
    """A text that begins with the prompt."""
    model, settings = with_params(setup.model, state.params), setup.settings
    room = min(SAMPLE_TOKENS, model.config.n_positions - len(setup.prompt))
    (out,) = jaxgpt.generate(
        model, [setup.prompt], max_new_tokens=room, temperature=0.8, top_k=40, seed=settings.seed,
        eos_id=setup.tokenizer.eos_token_id if setup.is_chat else None,
    )  # fmt: skip
    return setup.tokenizer.decode(out)


def sanity_checks(setup: Setup, step: int, loss: float) -> str:
    """Counts, the loss against a blind guess, what trains and what is frozen."""
    config, params, data = setup.model.config, setup.params, setup.data
    counted = ", of what the assistant says" * (setup.is_chat and setup.settings.train_on != "all")
    per = f"per held-out token{counted} at step {step}"
    uniform, expected = math.log(config.n_tokens), count_params(abstract(config))
    verdict = "fine" if loss < 0.9 * uniform else "NO BETTER THAN GUESSING; are weights and tokenizer of one model?"
    if setup.is_chat and loss >= 0.9 * uniform:
        verdict = "no better than guessing, as is usual where the form of conversations is new to a model"
    notes = ""
    notes += "".join(f"\nrows        {note}" for note in data.train.notes)
    if setup.added:
        frozen = "tok_emb.embedding" not in setup.plan.partition(params, setup.steps)[0]
        notes += f"\ntokens      {', '.join(setup.added)}: new, at the mean of the others"
        notes += "; as the token embedding is frozen, its new rows STAY there" * frozen
    if known := [token for token in (setup.settings.add_tokens or "").split(",") if token not in setup.added and token]:
        notes += f"\ntokens      {', '.join(known)}: in the vocabulary already, nothing to add"
    if config.n_padding:
        notes += f"\npadding     {config.n_padding:,} rows stand for no token: not in loss or text"
    if config.tie_word_embeddings and any(phase.name == "head" for phase in setup.plan.phases):
        notes += "\nhead        is the token embedding itself, so that both train; --untie-head makes it a copy first"
    return f"""\
model       {setup.settings.model}: {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, \
context {setup.context} of {config.n_positions}, vocabulary {config.n_tokens:,}
parameters  {count_params(params):,}, as the config says {expected:,}
data        {data.name}: {data.train.rows.n_tokens:,} tokens to train on, {data.held_out.rows.n_tokens:,} held out
loss        {loss:.3f} nats {per}; a blind guess has ln(V) = {uniform:.3f}: {verdict}
{setup.plan.describe(params, config)}{notes}"""


def draw_new_rows(setup: Setup, state: TrainState, run: Run) -> None:
    """The picture of the token embedding before and after tokens were added."""
    rows, new = to_host(state.params["tok_emb.embedding"]), setup.added
    end = setup.model.config.n_tokens
    if is_first():
        plots.save(plots.embedding_rows(rows[: end - len(new)], rows[:end], new), run.plots / "embedding.png")


def outcome(setup: Setup, run: Run, step: int, eval_state: EvalState, before: float | None = None) -> str:
    """How a run ended: its last evaluation and the best one, and where that lies."""
    text = f"all {setup.steps} steps are made" if step == setup.steps else f"no better evaluation after step {step}"
    evaluations = [line for line in read_lines(run.metrics) if line["eval_loss"] is not None]
    if before is not None and evaluations:
        text = f"evaluation loss {before:.3f} -> {evaluations[-1]['eval_loss']:.3f}"
        text += f"; stopped early, after {eval_state.evals_since_best} evaluations without a better one" * (
            step < setup.steps
        )
    if eval_state.best_step == 0 and step:
        text += "\nno evaluation was better than the one before training: a smaller --lr may help"
    elif eval_state.best_step not in (None, step):
        best = run.checkpoints / str(eval_state.best_step)
        text += f"\nbest: {eval_state.best_loss:.3f} at step {eval_state.best_step}, {best}"
    return text


def written(run: Run, best: int | None = None, chat: bool = False) -> str:
    """Where everything is, and how to use it: of several checkpoints the best."""
    ask = "--chat --prompt='Who are you?'" if chat else "--prompt='The'"
    place = run.checkpoints / str(best) if best and best != run.last_step else run.folder
    folder = shlex.quote(str(place))
    files = "\n".join(f"  {path}" for path in run.files if path.exists())
    return f"""
written:
{files}

use it:
  python -m jaxgpt generate {folder} {ask}
  python -m convert {folder} {shlex.quote(f"{run.folder}-hf")} --to=hf    # for transformers"""
