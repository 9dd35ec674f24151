"""The report of a run: one self-contained HTML page, made from the files of its folder."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxgpt.convert.command_line.flags import defaults_of, flags_of, spelled
from jaxgpt.convert.command_line.help import default_in_words
from jaxgpt.convert.errors import InputError
from jaxgpt.training.report.embedding import NewRows, embedding_rows
from jaxgpt.training.report.figure import Figure
from jaxgpt.training.report.outcome import Outcome, finite_values, tiles, what_trains
from jaxgpt.training.report.plots.curves import line_chart
from jaxgpt.training.report.plots.freezing import freeze_map
from jaxgpt.training.report.plots.loss import loss_curves
from jaxgpt.training.report.plots.rewards import reward_curves
from jaxgpt.training.report.plots.updates import update_heatmap
from jaxgpt.training.report.samples import moments
from jaxgpt.training.report.templates import render, save_figure, write_text
from jaxgpt.training.run.logs import best_step, read_metrics, read_samples, read_updates
from jaxgpt.training.run.run_json import PhaseInfo, RunInfo
from jaxgpt.training.settings import Settings

PICTURES = ("loss", "rewards", "updates", "freeze", "embedding", "gradient", "rate", "throughput", "memory")
"""Names of the pictures, and of their files in `plots/`."""

MOST_UPDATES, MOST_PHASES, MOST_MODULES, MOST_TEXT = 1000, 1000, 2000, 10**6
"""Lines of updates.jsonl, phases, modules, and characters of samples.md that are shown, at most; a run has fewer."""


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Draw the pictures of a run and write its `report.html`; a run that was killed has one too.

    Args:
        path: another file for the page; the folder of the run is then left as it is.

    Raises:
        InputError: the folder holds no run, or its pictures would be written elsewhere through a link.
    """
    if path is None:
        check_place(folder / "plots")
    info = RunInfo.read(folder)
    metrics, updates = read_metrics(folder / "metrics.jsonl"), read_updates(folder / "updates.jsonl")
    outcome = Outcome.of(info, metrics)
    figures = draw(info, metrics, updates, outcome)
    if rows := NewRows.read(folder / "plots"):
        figures["embedding"] = embedding_rows(rows)
    if path is None:
        save(figures, folder / "plots")
    changed, defaults = _settings(info)
    samples = _samples(folder, info)
    page = render(
        "report.html.jinja",
        title=f"Fine-tuning of {info.settings.get('model', 'a model')}",
        subtitle=f"--freeze={info.settings.get('freeze')} · {info.data.source}",
        badge=outcome.badge,
        verdict=outcome.verdict,
        remarks=outcome.remarks,
        tiles=tiles(outcome, info),
        figures={name: figures.get(name) for name in PICTURES},
        samples=samples,
        has_prompts=any(sample and sample.prompt for pair in samples for _, sample in pair),
        sanity=info.sanity,
        phases=_phases(info),
        changed=changed,
        defaults=defaults,
        notes=_notes(info),
        machine=_machine(info),
        commands=_commands(folder, info, metrics),
    )
    path = path or folder / "report.html"
    write_text(path, page)
    return path


def check_place(plots: Path) -> None:
    """Refuse a folder of pictures that leads out of the run, which may be a stranger's."""
    is_inside = plots.resolve().is_relative_to(plots.parent.resolve())
    if not is_inside or (plots.exists() and not plots.is_dir()):
        raise InputError(f"{plots} is a file or a link that leads elsewhere: nothing is written through it")


