"""What is fuzzed: bytes go in, and nothing worse than our own error comes out."""

import atexit
import contextlib
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jaxgpt.chat_templates import Request, write_chats
from jaxgpt.convert.adapter import merged
from jaxgpt.convert.base import TOLD, Base
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.dialects.jaxgpt import JAXGPT, OWN
from jaxgpt.convert.dialects.user_table import read_dialect
from jaxgpt.convert.digests import ANNOUNCEMENT, find_damage, write_digests
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.hf_config import config_from_hf, config_to_hf
from jaxgpt.convert.families.shapes import fields_of_shape
from jaxgpt.convert.formats import safetensors, torch_zip
from jaxgpt.convert.formats.array_headers import check_arrays
from jaxgpt.convert.json_input import parse_json, read_json
from jaxgpt.convert.layout import shape_of
from jaxgpt.convert.mapping import check_params, to_ours, to_theirs
from jaxgpt.convert.peft import with_adapter
from jaxgpt.convert.recognise import recognise
from jaxgpt.convert.source import BUNDLED, HUB_NAME
from jaxgpt.data import token_files
from jaxgpt.data.preferences import preference_of
from jaxgpt.freeze import parse
from jaxgpt.training.run.logs import read_metrics, read_updates
from jaxgpt.training.run.run_json import RunInfo
from jaxgpt.training.settings import stored_settings

