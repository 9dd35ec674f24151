"""From what a user names (a folder, a file, a training run, a hub repository) to the checkpoint that is meant."""

import re
from pathlib import Path

from jaxgpt.convert.errors import InputError

SIDECARS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
"""Files of a tokenizer, which travel with a checkpoint."""

BUNDLED = {"tiny": Path(__file__).parent / "assets" / "tiny"}
"""Models that are installed with the packages, by name."""

HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
"""`gpt2`, `openai-community/gpt2`, `gpt2@main`."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".json")
"""What ends like this is a file that is not there, and no name of the hub."""


def resolve(source: str | Path) -> Path:
    """The file or folder of the checkpoint; a training run stands for its newest complete one, `tiny` is bundled.

    Raises:
        InputError: nothing is there, and it can't be had from the hub either.
    """
    if str(source) in BUNDLED:
        return BUNDLED[str(source)]
    path = Path(source).expanduser()
    if path.is_dir() and str(source):
        return newest_step(path) if (path / "checkpoints").is_dir() else path
    if path.exists():
        return path
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and path.suffix not in SUFFIXES:
        return _from_hub(source)
    raise InputError(f"{source}: no such file or folder")


def newest_step(run: Path) -> Path:
    """The folder of a run's newest complete checkpoint."""
    if steps := complete_steps(run):
        return run / "checkpoints" / str(steps[-1])
    raise InputError(f"{run}: this run has no complete checkpoint yet")


def complete_steps(run: Path) -> list[int]:
    """Steps of a run's complete checkpoints, ascending; Orbax renames a folder to its number when it is whole."""
    folders = (run / "checkpoints").glob("*/_CHECKPOINT_METADATA")
    return sorted(int(file.parent.name) for file in folders if file.parent.name.isdecimal())


def tokenizer_files(path: Path) -> dict[str, Path]:
    """The tokenizer's files of a checkpoint, by name: beside it, in its folder `tokenizer`, or in its run's."""
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder / "tokenizer", folder.parent.parent / "tokenizer"):
        if (place / "tokenizer.json").is_file() or (place / "vocab.json").is_file():
            return {name: place / name for name in SIDECARS if (place / name).is_file()}
    return {}


def _from_hub(source: str) -> Path:
    """Downloads what is needed, or finds it in the hub's cache: safetensors, and only where there are none a `.bin`."""
    import huggingface_hub

    found = HUB_NAME.fullmatch(source)
    assert found is not None
    always = ["config.json", "generation_config.json", *SIDECARS]
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            wanted = [*always, weights, weights.replace("*", "") + ".index.json"]
            folder = Path(
                huggingface_hub.snapshot_download(found["name"], revision=found["revision"], allow_patterns=wanted)
            )
            if any(folder.glob(weights)):
                break
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{source}: no such file or folder here, and the hub did not give it ({cause})") from None
    return folder
