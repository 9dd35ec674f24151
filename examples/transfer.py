"""Five ways to learn a small text, and what each of them forgets.

    python examples/transfer.py [--tokens 16384] [--steps 100] [--seeds 3] [--out examples/transfer]

From scratch, `full`, `first6`, `gradual` and `head`, each with the same steps, batches and peak rate, on a few pages of
Python's language reference. Evaluation loss is that of other pages. What was forgotten is measured on texts that the
bundled model writes itself before training, at temperature 1: the loss on them rises by the Kullback-Leibler divergence
of the fine-tuned model from the one that it was. Writes a table (.md), a picture (.png) and the numbers (.json).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params
from jaxgpt.train.data.device_batches import eval_batches, train_batches
from jaxgpt.train.data.load import load_data
from jaxgpt.train.data.rows import Windows
from jaxgpt.train.settings import Settings
from jaxgpt.train.step.batch import Batch
from jaxgpt.train.step.optimizer import lr_schedule, make_optimizer
from jaxgpt.train.step.step import Rates, TrainState, init_state, make_eval_step, make_train_step

BATCH, CONTEXT, PEAK, EVERY = 8, 128, 1e-3, 10
WAYS = {"from scratch": "full", "full": "full", "first6": "first6", "gradual": "gradual", "head": "head"}
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito 2008
MARKERS = "ovsD^"


class Bench:
    """The model, the texts, and steps that are compiled once for each strategy and phase."""

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
        self.eval_step, self.compiled = make_eval_step(self.model), {}

    def loss(self, params, batches) -> float:
        """Nats per token."""
        nats, tokens = zip(*(self.eval_step(params, batch) for batch in batches), strict=True)
        return float(sum(nats)) / float(sum(tokens))

    def run(self, way: str, seed: int) -> dict:
        """Return the evaluation losses along the way, and the loss on the model's own texts at its end."""
        params = self.start
        if way == "from scratch":
            params = named_params(jaxgpt.GPT(self.model.config, rngs=jaxgpt.model.gpt.nnx.Rngs(seed)))
        plan = freeze.parse(WAYS[way], self.model.config, self.steps)
        batches = iter(train_batches(self.data, BATCH, seed)[: self.steps])
        state, curve = None, [(0, self.loss(params, self.held_out))]
        for step in range(self.steps):
            if step in {phase.start for phase in plan.phases}:
                params = jax.tree.map(jnp.array, params if state is None else state.params)
                state, train_step = self.enter(plan, params, state, step)
                rates = Rates(jnp.float32(PEAK), {name: jnp.float32(1) for name in state.trainable})
            state, _ = train_step(state, Batch(**next(batches)), rates)
            if (step + 1) % EVERY == 0:
                curve.append((step + 1, self.loss(state.params, self.held_out)))
        return {"way": way, "seed": seed, "curve": curve, "own": self.loss(state.params, self.own)}

    def enter(self, plan, params, state, step):
        """Return the state with which a phase begins, and its step."""
        trainable, frozen = plan.partition(params, step)
        tx = make_optimizer(
            plan, trainable, self.schedule, weight_decay=0.1, clip=1.0, step=step, thaw_warmup=self.steps // 20
        )
        if (plan.text, step) not in self.compiled:
            self.compiled[plan.text, step] = make_train_step(self.model, tx, self.schedule, seed=0)
        if state is None:
            state = init_state(trainable, frozen, tx, make_mesh())
        else:
            state = TrainState(state.step, trainable, frozen, freeze.thaw(tx, trainable, state.opt_state))
        return state, self.compiled[plan.text, step]


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
    for way, text in WAYS.items():
        runs = [r for r in results if r["way"] == way]
        plan = freeze.parse(text, bench.model.config, bench.steps)
        trainable = jaxgpt.count_params(plan.partition(bench.start, bench.steps)[0])
        last, best = [r["curve"][-1][1] for r in runs], [min(loss for _, loss in r["curve"]) for r in runs]
        lost = "" if way == "from scratch" else over([r["own"] - own for r in runs])
        lines.append(
            f"| `{way}` | {trainable:,} | {over(last)} | {over(best)} | {over([r['own'] for r in runs])} | {lost} |"
        )
    return "\n".join(lines) + "\n"


def picture(results: list[dict], tokens: int) -> Figure:
    """Draw the evaluation loss over the steps: thin lines of seeds, a thick mean, without the worst at the right."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, 2)):
        for way, colour, marker in list(zip(WAYS, COLOURS, MARKERS, strict=True))[i:]:
            curves = np.asarray([r["curve"] for r in results if r["way"] == way])
            for curve in curves:
                axes.plot(*curve.T, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(*curves.mean(0).T, color=colour, marker=marker, markersize=4, label=way)
        axes.set(xlabel="training step", ylabel="evaluation loss (nats per token)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Five ways to learn {tokens:,} tokens of Python's language reference")
    return figure


def main() -> None:
    """Run all ways and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="size of the text that is learned")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each run, a multiple of 10")
    parser.add_argument("--seeds", type=int, default=3, help="of the order of the data, and of random weights")
    parser.add_argument("--out", type=Path, default=Path("transfer"), help="name of the files, without suffix")
    arguments = parser.parse_args()
    bench, results = Bench(arguments.tokens, arguments.steps), []
    before = bench.loss(bench.start, bench.held_out), bench.loss(bench.start, bench.own)
    for seed in range(arguments.seeds):
        for way in WAYS:
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
