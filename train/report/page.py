"""The report of a run: one self-contained HTML page, made from the files of its folder."""

import base64
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jaxgpt.convert.disk import temporary_sibling
from jaxgpt.training.report import plots
from jaxgpt.training.report.timeline import short
from jaxgpt.training.run.logs import best_step, read_metrics, read_samples, read_updates
from jaxgpt.training.run.run_json import PhaseInfo, RunInfo
from jaxgpt.training.settings import Settings

TEMPLATE = "report.html.jinja"
"""The markup; it lies beside this file, and is given plain values."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that HTML doesn't allow."""

PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG file."""

PICTURES = {
    "loss": (
        "Line chart of the loss over the training steps.",
        "The loss on the text that is trained on, and on held-out text. A phase begins at a vertical line.",
    ),
    "rewards": (
        "Line charts of the rewards of preferences over the training steps.",
        "How often the preferred answer has the higher reward, and how much higher it is on the pairs of each step.",
    ),
    "updates": (
        "Heatmap of the weight updates by layer and training step.",
        "How much each layer's weights changed: the norm of a step's update over the norm of the weights. A column "
        "shows the step at its right edge and stands for the steps since the one logged before. Hatched layers were "
        "frozen. A trainable layer that didn't change, as at a learning rate of 0, has the darkest colour.",
    ),
    "freeze": (
        "Map of what trains, by layer and training step.",
        "What the freezing strategy lets train, over all planned steps, and the number of parameters in each phase.",
    ),
    "embedding": (
        "Rows of the token embedding before and after tokens were added.",
        "The last rows of the token embedding before and after the vocabulary grew; new rows are framed.",
    ),
}
"""Alternative text and caption of each picture, by the name of its file."""


def write_report(folder: Path) -> Path:
    """Draw the pictures of a run and write its `report.html`; a run that was killed has one too.

    Raises:
        InputError: the folder holds no run.
    """
    info = RunInfo.read(folder)
    metrics, updates = read_metrics(folder / "metrics.jsonl"), read_updates(folder / "updates.jsonl")
    draw(folder / "plots", metrics, updates, info.phases, info.steps)
    page = _template().render(
        title=f"Fine-tuning of {info.settings.get('model', 'a model')}",
        subtitle=f"--freeze={info.settings.get('freeze')}, text: {info.data.source}",
        numbers=_numbers(info, metrics),
        pictures=_pictures(folder / "plots"),
        samples=_samples(folder / "samples.md"),
        sanity=info.sanity,
        phases=_phases(info),
        settings=_settings(info),
        machine=_machine(info),
        commands=_commands(folder, info, metrics),
    )
    path = folder / "report.html"
    with temporary_sibling(path) as temporary:
        temporary.write_text(page, "utf-8")
        temporary.replace(path)
    return path


def draw(
    folder: Path,
    metrics: list[dict[str, Any]],
    updates: list[dict[str, Any]],
    phases: Sequence[PhaseInfo],
    n_steps: int,
) -> None:
    """Draw the pictures that have data, and remove those that have none."""
    figures = {}
    if updates := [line for line in updates if line["step"] > 0 and line.get("updates")]:
        moves = [line["updates"] for line in updates]
        modules = list(phases[0].trains if phases else moves[0])
        figures["updates"] = plots.update_heatmap([line["step"] for line in updates], moves, modules, phases)
    if metrics:
        figures["loss"] = plots.loss_curves(metrics, phases)
    if any(line.get("reward_margin") is not None for line in metrics):
        figures["rewards"] = plots.reward_curves(metrics, phases)
    if phases:
        figures["freeze"] = plots.freeze_map(phases, max(n_steps, phases[-1].start + 1))
    for name in ("updates", "loss", "rewards", "freeze"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def _template() -> Any:
    """Load the template; it escapes every value and replaces characters that HTML doesn't allow."""

    def finalize(value: Any) -> Any:
        # only the template's own macros return Markup: a value from a file is never one
        return value if isinstance(value, Markup) else CONTROL.sub("\ufffd", str(value))

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(TEMPLATE)


