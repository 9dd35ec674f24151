"""Ways to learn a small text, and what each of them forgets.

    python examples/transfer.py [--tokens 16384] [--steps 100] [--seeds 3] [--out examples/transfer] [--ways full lora]
    python examples/transfer.py --draw examples/transfer-small.json    # only the picture, from the numbers

From scratch, `full`, `first6`, `gradual` and `head`; and LoRA, DoRA, BitFit, and `full` with Muon, each with the same
steps, batches and peak rate, but that adapters have ten times the rate, as in `jaxgpt train`. They learn a few pages of
Python's language reference, which need no new tokens: `new-tokens` would train nothing. Evaluation loss is that of
other pages. What was forgotten is measured on texts that the bundled model writes itself before training, at
temperature 1: the loss on them rises by the Kullback-Leibler divergence of the fine-tuned model from the one that it
was. Writes a table (.md), a picture (.svg) and the numbers (.json).
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

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params
from jaxgpt.freeze.strategies import lora_of
from jaxgpt.training.data.device_batches import eval_batches, train_batches
from jaxgpt.training.data.load import load_data
from jaxgpt.training.data.rows import Windows
from jaxgpt.training.report.figure import WIDE, Axes, Drawing, Figure, Label, frame, legend, y_range
from jaxgpt.training.report.figure import Path as Line
from jaxgpt.training.report.templates import save_figure
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import ADAPTER_RATE, lr_schedule, make_optimizer
from jaxgpt.training.step.step import Rates, TrainState, init_state, make_eval_step, make_train_step

BATCH, CONTEXT, PEAK, EVERY = 8, 128, 1e-3, 10


@dataclass(frozen=True)
class Way:
    """A way to learn."""

    strategy: str
    style: str
    """Its colour in the pictures."""
    optimizer: str = "adamw"


WAYS = {
    "from scratch": Way("full", "s8"),
    "full": Way("full", "s0"),
    "first6": Way("first6", "s1"),
    "gradual": Way("gradual", "s2"),
    "head": Way("head", "s3"),
    "lora": Way("lora", "s4"),
    "lora:dora": Way("lora:dora", "s5"),
    "biases": Way("biases", "s6"),
    "full, Muon": Way("full", "s7", "muon"),
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


def picture(results: list[dict]) -> Figure:
    """Draw the evaluation loss over the steps: faint lines of seeds, a mean, and without the worst at the right."""
    ways = list(dict.fromkeys(r["way"] for r in results))
    curves = {way: np.asarray([r["curve"] for r in results if r["way"] == way]) for way in ways}
    marks, top = legend([(f"line {WAYS[way].style}", way) for way in ways], 0, WIDE)
    best = [way for way in ways if way != "from scratch"]
    for left, width, shown in ((46, 290, ways), (396, 330, best)):
        values = [y for way in shown for y in curves[way][:, :, 1].ravel()]
        axes = Axes(left, top + 26, width, 330, (0.0, float(curves[ways[0]][0, -1, 0])), y_range(values))
        frame(axes)
        for way in shown:
            for curve in curves[way]:
                axes.add(Line(axes.line(curve), f"line {WAYS[way].style} faint"))
            axes.add(Line(axes.line(curves[way].mean(0)), f"line {WAYS[way].style}"))
        marks += axes.marks
    y = -1e9  # the ends at the right have their names, from top to bottom
    for way in sorted(best, key=lambda way: -curves[way].mean(0)[-1, 1]):
        y = max(y + 15, axes.y(curves[way].mean(0)[-1, 1]) + 4.5)
        marks.append(Label(axes.right + 8, y, way, f"value {WAYS[way].style}"))
    marks.append(Label(0, top + 10, "evaluation loss, nats per token"))
    drawing = Drawing(WIDE, axes.bottom + 46, tuple(marks))
    ends = {way: curves[way].mean(0)[-1, 1] for way in ways}
    lowest = min(ends, key=lambda way: ends[way])
    title = f"{lowest} ends lowest, at {ends[lowest]:.2f} nats per token"
    return Figure("transfer", title, f"Evaluation losses of {len(ways)} ways to learn a text.", "", drawing, drawing)


def main() -> None:
    """Run the ways with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="size of the text that is learned")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each run, a multiple of 10")
    parser.add_argument("--seeds", type=int, default=3, help="of the order of the data, and of random weights")
    parser.add_argument("--out", type=Path, default=Path("transfer"), help="name of the files, without suffix")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--draw", type=Path, help="only draw the numbers of this .json again, beside it")
    arguments = parser.parse_args()
    if arguments.draw:
        runs = json.loads(arguments.draw.read_text("utf-8"))["runs"]
        save_figure(picture(runs), arguments.draw.with_suffix(".svg"))
        return
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
    save_figure(picture(results), arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
