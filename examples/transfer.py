"""Ways to learn a small text, and what each of them forgets.

    python examples/transfer.py [--tokens 16384] [--steps 100] [--seeds 3] [--out examples/transfer] [--ways full lora]

From scratch, `full`, `first6`, `gradual` and `head`; and LoRA, DoRA, BitFit, and `full` with Muon, each with the same
steps, batches and peak rate, but that adapters have ten times the rate, as in `jaxgpt train`. They learn a few pages of
Python's language reference, which need no new tokens: `new-tokens` would train nothing. Evaluation loss is that of
other pages. What was forgotten is measured on texts that the bundled model writes itself before training, at
temperature 1: the loss on them rises by the Kullback-Leibler divergence of the fine-tuned model from the one that it
was. Writes a table (.md), a picture (.png) and the numbers (.json).
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params
from jaxgpt.freeze.strategies import lora_of
from jaxgpt.training.data.device_batches import eval_batches, train_batches
from jaxgpt.training.data.load import load_data
from jaxgpt.training.data.rows import Windows
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import ADAPTER_RATE, lr_schedule, make_optimizer
from jaxgpt.training.step.step import Rates, TrainState, init_state, make_eval_step, make_train_step

BATCH, CONTEXT, PEAK, EVERY = 8, 128, 1e-3, 10


@dataclass(frozen=True)
class Way:
    """A way to learn."""

    strategy: str
    colour: str
    """One of Okabe and Ito's (2008), but the last, since their yellow is faint."""
    marker: str
    optimizer: str = "adamw"


WAYS = {
    "from scratch": Way("full", "#000000", "o"),
    "full": Way("full", "#0072B2", "v"),
    "first6": Way("first6", "#D55E00", "s"),
    "gradual": Way("gradual", "#009E73", "D"),
    "head": Way("head", "#CC79A7", "^"),
    "lora": Way("lora", "#E69F00", "<"),
    "lora:dora": Way("lora:dora", "#56B4E9", ">"),
    "biases": Way("biases", "#999999", "P"),
    "full, Muon": Way("full", "#882255", "X", "muon"),
}


