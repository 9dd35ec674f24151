"""The text on the terminal before the first step of a run and after its last."""

import math
import shlex

import jax

from jaxgpt.convert.errors import escaped
from jaxgpt.mesh import to_host
from jaxgpt.params import count_params
from jaxgpt.sanity.check import expected_counts
from jaxgpt.training.distributed import is_first
from jaxgpt.training.run.eval_state import EvalState
from jaxgpt.training.run.folder import RunFolder
from jaxgpt.training.run.logs import read_metrics
from jaxgpt.training.setup import TrainingInputs
from jaxgpt.training.step.optimizer import ADAPTER_RATE
from jaxgpt.training.step.step import TrainState


def _replicated(inputs: TrainingInputs) -> list[str]:
    """Return a line about heads of keys and values that `tensor` does not divide."""
    n, tensor = inputs.spec.model.config.dims["K"], inputs.spec.mesh.shape["tensor"]
    if n % tensor == 0 or not inputs.spec.model.config.split_qkv:
        return []
    return [
        f"mesh        tensor={tensor} does not divide the {n} heads of keys and values: each device has all of them"
    ]


def sanity_checks(inputs: TrainingInputs, step: int, loss: float) -> str:
    """Return counts, the loss against a uniform guess, what training will do, and what trains and what is frozen."""
    spec, settings, data = inputs.spec, inputs.settings, inputs.data
    config, params = spec.model.config, spec.params
    lines = [
        f"model       {escaped(settings.model)}: {config.n_layer} blocks, width {config.n_embd}, "
        f"{config.n_head} heads, context {spec.context} of {config.n_positions}, vocabulary {config.n_tokens:,}",
        f"parameters  {_counted(count_params(params), sum(expected_counts(config).values()))}",
        f"data        {escaped(data.name)}: {data.train.rows.n_tokens:,} tokens to train on, "
        f"{data.held_out.rows.n_tokens:,} held out",
        f"end         {escaped(inputs.ends)}",
        f"loss        {loss:.3f} nats per held-out {_compared(loss, step, inputs)}",
        _training(inputs),
        *_replicated(inputs),
        _checkpoints(inputs),
        spec.plan.describe(params, config),
        *_rounded(inputs),
        *(f"records     {escaped(note)}" for note in data.remarks),
        *(f"rows        {escaped(note)}" for note in data.train.notes),
    ]
    if inputs.added:
        is_frozen = not {"tok_emb.embedding", "tok_emb.new"} & spec.plan.partition(params, spec.steps)[0].keys()
        stays = ""
        if is_frozen:
            stays = ", and stay there: the token embedding is frozen (+new-tokens in --freeze trains them)"
        says = f"new; their embeddings start at the mean of the others{stays}"
        lines.append(f"tokens      {escaped(', '.join(inputs.added))}: {says}")
    asked = (settings.add_tokens or "").split(",")
    if known := [token for token in asked if token not in inputs.added and token]:
        lines.append(f"tokens      {escaped(', '.join(known))}: in the vocabulary already, nothing to add")
    if config.n_padding:
        lines.append(f"padding     {config.n_padding:,} embedding rows stand for no token: not in loss or text")
    if config.tie_word_embeddings and any(phase.name == "head" for phase in spec.plan.phases):
        lines.append("head        is the token embedding itself, so both train; --untie-head makes it a copy first")
    return "\n".join(lines)


def draw_new_rows(inputs: TrainingInputs, state: TrainState, run: RunFolder) -> None:
    """Keep the rows of the token embedding that tokens were added to, for the picture."""
    rows, new = to_host(state.params["tok_emb.embedding"]), inputs.added
    end = inputs.spec.model.config.n_tokens
    if is_first():
        from jaxgpt.training.report.embedding import NewRows  # late: few runs need it

        NewRows.of(rows[: end - len(new)], rows[:end], new).write(run.plots)


def outcome(
    inputs: TrainingInputs, run: RunFolder, step: int, eval_state: EvalState, before: float | None = None
) -> str:
    """Return how a run ended: its last evaluation and the best one, and where that is."""
    n_steps = inputs.spec.steps
    text = f"all {n_steps} steps are done" if step == n_steps else f"no better evaluation after step {step}"
    evaluations = [line for line in read_metrics(run.metrics) if line["eval_loss"] is not None]
    if before is not None and evaluations:
        text = f"held-out loss {before:.3f} -> {evaluations[-1]['eval_loss']:.3f}"
        if step < n_steps:
            text += f"; stopped early, after {eval_state.evals_since_best} evaluations without a better one"
    if eval_state.best_step == 0 and step:
        text += "\nno evaluation was better than the one before training: a smaller --lr may help"
    elif eval_state.best_step not in (None, step):
        best = run.checkpoints / str(eval_state.best_step)
        text += f"\nbest: {eval_state.best_loss:.3f} at step {eval_state.best_step}, {escaped(str(best))}"
    return text


