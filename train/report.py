"""What a run tells a person before its first step and after its last."""

import math
import shlex

import jax
import numpy as np

import jaxgpt
from jaxgpt.mesh import batch_sharding
from jaxgpt.params import count_params, with_params
from jaxgpt.pretrained import abstract
from train import plots
from train.data import eval_batches
from train.run import Run
from train.setup import Setup
from train.step import State, make_eval_step

SAMPLE_TOKENS = 120


class Evaluation:
    """The held-out text, and the loss on it."""

    def __init__(self, setup: Setup):
        batches = eval_batches(setup.data, setup.context, setup.settings.batch_size)
        self._batches = [jax.device_put(batch, batch_sharding(setup.mesh)) for batch in batches]
        self._tokens = sum(float(weights.sum()) for _, weights in batches)
        self._step = make_eval_step(setup.model)

    def loss(self, state: State) -> float:
        """Mean loss of the held-out tokens, in nats."""
        return sum(float(self._step(state.params, *batch)) for batch in self._batches) / self._tokens


def sample(setup: Setup, state: State) -> str:
    """A text that begins with the prompt."""
    model, settings = with_params(setup.model, state.params), setup.settings
    ids = np.asarray([setup.tokenizer(settings.prompt)["input_ids"]], np.int32)
    room = min(SAMPLE_TOKENS, model.config.n_positions - ids.shape[1])
    out = jaxgpt.generate(model, ids, max_new_tokens=room, temperature=0.8, top_k=40, seed=settings.seed)
    return setup.tokenizer.decode(np.asarray(out[0]))


def sanity_checks(setup: Setup, step: int, loss: float) -> str:
    """Counts, the loss against a blind guess, what trains and what is frozen."""
    config, params, data = setup.model.config, setup.params, setup.data
    uniform, expected = math.log(config.n_tokens), count_params(abstract(config))
    verdict = "fine" if loss < 0.9 * uniform else "NO BETTER THAN GUESSING; are weights and tokenizer of one model?"
    notes = ""
    if setup.added:
        frozen = "tok_emb.embedding" not in setup.plan.partition(params, setup.settings.steps)[0]
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
data        {data.source}: {len(data.train):,} tokens to train on, {len(data.held_out):,} held out
loss        {loss:.3f} nats per held-out token at step {step}; a blind guess has ln(V) = {uniform:.3f}: {verdict}
{setup.plan.describe(params, config)}{notes}"""


def draw_new_rows(setup: Setup, state: State, run: Run) -> None:
    """The picture of the token embedding before and after tokens were added."""
    rows, new = np.asarray(state.params["tok_emb.embedding"]), setup.added
    end = setup.model.config.n_tokens
    plots.save(plots.embedding_rows(rows[: end - len(new)], rows[:end], new), run.plots / "embedding.png")


def written(run: Run) -> str:
    """Where everything is, and how to use it."""
    folder = shlex.quote(str(run.folder))
    files = "\n".join(f"  {path}" for path in run.files if path.exists())
    return f"""
written:
{files}

use it:
  python -m jaxgpt generate {folder} --prompt='The'
  python -m convert {folder} {shlex.quote(f"{run.folder}-hf")} --to=hf    # for transformers"""
