"""What a run left in its folder, read by someone who doesn't trust it to be whole."""

import json
from pathlib import Path
from typing import Any

from jaxgpt.convert.errors import InputError

Facts = dict[str, Any]


def read_facts(folder: Path) -> Facts:
    """What run.json says; parts that it lacks are empty."""
    path = folder / "run.json"
    try:
        facts: Facts = {"phases": [], "data": {}, "parameters": {}, "machine": {}} | json.loads(path.read_text("utf-8"))
        for name in ("settings", "data", "parameters", "machine"):
            dict(facts[name])
        facts["steps"] = int(facts.get("steps", facts["settings"].get("steps", 0)))
        for phase in facts["phases"]:
            int(phase["start"]), int(phase["trainable"]), phase["name"], dict(phase["trains"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no run: {path} can't be read ({type(error).__name__}: {error})") from None
    return facts


def best_step(metrics: list[Facts]) -> int:
    """Step of the lowest evaluation loss, the earliest if there are several; 0 if there is none."""
    evaluations = [line for line in metrics if line.get("eval_loss") is not None]
    return min(evaluations, key=lambda line: line["eval_loss"])["step"] if evaluations else 0


def read_lines(path: Path) -> list[Facts]:
    """The lines of a log in the order of their steps, without those that were cut off; the last of a step counts."""
    lines = {}
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        try:
            fact = json.loads(line)
            lines[int(fact["step"])] = fact
        except (ValueError, KeyError, TypeError):
            continue
    return [lines[step] for step in sorted(lines)]