def _numbers(info: RunInfo, metrics: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Summarise the result in a few numbers."""
    losses, speeds, peaks = (
        [line[key] for line in metrics if line.get(key) is not None]
        for key in ("eval_loss", "tokens_per_s", "peak_memory")
    )
    loss, note = "unknown", "no evaluation was recorded"
    if losses:
        first_and_last = (losses[0], losses[-1])[: len(losses)]
        loss = " → ".join(f"{loss:.3f}" for loss in first_and_last)
        note = f"nats per token; perplexity {' → '.join(f'{_exp(loss):,.1f}' for loss in first_and_last)}"
        if info.data.kind.endswith("pairs"):
            right = [line["eval_reward_accuracy"] for line in metrics if line.get("eval_reward_accuracy") is not None]
            shares = " → ".join(f"{share:.0%}" for share in (right[0], right[-1])[: len(right)]) if right else "unknown"
            note = f"nats per preference; of the pairs the preferred answer is ahead in {shares}"
        if len(losses) == 1:
            note += "; not evaluated since"
        if losses[-1] > min(losses):
            step = best_step(metrics)
            note += f"; best {min(losses):.3f} " + (f"at step {step}" if step else "before training")
    trainable = [phase.trainable for phase in info.phases] or [info.parameters.get("trainable", 0)]
    total, planned = info.parameters.get("all", 0), info.steps
    share = f"{trainable[-1] / total:.1%}: {trainable[-1]:,} of {total:,}" if total else f"{trainable[-1]:,}"
    if len(trainable) > 1:
        share += f"; {trainable[0]:,} in the first of {len(trainable)} phases"
    boxes = (
        ("Loss on held-out text", loss, note),
        ("Steps", f"{metrics[-1]['step']:,}" if metrics else "unknown", f"of {planned:,}"),
        ("Trained parameters", short(trainable[-1]), share),
        ("Speed", f"{median(speeds):,.0f}" if speeds else "unknown", "tokens per second, median"),
        ("Memory", f"{max(peaks) / 2**30:.2f} GiB" if peaks else "unknown", "at its peak"),
    )
    return [{"name": name, "value": value, "note": words} for name, value, words in boxes]


def _pictures(folder: Path) -> list[dict[str, Any]]:
    """Read the pictures; a file that is missing or is no PNG has no `base64`."""
    found = []
    for name, (alt, caption) in PICTURES.items():
        path = folder / f"{name}.png"
        if name in ("embedding", "rewards") and not path.exists():  # only some runs have one
            continue
        png = path.read_bytes() if path.is_file() else b""
        picture: dict[str, Any] = {"name": name, "alt": alt, "caption": caption, "base64": ""}
        if len(png) >= 24 and png.startswith(PNG):
            width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # of the header
            picture |= {"width": width, "height": height, "base64": base64.b64encode(png).decode()}
        found.append(picture)
    return found


def _samples(path: Path) -> list[dict[str, str]]:
    """Split samples.md into the texts before and after training."""
    before, *later = re.split(r"^## After (\d+) steps$", read_samples(path), maxsplit=1, flags=re.M)
    texts = {"Before training": before.removeprefix("## Before training").strip("\n")}
    if later:
        step, after = later
        texts[f"After {step} steps"] = after.strip("\n")
    return [{"when": when, "text": text} for when, text in texts.items()]


def _row(name: Any, *cells: Any, is_changed: bool = False) -> dict[str, Any]:
    return {"name": name, "cells": cells, "is_changed": is_changed}


def _phases(info: RunInfo) -> list[dict[str, Any]]:
    return [
        _row(number, phase.name, f"{phase.start:,}", f"{phase.trainable:,}")
        for number, phase in enumerate(info.phases, 1)
    ]


def _settings(info: RunInfo) -> list[dict[str, Any]]:
    """List every flag with its value and its default, those that differ first.

    A setting that is null has the value that the run resolved it to, where run.json has one.
    """
    settings, resolved = info.settings, info.resolved
    if not isinstance(resolved, dict):  # an older run's
        resolved = {}
    defaults = {field.name: json.loads(json.dumps(field.default, default=str)) for field in fields(Settings)}
    rows = []
    for name, value in settings.items():
        shown, default = _value(value), _value(defaults.get(name, "unknown"))
        if resolved.get(name) is not None:
            if value is None:
                shown = f"{_value(resolved[name])} (default)"
            if defaults.get(name, "") is None:
                default = "chosen by the run"
        rows.append(_row(_flag(name), shown, default, is_changed=value != defaults.get(name, "")))
    return sorted(rows, key=lambda row: not row["is_changed"])


def _machine(info: RunInfo) -> list[dict[str, Any]]:
    machine = info.machine
    data = {
        f"data: {name.replace('_', ' ')}": f"{value:,}" if isinstance(value, int) else value
        for name, value in asdict(info.data).items()
    }
    rest = {name: value for name, value in machine.items() if name != "packages"}
    return [_row(name, _value(value)) for name, value in {**data, **rest, **machine.get("packages", {})}.items()]


def _commands(folder: Path, info: RunInfo, metrics: list[dict[str, Any]]) -> list[dict[str, str]]:
    """List the commands that a reader may want next; export and text are of the best checkpoint."""
    step = best_step(metrics)
    is_last = step in (0, metrics[-1]["step"] if metrics else 0)
    run, export = shlex.quote(str(folder)), shlex.quote(f"{folder}-hf")
    model = run if is_last else shlex.quote(str(folder / "checkpoints" / str(step)))
    is_chat = info.data.kind.startswith("chat")
    prompt = info.settings.get("prompt") or ("Who are you?" if is_chat else "The")
    chat = "--chat " if is_chat else ""
    lines = {
        "Make this run again": info.command,
        "Go on with it": f"jaxgpt train --resume {run}",
        "Export it for transformers": f"jaxgpt convert {model} {export} --to=hf",
        "Generate text": f"jaxgpt generate {model} {chat}--prompt={shlex.quote(str(prompt))}",
    }
    return [{"purpose": purpose, "line": line} for purpose, line in lines.items()]


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
