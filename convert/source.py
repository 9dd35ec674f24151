"""From what a user names (a folder, a file, a training run, a hub repository) to the checkpoint that is meant."""

import re
from pathlib import Path

from convert.errors import InputError

SIDECARS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
"""Files of a tokenizer, which travel with a checkpoint."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(source: str | Path) -> Path:
    """The file or folder of the checkpoint; a training run stands for its newest complete one.

    Raises:
        InputError: nothing is there, and it can't be had from the hub either.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return newest_step(path) if (path / "checkpoints").is_dir() else path
    if path.exists():
        return path
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and path.suffix not in (".safetensors", ".bin", ".pt"):
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


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    wanted = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *SIDECARS]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: no such file or folder here, and the hub did not give it ({cause})") from None
