"""The report of a run: one HTML page that needs nothing else, made from the files of its folder."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from jaxgpt.convert.disk import temporary_sibling
from jaxgpt.train.report import plots
from jaxgpt.train.report.markup import note, picture, pre, table, text
from jaxgpt.train.report.timeline import short
from jaxgpt.train.run.logs import best_step, read_lines
from jaxgpt.train.run.run_json import RunInfo
from jaxgpt.train.settings import Settings

Lines = list[dict[str, Any]]
TEMPLATE = Path(__file__).parent / "report.html"
PICTURES = {
    "loss.png": (
        "Line chart of the loss over the training steps.",
        "The loss on the text that is trained on, and on text that is held out. A phase begins at a vertical line.",
    ),
    "updates.png": (
        "Heatmap of the weight updates by layer and training step.",
        "How far each layer moved: the norm of a step's update over the norm of the weights. A column shows the step "
        "at its right edge and stands for those since the one logged before. Hatched layers were frozen; what trains "
        "and didn't move, as at a learning rate of 0, is as dark as can be.",
    ),
    "freeze.png": (
        "Map of what trains, by layer and training step.",
        "What the freezing strategy lets train, over all planned steps, and the number of parameters in each phase.",
    ),
    "embedding.png": (
        "Rows of the token embedding before and after tokens were added.",
        "The last rows of the token embedding before and after the vocabulary grew; new rows are framed.",
    ),
}
"""What each says to someone who can't see it, and to everyone."""


def write_report(folder: Path) -> Path:
    """Draws the pictures of a run and writes its `report.html`, of one that was killed too.

    Raises:
        InputError: a folder that holds no run.
    """
    facts = asdict(RunInfo.read(folder))
    metrics, updates = read_lines(folder / "metrics.jsonl"), read_lines(folder / "updates.jsonl")
    draw(folder / "plots", metrics, updates, facts["phases"], facts["steps"])
    page = Template(TEMPLATE.read_text("utf-8")).substitute(
        title=text(f"Fine-tuning of {facts['settings'].get('model', 'a model')}"),
        subtitle=text(f"--freeze={facts['settings'].get('freeze')}, text: {facts['data'].get('source', 'unknown')}"),
        numbers=_numbers(facts, metrics),
        pictures=_pictures(folder / "plots"),
        samples=_samples(folder / "samples.md"),
        sanity=pre(facts["sanity"], "wide", "checks") if facts.get("sanity") else note("run.json has none."),
        phases=_phases(facts),
        settings=_settings(facts["settings"]),
        machine=_machine(facts),
        commands=_commands(folder, facts, metrics),
    )
    path = folder / "report.html"
    with temporary_sibling(path) as temporary:
        temporary.write_text(page, "utf-8")
        temporary.replace(path)
    return path


def draw(folder: Path, metrics: Lines, updates: Lines, phases: Sequence[plots.Phase], steps: int) -> None:
    """Makes the pictures for which there is something to draw, and removes those for which there is nothing."""
    made = {}
    if updates := [line for line in updates if line["step"] > 0 and line.get("updates")]:
        moves = [line["updates"] for line in updates]
        modules = list(phases[0]["trains"] if phases else moves[0])
        made["updates.png"] = plots.update_heatmap([line["step"] for line in updates], moves, modules, phases)
    if metrics:
        made["loss.png"] = plots.loss_curves(metrics, phases)
    if phases:
        made["freeze.png"] = plots.freeze_map(phases, max(steps, phases[-1]["start"] + 1))
    for name in ("updates.png", "loss.png", "freeze.png"):
        (folder / name).unlink(missing_ok=True)
    for name, figure in made.items():
        plots.save(figure, folder / name)