CACHED = {"tokens": np.arange(3, dtype="<u2"), "ends": np.asarray([3], "<i8"), "records": np.asarray([0], "<i8")}
# each input is a file that is written anew: on a disk that takes half of the time
MEMORY = Path("/dev/shm")
HERE = Path(tempfile.mkdtemp(prefix="jaxgpt-fuzz-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
atexit.register(shutil.rmtree, HERE, ignore_errors=True)
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


def torch_before_1_6(data: bytes) -> None:
    """A `.bin` of PyTorch before 1.6: five pickles, and the storages."""
    _open(HERE / "old.bin", data)


def flax_msgpack(data: bytes) -> None:
    """A `.msgpack` of Flax's."""
    _open(HERE / "flax_model.msgpack", data)


def config_json(data: bytes) -> None:
    """The `config.json` beside sound weights."""
    (HERE / "sound").mkdir(exist_ok=True)
    if not (HERE / "sound" / "model.safetensors").exists():
        safetensors.write(HERE / "sound" / "model.safetensors", TENSORS)
    (HERE / "sound" / "config.json").write_bytes(data)
    _open(HERE / "sound")


def family_config(data: bytes) -> None:
    """A `config.json` of any family."""
    with contextlib.suppress(InputError):
        fields = parse_json(data.decode("utf-8", "replace"))
        if isinstance(fields, dict):
            config_to_hf(config_from_hf(fields))


def shard_index(data: bytes) -> None:
    """A `model.safetensors.index.json` beside a sound shard."""
    (HERE / "shards").mkdir(exist_ok=True)
    if not (HERE / "shards" / "a.safetensors").exists():
        safetensors.write(HERE / "shards" / "a.safetensors", TENSORS)
    _open(HERE / "shards" / "model.safetensors.index.json", data)


def run_json(data: bytes) -> None:
    """The run.json of a run, and what is drawn and written of it."""
    (HERE / "run").mkdir(exist_ok=True)
    (HERE / "run" / "run.json").write_bytes(data)
    with contextlib.suppress(InputError):
        info = RunInfo.read(HERE / "run")
        stored_settings(info.settings)
        info.write(HERE / "run")


def run_logs(data: bytes) -> None:
    """The metrics and updates of a run: what can be read is of the right types."""
    (HERE / "lines.jsonl").write_bytes(data)
    for line in read_metrics(HERE / "lines.jsonl"):
        assert type(line["step"]) is int
        assert all(value is None or isinstance(value, (int, float)) for value in line.values())
    for line in read_updates(HERE / "lines.jsonl"):
        assert all(isinstance(value, (int, float)) for value in line["updates"].values())


def cache_entry(data: bytes) -> None:
    """The description of tokens in the cache: as it was written, or damaged."""
    entry = HERE / "key"
    entry.mkdir(exist_ok=True)
    for name, array in CACHED.items():
        if not (entry / f"{name}.bin").exists():
            (entry / f"{name}.bin").write_bytes(array.tobytes())
    (entry / "meta.json").write_bytes(data)
    found = token_files.load(entry, os.geteuid())
    assert found is None or json.loads(data).items() >= found[0].items()


def chat_template(data: bytes) -> None:
    """A template: what it writes, or our own error."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer = SimpleNamespace(
        special_tokens_map={"eos_token": "e"}, get_chat_template=lambda tools: data.decode("utf-8", "replace")
    )
    with contextlib.suppress(InputError):
        write_chats(tokenizer, [Request(messages)])


def array_header(data: bytes) -> None:
    """The header of an array in an Orbax checkpoint, and the names that it lists."""
    item = HERE / "params"
    (item / "x").mkdir(parents=True, exist_ok=True)
    (item / "x" / "0.0").write_bytes(bytes(64))
    header, _, names = data.partition(b"\n")
    (item / "x" / ".zarray").write_bytes(header)
    (item / "_METADATA").write_bytes(names or b'{"tree_metadata": {}}')
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):  # as `orbax.read` does
        check_arrays(item)


def digests_json(data: bytes) -> None:
    """The digests of a checkpoint: they are those of its files, or something is damaged."""
    step = HERE / "3"
    step.mkdir(exist_ok=True)
    (step / "a").write_bytes(bytes(10))
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": ANNOUNCEMENT}))
    (step / "digests.json").write_bytes(data)
    assert isinstance(find_damage(step, None, 3), str)


def adapter_config(data: bytes) -> None:
    """The config of an adapter beside sound weights, on a small model."""
    folder = HERE / "adapter"
    folder.mkdir(exist_ok=True)
    if not (folder / "adapter_model.safetensors").exists():
        stem = "base_model.model.transformer.h.0.attn.c_attn.lora_"
        tensors = {f"{stem}A.weight": np.ones((2, 4), np.float32), f"{stem}B.weight": np.ones((12, 2), np.float32)}
        safetensors.write(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_bytes(data)
    config = GPTConfig(vocab_size=3, n_positions=2, n_embd=4, n_head=2, n_layer=1, n_inner=16)
    params = {row.ours: np.zeros(shape_of(row.right, config.dims), np.float32) for row in HF.expand(config)}
    with contextlib.suppress(InputError):
        found, adapted = with_adapter(params, config, folder)
        check_params(found, adapted, JAXGPT)
        for array in merged(found, adapted.lora, adapted.n_tokens).values():
            np.asarray(array)


def dialect_table(data: bytes) -> None:
    """A table of a user's own."""
    (HERE / "mine.toml").write_bytes(data)
    with contextlib.suppress(InputError):
        dialect = read_dialect(HERE / "mine.toml")
        config = GPTConfig(vocab_size=3, n_positions=2, n_embd=4, n_head=2, n_layer=1, n_inner=16)
        params = {row.ours: np.zeros(shape_of(row.right, config.dims), np.float32) for row in JAXGPT.expand(config)}
        to_ours(dialect, to_theirs(dialect, params, config), config)


def freeze_strategy(data: bytes) -> None:
    """A strategy, which may come from the run.json of a stranger: a plan, or our own error."""
    config = GPTConfig(vocab_size=3, n_positions=2, n_embd=4, n_head=2, n_layer=2, n_inner=16)
    with contextlib.suppress(InputError):
        parse(data.decode("utf-8", "replace"), config, 100, epoch_steps=7.5)


def base_of_a_run(data: bytes) -> None:
    """Where a run's checkpoint says that its frozen parameters are: a place that may be looked at, or our own error."""
    (HERE / "base.json").write_bytes(data)
    with contextlib.suppress(InputError):
        base = Base.from_json(read_json(HERE / "base.json"))
        place = base.place(HERE / "run" / "checkpoints" / "3")
        assert os.path.isabs(place) or place in BUNDLED or HUB_NAME.fullmatch(place)
        assert base.told.keys() <= TOLD.keys()


def preferences(data: bytes) -> None:
    """A record of a preference: two answers, of which each counts for something, or our own error."""
    with contextlib.suppress(InputError):
        record = parse_json(data, has_nan=False)
        if isinstance(record, dict):
            found = preference_of(record)
            assert len(found.pair) == 2
            assert found.pair[0] != found.pair[1]


def seeds() -> dict[str, bytes]:
    """A sound input for each target."""
    import zipfile

    for path in HERE.glob("seed*"):
        path.unlink()
    safetensors.write(HERE / "seed.safetensors", TENSORS)
    torch_zip.write(HERE / "seed.pt", {"model": TENSORS, "model_args": {"n_head": 2, "bias": True, "dropout": 0.0}})
    with zipfile.ZipFile(HERE / "seed.pt") as archive:
        pickle = archive.read("archive/data.pkl")
    numbers = TENSORS["wte.weight"].tobytes()
    inner = b"\x93\x92\x03\x04\xa7float32\xc4" + bytes([len(numbers)]) + numbers
    shape = {"n_embd": 4, "n_head": 2, "n_layer": 1, "vocab_size": 3, "n_positions": 2, "eos_token_id": [1, -1]}
    meta = {
        "version": token_files.VERSION, "kind": "text", "bytes": 3, "files": [{"name": "a", "documents": 1}],
        "unread": {}, "n_bad": 0, "first_bad": None, "as_text": None, "dtype": "<u2", "key": "key",
        "lengths": {name: len(array) for name, array in CACHED.items()},
        "sha256": {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in CACHED.items()},
    }  # fmt: skip
    lines = [{"step": i, "loss": 1.5, "eval_loss": None, "updates": {"ln_f": 0.5, "tok_emb": None}} for i in range(3)]
    run = {
        "settings": {"model": "tiny", "steps": 3}, "command": "jaxgpt train", "steps": 3, "sanity": "fine",
        "phases": [{"start": 0, "name": "full", "trainable": 3, "trains": {"ln_f": 1.0}}],
        "data": {"source": "a", "train": 3, "notes": ["b"]}, "parameters": {"all": 3}, "machine": {"python": "3"},
    }  # fmt: skip
    template = (
        "{% for m in messages %}{{ m['role'] + m.content | trim }}{{ eos_token * 2 }}{% endfor %}{{ 'a'.ljust(9) }}"
    )
    zarr = {"zarr_format": 2, "shape": [2, 8], "chunks": [2, 8], "dtype": "<f4", "order": "C", "compressor": None}
    listed = {"tree_metadata": {"('x',)": {"key_metadata": [{"key": "x", "key_type": 2}]}}}
    adapter = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False, "lora_dropout": 0.0,
        "trainable_token_indices": None, "rank_pattern": {}, "base_model_name_or_path": "gpt2",
    }  # fmt: skip
    rows = [[row.ours, row.ours, f"{row.right} -> {row.right}"] for row in OWN if not row.ours.endswith("lm_head.bias")]
    table = f"rows = {json.dumps(rows)}\nbuffers = [['h.{{i}}.{{j}}.m', 'T T']]\nfixed = {{n_head = 2}}\n"
    (HERE / "3").mkdir(exist_ok=True)
    (HERE / "3" / "a").write_bytes(bytes(10))
    (HERE / "3" / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": ANNOUNCEMENT}))
    (HERE / "3" / "digests.json").unlink(missing_ok=True)
    write_digests(HERE / "3", 3)
    return {
        "array_header": json.dumps(zarr).encode() + b"\n" + json.dumps(listed).encode(),
        "digests_json": (HERE / "3" / "digests.json").read_bytes(),
        "adapter_config": json.dumps(adapter).encode(),
        "dialect_table": table.encode(),
        "base_of_a_run": json.dumps(
            {"model": "/a/b", "told": {"n_head": 2}, "beside": "../b", "digests": {"ln_f.scale": "0" * 64}}
        ).encode(),
        "preferences": json.dumps(
            {
                "prompt": [{"role": "user", "content": "a"}],
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
            }
        ).encode(),
        "freeze_strategy": rb"gradual:lora:r=8,alpha=4,on=attn+mlp@0,regex:blocks\.\d+\..*+last1@20%,full@2ep",
        "shard_index": json.dumps({"weight_map": dict.fromkeys(TENSORS, "a.safetensors")}).encode(),
        "run_json": json.dumps(run).encode(),
        "run_logs": "\n".join(map(json.dumps, lines)).encode(),
        "cache_entry": json.dumps(meta | {"digest": token_files._digest_of(meta)}).encode(),
        "chat_template": template.encode(),
        "torch_before_1_6": _old(numbers),
        "flax_msgpack": b"\x81\xa3wte\x81\xa9embedding\xc7" + bytes([len(inner)]) + b"\x01" + inner,
        "config_json": json.dumps(shape | {"rope_theta": None, "layer_types": ["full_attention"], "mine": 1}).encode(),
        "family_config": json.dumps(fields_of_shape("Qwen/Qwen3-0.6B") | {"rope_scaling": None}).encode(),
        "safetensors_file": (HERE / "seed.safetensors").read_bytes(),
        "torch_file": (HERE / "seed.pt").read_bytes(),
        "torch_pickle": pickle,
    }


def _old(numbers: bytes) -> bytes:
    """A file of PyTorch before 1.6 with one tensor."""
    count = len(numbers) // 4
    identity = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\x03\0\0\0cpuK" + bytes([count]) + b"NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\0K\3K\4\x86K\4K\1\x86\x89}tR"
    program = b"\x80\x02}X\x0a\0\0\0wte.weight" + tensor + b"s."
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + program + pickle.dumps(["0"], 2) + count.to_bytes(8, "little") + numbers


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
