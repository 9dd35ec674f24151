"""Families beside transformers in one run: python benchmarks/families.py [--repeats 5] [--only gpt2]

The step of `full` and of `first6` (PyTorch: eager, fused AdamW, the same parameters frozen), and greedy tokens per
second of a whole call, for shapes of 125M to 160M parameters with random weights, the same for both. They take turns,
so that other load on the machine affects both; medians. Needs the `torch` extra.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import jaxgpt
from jaxgpt import freeze, make_mesh, named_params
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.families.hf_config import config_to_hf
from jaxgpt.convert.published import config_of_published
from jaxgpt.training.step.batch import Batch
from jaxgpt.training.step.optimizer import lr_schedule, make_optimizer
from jaxgpt.training.step.step import Rates, init_state, make_train_step

SHAPES = ("gpt2", "EleutherAI/pythia-160m", "HuggingFaceTB/SmolLM2-135M")
STRATEGIES = ("full", "first6")
PROMPT, NEW, BATCHES = 32, 64, (1, 8)


def reference(name: str) -> Any:
    """Make transformers' model of a published shape, with random weights."""
    fields = config_to_hf(config_of_published(name))
    family = FAMILIES[fields["model_type"]]
    config = transformers.AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    for field in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        setattr(config, field, 0.0)
    return getattr(transformers, family.architecture)(config)


def our_step(model: jaxgpt.GPT, text: str, tokens: np.ndarray) -> Any:
    """Return a function that makes one step, and the seconds of its compilation."""
    plan, rate = freeze.parse(text, model.config, 3000), lr_schedule(3000, 0.1)
    trainable, frozen = plan.partition({name: jnp.array(p) for name, p in named_params(model).items()})
    tx = make_optimizer(plan, trainable, rate, weight_decay=0.1, clip=1.0)
    state = init_state(trainable, frozen, tx, make_mesh(devices=jax.devices()[:1]))
    rates = Rates(jnp.float32(1e-4), {name: jnp.float32(1) for name in trainable})
    # most steps of a long run measure no updates
    step = make_train_step(model, tx, rate, 0, jax.tree.map(lambda leaf: leaf.sharding, state), measures=False)
    compiled = step.lower(state, Batch(jax.ShapeDtypeStruct(tokens.shape, np.int32)), rates).compile()
    kept = [state]

    def run() -> None:
        kept[0], metrics = compiled(kept[0], Batch(tokens), rates)
        jax.block_until_ready((kept[0], metrics))

    return run


def their_step(model: Any, text: str, config: jaxgpt.GPTConfig, tokens: np.ndarray, dtype: str) -> Any:
    """Return a function that makes one step in PyTorch, with the same parameters frozen; half precision is autocast."""
    dialect = FAMILIES[config.model_type].dialect
    ours = {name: row.ours for row in dialect.expand(config) for name in row.names}
    plan = freeze.parse(text, config, 3000)
    trainable, _ = plan.partition(dict.fromkeys(ours.values()))
    for name, param in model.named_parameters():
        bare = dialect.bare(name)
        param.requires_grad = ours[dialect.renamed.get(bare, bare)] in trainable
        param.grad = None
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.tensor(tokens, dtype=torch.long)

    def run() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return run


def our_text(model: jaxgpt.GPT, prompts: np.ndarray) -> Any:
    """Return a function that continues prompts greedily."""
    return lambda: jaxgpt.generate(model, prompts, max_new_tokens=NEW, eos_id=())


def their_text(model: Any, prompts: np.ndarray) -> Any:
    """Return a function that does so in transformers."""
    ids = torch.tensor(prompts, dtype=torch.long)
    how = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}

    def run() -> None:
        model.eval()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **how)

    return run


def in_turn(ours: Any, theirs: Any, repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of both, and of the ratios theirs / ours of each turn."""
    seconds: list[tuple[float, float]] = []
    for i in range(repeats + 1):
        turn = []
        for run in (ours, theirs):
            began = time.perf_counter()
            run()
            turn.append(time.perf_counter() - began)
        if i:
            seconds.append((turn[0], turn[1]))
    mine, others = zip(*seconds, strict=True)
    return statistics.median(mine), statistics.median(others), statistics.median(b / a for a, b in seconds)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="in bfloat16 only steps")
    parser.add_argument("--only", nargs="+", metavar="SHAPE", default=SHAPES)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {packages}")
    print(
        f"{arguments.batch_size} x {arguments.context} tokens a step, {arguments.dtype}; "
        f"medians of {arguments.repeats} turns\n"
    )
    print("| shape | what | transformers | jaxgpt | ratio |\n|---|---|---:|---:|---:|")
    for name in arguments.only:
        theirs = reference(name)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            model = jaxgpt.from_pretrained(folder, dtype=arguments.dtype)
        draw = np.random.default_rng(0)
        tokens = draw.integers(0, model.config.n_tokens, (arguments.batch_size, arguments.context + 1)).astype(np.int32)
        for text in STRATEGIES:
            pair = our_step(model, text, tokens), their_step(theirs, text, model.config, tokens, arguments.dtype)
            mine, others, ratio = in_turn(*pair, arguments.repeats)
            print(f"| {name} | step of `{text}` | {others:.2f} s | {mine:.2f} s | {ratio:.2f} |", flush=True)
        for batch in BATCHES if arguments.dtype == "float32" else ():
            prompts = draw.integers(0, model.config.n_tokens, (batch, PROMPT)).astype(np.int32)
            mine, others, ratio = in_turn(our_text(model, prompts), their_text(theirs, prompts), arguments.repeats)
            speed = [f"{batch * NEW / seconds:.1f} tokens/s" for seconds in (others, mine)]
            print(f"| {name} | greedy, batch {batch} | {speed[0]} | {speed[1]} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
