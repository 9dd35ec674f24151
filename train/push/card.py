"""The model card of a run: what it was made of and how, from the run's own files."""

import shlex
from pathlib import Path
from typing import Any

from jaxgpt.convert.errors import escaped
from jaxgpt.convert.published import PUBLISHED_NAMES
from jaxgpt.convert.source import BUNDLED, HUB_NAME
from jaxgpt.training.command import as_flags
from jaxgpt.training.run.run import Run

PATHS = ("model", "tokenizer", "data", "eval_data", "out", "cache")
"""Settings that may hold a path, of which a card shows the last part only: the rest is the user's own."""

READ_WITH = {
    "hf": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("{repo}")\ntokenizer = AutoTokenizer.from_pretrained("{repo}")',
    "peft": 'from peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM.from_pretrained("{repo}")',
}
"""Python that reads each form."""


def write_card(path: Path, run: Run, repo: str, form: str, license: str) -> None:
    """Write the card of a run.

    Args:
        form: `"hf"` or `"peft"`.
    """
    from huggingface_hub import ModelCardData

    settings = run.info.settings
    base, data = str(settings.get("model", "")), str(settings.get("data") or "")
    fields = ModelCardData(
        license=license,
        library_name="peft" if form == "peft" else "transformers",
        base_model=base.partition("@")[0] if is_hub_name(base) else None,
        datasets=[data.removeprefix("hf:")] if data.startswith("hf:") else None,
        pipeline_tag="text-generation",
        tags=["jaxgpt"],
    )
    path.write_text(f"---\n{fields.to_yaml()}\n---\n\n{body(run, repo, form)}", "utf-8")


def body(run: Run, repo: str, form: str) -> str:
    """Return the text of the card, in Markdown."""
    info, losses = run.info, run.evaluations
    settings, resolved = info.settings, info.resolved
    base = str(settings.get("model", ""))
    named = "the model that is bundled with jaxgpt" if base in BUNDLED else code(short(base))
    what = "An adapter for" if form == "peft" else "A fine-tuned version of"
    rows = {
        "trained": f"{code(settings.get('freeze', ''))}: {count(info.parameters.get('trainable'))} of "
        f"{count(info.parameters.get('all'))} parameters",
        "data": f"{code(short(info.data.source))}: {info.data.train:,} tokens, {info.data.held_out:,} held out",
        "steps": f"{run.step:,}, each of {code(settings.get('batch_size', ''))} sequences of "
        f"{code(resolved.get('context', ''))} tokens",
        "peak learning rate": code(resolved.get("lr", "")),
    }
    if losses:
        first, (last, loss) = next(iter(losses.values())), list(losses.items())[-1]
        rows["held-out loss"] = f"{first:.4f} nats per token before, {loss:.4f} after step {last:,}"
        rows["lowest held-out loss"] = f"{losses[run.best_step]:.4f} at step {run.best_step:,}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    command = shlex.join(["jaxgpt", "train", *as_flags({n: short_setting(n, v) for n, v in settings.items()})])
    return (
        f"# {repo.rpartition('/')[2]}\n\n{what} {named}, made with jaxgpt. Describe here what it is for, and what it "
        f"must not be used for.\n\n| | |\n|---|---|\n{table}\n\n## Use\n\n```python\n"
        f"{READ_WITH[form].format(repo=repo)}\n```\n\n## How it was made\n\n```sh\n{fenced(command)}\n```\n"
    )


def is_hub_name(name: str) -> bool:
    """Tell whether the name of a model is surely one of the hub's: published, or `OWNER/NAME` and no path here."""
    found = HUB_NAME.fullmatch(name)
    return found is not None and (found["name"] in PUBLISHED_NAMES or ("/" in name and not Path(name).exists()))


def short(name: str) -> str:
    """Return a name of the hub or a URL whole, and of a path its last part."""
    return name if is_hub_name(name) or "://" in name or name.startswith("hf:") else Path(name).name


def short_setting(name: str, value: Any) -> Any:
    """Return a setting without the folders of the user's machine."""
    return short(value) if name in PATHS and isinstance(value, str) else value


def count(number: Any) -> str:
    """Return a number with commas; `?` for none, as in damaged files."""
    return f"{number:,}" if isinstance(number, int) else "?"


def code(value: Any) -> str:
    """Return a value as code in a line of a table: nothing in it can end either."""
    return f"`{escaped(str(value))[:200].replace('`', ' ').replace('|', ' ')}`"


def fenced(text: str) -> str:
    """Return a text for a block of code, which nothing in it can end."""
    return escaped(text).replace("```", "` ` `")