def draw(
    info: RunInfo, metrics: list[dict[str, Any]], updates: list[dict[str, Any]], outcome: Outcome
) -> dict[str, Figure]:
    """Draw the pictures that have data, by their names."""
    phases, figures = info.phases[:MOST_PHASES], {}
    updates = [line for line in updates if line["step"] > 0 and line.get("updates")]
    updates = updates[:: max(1, -(-len(updates) // MOST_UPDATES))]
    if updates:
        moves = [line["updates"] for line in updates]
        modules = list(phases[0].trains if phases else moves[0])[:MOST_MODULES]
        if modules:
            figures["updates"] = update_heatmap([line["step"] for line in updates], moves, modules, phases)
    if metrics:
        figures["loss"] = loss_curves(metrics, phases, outcome)
    if any(line.get("reward_margin") is not None for line in metrics):
        figures["rewards"] = reward_curves(metrics, phases)
    if phases and phases[0].trains:
        figures["freeze"] = freeze_map(phases, max(info.steps, phases[-1].start + 1))
    return figures | _further(info, metrics, phases, outcome)


def _further(
    info: RunInfo, metrics: list[dict[str, Any]], phases: Sequence[PhaseInfo], outcome: Outcome
) -> dict[str, Figure]:
    """Draw the numbers that only some readers look for."""
    found = {}
    if norms := finite_values(metrics, "grad_norm"):
        clip = info.settings.get("clip")
        limit = float(clip) if isinstance(clip, (int, float)) and abs(clip) < 1e300 else math.inf
        n_over = sum(norm > limit for norm in norms)
        title = f"scaled down to --clip={limit:g} in {n_over:,} of {len(norms):,} steps" if n_over else "never clipped"
        found["gradient"] = line_chart(
            "gradient", title, "norm of the trainable gradients", metrics, "grad_norm", phases,
            limit=(limit, f"--clip={limit:g}") if n_over else None,
        )  # fmt: skip
    if rates := finite_values(metrics, "lr"):
        title = f"{max(rates):.3g} at its peak, {rates[-1]:.3g} at last"
        found["rate"] = line_chart("rate", title, "learning rate", metrics, "lr", phases)
    if outcome.tokens_per_s:
        title = f"{outcome.tokens_per_s:,.0f} tokens per second, in the median step"
        found["throughput"] = line_chart("throughput", title, "tokens per second", metrics, "tokens_per_s", phases)
    if outcome.peak_bytes:
        title = f"{outcome.peak_bytes / 2**30:.2f} GiB at its peak"
        found["memory"] = line_chart(
            "memory", title, "most memory so far, GiB", metrics, "peak_memory", phases, factor=2.0**-30
        )
    return found


def save(figures: dict[str, Figure], folder: Path) -> None:
    """Write the pictures, and remove those of an earlier time that have no data now."""
    for name in PICTURES:
        (folder / f"{name}.svg").unlink(missing_ok=True)
    for name, figure in figures.items():
        (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier version
        save_figure(figure, folder / f"{name}.svg")


def _samples(folder: Path, info: RunInfo) -> list[list[tuple[str, Any]]]:
    """Return the samples in rows of one prompt each, with the time and the text before and after."""
    prompt, written = info.settings.get("prompt") or "The", info.resolved.get("prompts")
    prompts = written if isinstance(written, list) else [prompt]  # as earlier versions
    found = moments(read_samples(folder / "samples.md")[:MOST_TEXT], [str(words).strip("\n") for words in prompts])
    n_rows = max(1, *(len(moment.samples) for moment in found))
    return [
        [(moment.when, moment.samples[i] if i < len(moment.samples) else None) for moment in found]
        for i in range(n_rows)
    ]


def _row(name: Any, *cells: Any, is_changed: bool = False) -> dict[str, Any]:
    return {"name": name, "cells": cells, "is_changed": is_changed}


def _phases(info: RunInfo) -> list[dict[str, Any]]:
    return [
        _row(number, phase.name, f"{phase.start:,}", f"{phase.trainable:,}", what_trains(phase))
        for number, phase in enumerate(info.phases[:MOST_PHASES], 1)
    ]


def _settings(info: RunInfo) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """List every flag with its value: those that differ from their defaults, with these; and the others."""
    changed: list[dict[str, Any]] = []
    defaults: list[dict[str, Any]] = []
    for name, value in info.settings.items():
        if value == stored_default(name):
            defaults.append(_row(spelled(name), setting_in_words(info, name)))
        else:
            changed.append(_row(spelled(name), words_of(value), default_of(name), is_changed=True))
    return changed, defaults


def _notes(info: RunInfo) -> list[str]:
    """Return from which step on the run was another."""
    return [
        f"Resumed after step {words_of(change.get('step'))} with changes: {words_of(change.get('what'))}."
        for change in info.changed
    ]


DATA_IN_WORDS = {
    "held_out_sha256": "sha256 of what is held out", "tokenizer": "sha256 of the tokenizer",
    "train": "tokens to train on", "held_out": "tokens held out", "rows": "rows to train on",
}  # fmt: skip
"""The fields of `DataInfo` that the page does not call by their names."""


def _machine(info: RunInfo) -> list[dict[str, Any]]:
    machine = info.machine
    data = {
        f"data: {DATA_IN_WORDS.get(name, name)}": f"{value:,}" if isinstance(value, int) else value
        for name, value in asdict(info.data).items()
        if value not in (None, [])
    }
    rest = {name: value for name, value in machine.items() if name != "packages"}
    packages = machine.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    return [_row(name, words_of(value)) for name, value in {**data, **rest, **versions}.items()]


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
        "Generate text": f"jaxgpt generate {model} {chat}--prompt={shlex.quote(str(prompt))}",
        "Export it for transformers": f"jaxgpt convert {model} {export} --to=hf",
        "Resume it": f"jaxgpt train --resume {run}",
        "Make this run again": info.command,
    }
    return [{"purpose": purpose, "line": line} for purpose, line in lines.items()]


def stored_default(name: str) -> Any:
    """Return the default of a setting as JSON has it; of an unknown one something that no value equals."""
    defaults = defaults_of(Settings)
    return json.loads(json.dumps(defaults[name], default=str)) if name in defaults else object()


def default_of(name: str) -> str:
    """Return the default of a setting in words."""
    flags = flags_of(Settings)
    if name not in flags:
        return "unknown"
    default = defaults_of(Settings)[name]
    return default_in_words(flags[name], default) or (
        "not given" if default is None else words_of(stored_default(name))
    )


def setting_in_words(info: RunInfo, name: str) -> str:
    """Return the value of a setting; of one that the run chose itself what it chose, if run.json tells."""
    value, resolved = info.settings.get(name), info.resolved.get(name)
    if value is not None:
        return words_of(value)
    return words_of(resolved) if resolved is not None else default_of(name)


def words_of(value: Any) -> str:
    """Return a value of JSON in words."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