def how_to_use(
    run: RunFolder,
    best: int | None = None,
    is_chat: bool = False,
    has_adapter: bool = False,
    has_average: bool = False,
) -> str:
    """Return what was written, and how to use it: of several checkpoints the best."""
    ask = "--chat --prompt='Who are you?'" if is_chat else "--prompt=The"
    path = run.checkpoints / str(best) if best and best != run.last_step else run.folder
    model = escaped(shlex.quote(str(path)))
    files = "\n".join(f"  {escaped(str(path))}" for path in run.files if path.exists())
    average = (
        f"\n  jaxgpt convert {model} {escaped(shlex.quote(f'{run.folder}-ema'))} --averaged    # the moving average"
    )
    merged = "    # for transformers" + (", the adapter merged" if has_adapter else "")
    adapter = f"\n  jaxgpt convert {model} {escaped(shlex.quote(f'{run.folder}-peft'))} --to=peft    # for PEFT"
    more = adapter * has_adapter + average * has_average
    return f"""
written:
{files}

use it:
  jaxgpt generate {model} {ask}
  jaxgpt convert {model} {escaped(shlex.quote(f"{run.folder}-hf"))} --to=hf{merged}{more}"""


def _counted(n_params: int, n_expected: int) -> str:
    if n_params == n_expected:
        return f"{n_params:,}, as its config implies"
    return f"{n_params:,}, but its config implies {n_expected:,}; see jaxgpt check"


def _training(inputs: TrainingInputs) -> str:
    settings, resolved = inputs.settings, inputs.resolved
    parts = f" in {settings.accumulate} micro-batches" if settings.accumulate > 1 else ""
    dropout = resolved["dropout"] if isinstance(resolved["dropout"], str) else f"{resolved['dropout']:g}"
    by = "" if settings.optimizer == "adamw" else f", by {settings.optimizer}"
    if settings.lr is None and inputs.spec.model.config.lora:
        by += f", adapters at {ADAPTER_RATE:g} times that"
    warmup = resolved["warmup_steps"]
    rate = f"{resolved['lr']:.3g} at its peak, after {warmup:,} step{'s' * (warmup != 1)} of warm-up"
    pairs = "" if inputs.spec.objective.preference is None else " pairs of answers"
    by += "" if not pairs else f"; {settings.objective}, beta {resolved['beta']:g}, margin {resolved['margin']:g}"
    over = " (--dtype) with float32 weights" if settings.dtype == "bfloat16" else ""
    return (
        f"training    {resolved['steps']:,} steps of {settings.batch_size:,}{pairs} x {resolved['context']:,} tokens"
        f"{parts} in {settings.dtype}{over} on {resolved['mesh']}\n"
        f"lr          {rate}{by}; dropout {dropout}"
    )


def _checkpoints(inputs: TrainingInputs) -> str:
    first, last = (inputs.checkpoint_bytes(step) for step in (0, inputs.spec.steps))
    size = f"{first / 1e6:,.1f} MB" + (f" at first, {last / 1e6:,.1f} MB at last" if last > first else "")
    if not inputs.left_out(0):
        return f"checkpoint  {size}: all parameters, and the optimizer state of those that train"
    model = escaped(inputs.base.model)
    what = "what trains, and its optimizer state; the rest stays in"
    return f"checkpoint  {size}: {what} {model} (--standalone writes all)"


def _rounded(inputs: TrainingInputs) -> list[str]:
    dtype, params = inputs.settings.frozen_dtype, inputs.spec.params
    of = {name: p for name, p in params.items() if str(p.dtype) == dtype}
    if dtype == "float32":
        return []
    n_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(of))
    n = count_params(of)
    return [f"rounded     {n:,} frozen parameters, to {dtype}: {n_bytes / 1e6:,.1f} MB instead of {4 * n / 1e6:,.1f}"]


def _compared(loss: float, step: int, inputs: TrainingInputs) -> str:
    if inputs.spec.objective.preference is not None:
        is_dpo = inputs.settings.objective == "dpo"
        known = f"; a model that favours neither answer has ln(2) = {math.log(2):.3f}" if is_dpo else ""
        return f"preference at step {step}{known}"
    counted = " of the assistant" if inputs.is_chat and inputs.settings.train_on != "all" else ""
    uniform = math.log(inputs.spec.model.config.n_tokens)
    verdict = _verdict(loss, uniform, inputs.is_chat)
    return f"token{counted} at step {step}; a uniform guess has ln(V) = {uniform:.3f}: {verdict}"


def _verdict(loss: float, uniform: float, is_chat: bool) -> str:
    if loss < 0.9 * uniform:
        return "ok"
    if is_chat:
        return "no better than guessing, as is usual where the form of conversations is new to a model"
    return "NO BETTER THAN GUESSING; are weights and tokenizer of one model?"