class Bench:
    """The model, the texts, and steps that are compiled once for each way and phase."""

    def __init__(self, tokens: int, steps: int):
        self.model, tokenizer = jaxgpt.from_pretrained("tiny"), jaxgpt.load_tokenizer("tiny")
        self.start = jax.tree.map(np.asarray, named_params(self.model))
        self.steps, self.schedule = steps, lr_schedule(steps, 0.1)
        whole = load_data(Settings(), tokenizer, CONTEXT)
        all_tokens, held_out = whole.train.corpus.tokens, whole.held_out.rows.begins(0)[0]
        self.data = Windows(all_tokens, 0, min(tokens, held_out), CONTEXT)
        self.held_out_data = Windows(all_tokens, held_out, held_out + 8192, CONTEXT, tail=True)
        written = jaxgpt.generate(
            self.model, np.full((64, 1), tokenizer.eos_token_id), max_new_tokens=CONTEXT, temperature=1.0
        )
        self.held_out = [Batch(**batch) for batch in eval_batches(self.held_out_data, BATCH)]
        own = np.asarray(written, np.int32).reshape(-1, BATCH, CONTEXT + 1)
        self.own = [Batch(rows, np.ones((BATCH, CONTEXT), np.float32)) for rows in own]
        self.eval_steps, self.compiled = {}, {}

    def loss(self, params, batches, model=None) -> float:
        """Nats per token."""
        model = self.model if model is None else model
        if model.config not in self.eval_steps:
            self.eval_steps[model.config] = make_eval_step(model)
        nats, tokens = zip(*(self.eval_steps[model.config](params, batch) for batch in batches), strict=True)
        return float(sum(nats)) / float(sum(tokens))

    def run(self, way: str, seed: int) -> dict:
        """Return the evaluation losses along the way, and the loss on the model's own texts at its end."""
        model, strategy = self.model, WAYS[way].strategy
        if lora := lora_of(strategy, model.config):
            model = jaxgpt.add_lora(model, lora, seed=seed)
        params = self.start if lora is None else jax.tree.map(np.asarray, named_params(model))
        if way == "from scratch":
            params = named_params(jaxgpt.GPT(self.model.config, rngs=jaxgpt.model.gpt.nnx.Rngs(seed)))
        plan = freeze.parse(strategy, model.config, self.steps)
        batches = iter(train_batches(self.data, BATCH, seed)[: self.steps])
        state, curve = None, [(0, self.loss(params, self.held_out, model))]
        for step in range(self.steps):
            if step in {phase.start for phase in plan.phases}:
                params = jax.tree.map(jnp.array, params if state is None else state.params)
                state, train_step = self.enter(way, model, plan, params, state, step)
                factors = {name: ADAPTER_RATE if ".lora_" in name else 1.0 for name in state.trainable}
                rates = Rates(jnp.float32(PEAK), {name: jnp.float32(factor) for name, factor in factors.items()})
            state, _ = train_step(state, Batch(**next(batches)), rates)
            if (step + 1) % EVERY == 0:
                curve.append((step + 1, self.loss(state.params, self.held_out, model)))
        n_trainable = jaxgpt.count_params(state.trainable)
        own = self.loss(state.params, self.own, model)
        return {"way": way, "seed": seed, "trainable": n_trainable, "curve": curve, "own": own}

    def enter(self, way, model, plan, params, state, step):
        """Return the state with which a phase begins, and its step."""
        trainable, frozen = plan.partition(params, step)
        tx = make_optimizer(
            plan, trainable, self.schedule, weight_decay=0.1, clip=1.0, step=step,
            thaw_warmup=max(1, self.steps // 20), kind=WAYS[way].optimizer,
        )  # fmt: skip
        program = plan.text, WAYS[way].optimizer, step
        if program not in self.compiled:
            self.compiled[program] = make_train_step(model, tx, self.schedule, seed=0)
        if state is None:
            state = init_state(trainable, frozen, tx, make_mesh())
        else:
            state = TrainState(state.step, trainable, frozen, freeze.thaw(tx, trainable, state.opt_state))
        return state, self.compiled[program]


def table(results: list[dict], bench: Bench, before: tuple[float, float]) -> str:
    """Markdown: mean and standard deviation over the seeds."""

    def over(values):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.3f} ± {spread:.3f}"

    held_out, own = before
    lines = [
        f"{bench.data.n_tokens:,} tokens to learn from, {bench.held_out_data.n_tokens:,} held out; {bench.steps} steps "
        f"of {BATCH} x {CONTEXT} tokens; {len({r['seed'] for r in results})} seeds; loss in nats per token.",
        "",
        "| | trainable | last evaluation | best evaluation | own texts | forgotten |",
        "|---|---:|---:|---:|---:|---:|",
        f"| before training | | {held_out:.3f} | | {own:.3f} | |",
    ]
    for way in dict.fromkeys(r["way"] for r in results):
        runs = [r for r in results if r["way"] == way]
        trainable = runs[0]["trainable"]
        last, best = [r["curve"][-1][1] for r in runs], [min(loss for _, loss in r["curve"]) for r in runs]
        lost = "" if way == "from scratch" else over([r["own"] - own for r in runs])
        lines.append(
            f"| `{way}` | {trainable:,} | {over(last)} | {over(best)} | {over([r['own'] for r in runs])} | {lost} |"
        )
    return "\n".join(lines) + "\n"


def picture(results: list[dict], tokens: int) -> Figure:
    """Draw the evaluation loss over the steps: thin lines of seeds, a thick mean, without the worst at the right."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    ways = list(dict.fromkeys(r["way"] for r in results))
    for i, axes in enumerate(figure.subplots(1, 2)):
        for way in ways[i if "from scratch" in ways else 0 :]:
            colour, marker = WAYS[way].colour, WAYS[way].marker
            curves = np.asarray([r["curve"] for r in results if r["way"] == way])
            for curve in curves:
                axes.plot(*curve.T, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(*curves.mean(0).T, color=colour, marker=marker, markersize=4, label=way)
        axes.set(xlabel="training step", ylabel="evaluation loss (nats per token)")
        axes.grid(alpha=0.3)
        if i == 0:
            figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"{len(ways)} ways to learn {tokens:,} tokens of Python's language reference")
    return figure


def main() -> None:
    """Run the ways with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="size of the text that is learned")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each run, a multiple of 10")
    parser.add_argument("--seeds", type=int, default=3, help="of the order of the data, and of random weights")
    parser.add_argument("--out", type=Path, default=Path("transfer"), help="name of the files, without suffix")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    arguments = parser.parse_args()
    bench, results = Bench(arguments.tokens, arguments.steps), []
    before = bench.loss(bench.start, bench.held_out), bench.loss(bench.start, bench.own)
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            began = time.perf_counter()
            results.append(bench.run(way, seed))
            last, seconds = results[-1]["curve"][-1][1], time.perf_counter() - began
            print(f"seed {seed}, {way:<12} {last:.3f} after {seconds:.0f} s", flush=True)
    text = table(results, bench, before)
    print(f"\n{text}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text, "utf-8")
    arguments.out.with_suffix(".json").write_text(json.dumps({"before": before, "runs": results}, indent=1), "utf-8")
    picture(results, bench.data.n_tokens).savefig(arguments.out.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
