"""Finding the checkpoint for a name: a folder, a file, a training run, or a repository of the hub."""

import os
import re
from pathlib import Path

from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError, did_you_mean
from jaxgpt.convert.published import PUBLISHED_NAMES

VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "meta.pkl",
)  # fmt: skip
"""Files that hold a vocabulary: there is a tokenizer where one of them is. `meta.pkl` is nanoGPT's, of characters."""

SENTENCEPIECE = {"spiece.model", "sentencepiece.bpe.model", "tokenizer.model"}
"""Those of the package sentencepiece."""

SIDECARS = (
    *VOCABULARIES, "tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files of a tokenizer, which are copied with a checkpoint."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files of an adapter of PEFT's, which are beside no model."""

BUNDLED = {"tiny": Path(__file__).parent / "assets" / "tiny"}
"""Models that are installed with the package, by name."""

HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
"""`gpt2`, `openai-community/gpt2`, `gpt2@main`."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".msgpack", ".json")
"""A name with such an ending is a missing file, and not a name of the hub."""


def resolve(source: str | Path) -> Path:
    """Return the file or folder of a checkpoint: a training run's newest complete one, or `tiny`, which is bundled.

    Raises:
        InputError: there is no such file, folder or run, and the hub does not have it either.
    """
    if not str(source):
        raise InputError("the name of the model is empty")
    if str(source) in BUNDLED:
        return BUNDLED[str(source)]
    path = local_path(source)
    if path.is_dir() and str(source):
        return newest_step(path) if (path / "checkpoints").is_dir() else path
    if path.exists():
        return path
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and path.suffix not in SUFFIXES:
        return _from_hub(source)
    raise InputError(f"{source}: no such file or folder{_alike(source)}")


def _alike(source: str | Path) -> str:
    """Suggest a known name, or a file or folder beside the missing one, that is like it."""
    parent = local_path(source).parent
    try:
        beside = [str(Path(source).parent / path.name) for path in parent.iterdir()]
    except OSError:
        beside = []
    return did_you_mean(str(source), [*PUBLISHED_NAMES, *beside], cutoff=0.75)


def newest_step(run: Path) -> Path:
    """Return the folder of a run's newest checkpoint.

    Raises:
        InputError: there is none.
    """
    if steps := steps_of(run):
        return run / "checkpoints" / str(steps[-1])
    raise InputError(f"{run}: this run has no complete checkpoint yet")


def run_of(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint is of, by where it lies; nothing if it is no run's."""
    is_runs = checkpoint.parent.name == "checkpoints" and checkpoint.name.isdecimal()
    return checkpoint.parent.parent if is_runs else None


def steps_of(run: Path) -> list[int]:
    """List the steps of a run's checkpoints, ascending, also damaged ones; one under way has another name."""
    names = [folder.name for folder in (run / "checkpoints").glob("*") if folder.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def complete_steps(run: Path) -> list[int]:
    """List the steps of a run's complete checkpoints, ascending; Orbax renames a complete folder to its number."""
    folders = (run / "checkpoints").glob("*/_CHECKPOINT_METADATA")
    return sorted(int(file.parent.name) for file in folders if file.parent.name.isdecimal())


def is_adapter(path: Path) -> bool:
    """Tell whether a folder holds an adapter, and no model beside it."""
    models = ("model*.safetensors", "pytorch_model*.bin", "flax_model.msgpack")
    return (path / ADAPTER_CONFIG).is_file() and not any(any(path.glob(name)) for name in models)


def tokenizer_files(path: Path) -> dict[str, Path]:
    """Find the tokenizer's files of a checkpoint, by name: beside it, in its folder `tokenizer`, or in its run's.

    Raises:
        InputError: one of them is a link that leads out of the checkpoint.
    """
    folder = path if path.is_dir() else path.parent
    run = folder.parent.parent
    for root, candidate in ((folder, folder), (folder, folder / "tokenizer"), (run, run / "tokenizer")):
        if any((candidate / name).is_file() for name in VOCABULARIES):
            found = {name: candidate / name for name in SIDECARS if (candidate / name).is_file()}
            for file in found.values():
                check_link(file, root)
            return found
    return {}


def check_link(file: Path, root: Path) -> None:
    """Refuse a file that is elsewhere by a link, as it may be copied from a checkpoint of a stranger's.

    Its content may be in the checkpoint's own tree, or where the hub's cache keeps what its snapshots link to.

    Raises:
        InputError: it is elsewhere.
    """
    target, inside = Path(os.path.realpath(file)), Path(os.path.realpath(root))
    blobs = [inside.parent.parent / "blobs"] if inside.parent.name == "snapshots" else []
    if not any(target.is_relative_to(folder) for folder in (inside, *blobs)):
        raise InputError(
            f"{file} is a link to {target}, outside of {root}: links are followed only within a checkpoint, or in the "
            "cache of the hub; replace the link by the file that it leads to"
        )


def _from_hub(source: str) -> Path:
    """Download a checkpoint, or find it in the hub's cache: safetensors, or else a `.bin`, or else Flax's file."""
    import huggingface_hub

    found = HUB_NAME.fullmatch(source)
    assert found is not None
    always = ["config.json", "generation_config.json", ADAPTER_CONFIG, *SIDECARS]
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin", "flax_model.msgpack", *ADAPTER_WEIGHTS):
            wanted = [*always, weights, weights.replace("*", "") + ".index.json"]
            folder = Path(
                huggingface_hub.snapshot_download(found["name"], revision=found["revision"], allow_patterns=wanted)
            )
            if any(folder.glob(weights)):
                break
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{source}: no such file or folder, and the hub did not provide it ({cause}){_alike(source)}"
        ) from None
    return folder
