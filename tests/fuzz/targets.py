"""What is fuzzed: bytes go in, and nothing worse than our own error comes out."""

import tempfile
from pathlib import Path

import numpy as np

from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.formats import safetensors, torch_zip
from jaxgpt.convert.recognise import recognise

HERE = Path(tempfile.mkdtemp(prefix="jaxgpt-fuzz-"))
TENSORS = {
    "h.0.attn.c_attn.weight": np.zeros((4, 12), np.float32),
    "h.0.ln_1.weight": np.ones(4, np.float16),
    "wte.weight": np.zeros((3, 4), np.float32),
}


def safetensors_file(data: bytes) -> None:
    """A `.safetensors` file."""
    _open(HERE / "model.safetensors", data)


def torch_file(data: bytes) -> None:
    """A `.pt` file: the zip around the pickle."""
    _open(HERE / "model.pt", data)


def torch_pickle(data: bytes) -> None:
    """The pickle inside a `.pt` file that is sound otherwise."""
    import zipfile

    path = HERE / "pickle.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(192))
        archive.writestr("archive/data/1", bytes(48))
    _open(path)


def seeds() -> dict[str, bytes]:
    """A sound input for each target."""
    import zipfile

    for path in HERE.glob("seed*"):
        path.unlink()
    safetensors.write(HERE / "seed.safetensors", TENSORS)
    torch_zip.write(HERE / "seed.pt", {"model": TENSORS, "model_args": {"n_head": 2, "bias": True, "dropout": 0.0}})
    with zipfile.ZipFile(HERE / "seed.pt") as archive:
        pickle = archive.read("archive/data.pkl")
    return {
        "safetensors_file": (HERE / "seed.safetensors").read_bytes(),
        "torch_file": (HERE / "seed.pt").read_bytes(),
        "torch_pickle": pickle,
    }


def _open(path: Path, data: bytes | None = None) -> None:
    if data is not None:
        path.write_bytes(data)
    try:
        contents = open_contents(path)
        for array in contents.tensors.values():
            np.asarray(array).tobytes() if array.size < 1_000_000 else None  # every byte of it can be read
        recognise(contents, n_head=2)
    except InputError:
        pass