def _numbers(facts: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The result in a few numbers."""
    losses, speeds, peaks = (
        [line[key] for line in metrics if line.get(key) is not None]
        for key in ("eval_loss", "tokens_per_s", "peak_memory")
    )
    loss, says = "not known", "metrics.jsonl holds no evaluation"
    if losses:
        loss = " → ".join(f"{loss:.3f}" for loss in (losses[0], losses[-1])[: len(losses)])
        perplexities = " → ".join(f"{_exp(loss):,.1f}" for loss in (losses[0], losses[-1])[: len(losses)])
        says = f"nats per token; perplexity {perplexities}" + "; not evaluated since" * (len(losses) == 1)
        if losses[-1] > min(losses):
            step = best_step(metrics)
            says += f"; best {min(losses):.3f} " + (f"at step {step}" if step else "before training")
    trainable = [phase["trainable"] for phase in facts["phases"]] or [facts["parameters"].get("trainable", 0)]
    total, planned = facts["parameters"].get("all", 0), facts["steps"]
    share = f"{trainable[-1] / total:.1%}: {trainable[-1]:,} of {total:,}" if total else f"{trainable[-1]:,}"
    if len(trainable) > 1:
        share += f"; {trainable[0]:,} in the first of {len(trainable)} phases"
    boxes = (
        ("Loss on held-out text", loss, says),
        ("Steps", f"{metrics[-1]['step']:,}" if metrics else "not known", f"of {planned:,}"),
        ("Trained parameters", short(trainable[-1]), share),
        ("Speed", f"{median(speeds):,.0f}" if speeds else "not known", "tokens per second, median"),
        ("Memory", f"{max(peaks) / 2**30:.2f} GiB" if peaks else "not known", "at its peak"),
    )
    return "\n".join(f"<div><dt>{text(a)}</dt><dd>{text(b)}</dd><dd>{text(c)}</dd></div>" for a, b, c in boxes)


def _pictures(folder: Path) -> str:
    optional = ("embedding.png",)
    shown = [name for name in PICTURES if name not in optional or (folder / name).exists()]
    return "\n".join(picture(folder / name, *PICTURES[name]) for name in shown)


def _samples(path: Path) -> str:
    """Both texts of samples.md, beside each other."""
    whole = path.read_text("utf-8", "replace") if path.is_file() else ""
    before, after, rest = (*re.split(r"^## After (\d+) steps$", whole, maxsplit=1, flags=re.M), "", "")[:3]
    texts = {"Before training": before.removeprefix("## Before training").strip("\n")}
    texts |= {f"After {after} steps": rest.strip("\n")} if after else {}
    boxes = (
        f"<div><h3>{text(when)}</h3>{pre(words, 'prose') if words else note('samples.md holds no text.')}</div>"
        for when, words in texts.items()
    )
    return f'<div class="pair">{"".join(boxes)}</div>'


def _phases(facts: dict[str, Any]) -> str:
    rows = [
        (number, phase["name"], f"{phase['start']:,} steps", f"{phase['trainable']:,}")
        for number, phase in enumerate(facts["phases"], 1)
    ]
    return (
        table(("Phase", "Name", "Begins after", "Parameters that train"), rows) if rows else note("run.json has none.")
    )


def _settings(settings: dict[str, Any]) -> str:
    """Every flag, its value and its default; what differs comes first."""
    defaults = {field.name: json.loads(json.dumps(field.default, default=str)) for field in fields(Settings)}
    changed = [name for name, value in settings.items() if value != defaults.get(name, "")]
    names = [*changed, *(name for name in settings if name not in changed)]
    rows = [(_flag(name), _value(settings[name]), _value(defaults.get(name, "unknown"))) for name in names]
    return table(("Flag", "Value", "Default"), rows, marked=[_flag(name) for name in changed])


def _machine(facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    data = {
        f"data: {name.replace('_', ' ')}": f"{value:,}" if isinstance(value, int) else value
        for name, value in facts["data"].items()
    }
    rest = {name: value for name, value in machine.items() if name != "packages"}
    rows = [(name, _value(value)) for name, value in {**data, **rest, **machine.get("packages", {})}.items()]
    return table(("What", "Value"), rows) if rows else note("run.json doesn't say.")


def _commands(folder: Path, facts: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    step = best_step(metrics)
    model = folder if step in (0, metrics[-1]["step"] if metrics else 0) else folder / "checkpoints" / str(step)
    place, command = shlex.quote(str(model)), facts.get("command", "python -m train")
    chat = facts["data"].get("kind") == "chat"
    prompt = facts["settings"].get("prompt") or ("Who are you?" if chat else "The")
    ask = "--chat " * chat + f"--prompt={shlex.quote(prompt)}"
    lines = {
        "Make this run again": command,
        "Go on with it": command if "--resume" in command.split() else f"{command} --resume",
        "Export it for transformers": f"python -m convert {place} {shlex.quote(f'{folder}-hf')} --to=hf",
        "Generate text": f"python -m jaxgpt generate {place} {ask}",
    }
    return "\n".join(f"<h3>{what}</h3>{pre(line)}" for what, line in lines.items())


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else "none" if value is None else str(value)
