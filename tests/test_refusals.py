"""Broken and hostile checkpoints: each is refused in one message that names the cause, and in no way harms.

Every case is a folder of its own, and `python -m convert` runs on it as a process of its own: exit code 2, nothing
executed, nothing written, under 200 MB of memory, and in bounded time.
"""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import forked
import msgpack
import numpy as np
import pytest
import torch
from conftest import ROOT, random_hf
from flax.serialization import to_bytes
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.bounded
MEMORY = 200e6

MEASURED = """
import re, resource, sys
from pathlib import Path
from jaxgpt.convert.__main__ import main
report, sys.argv = Path(sys.argv[1]), sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # the promise is 2 s of a machine that does nothing else
try:
    main()
finally:
    status = Path("/proc/self/status")  # not ru_maxrss, which on Linux begins with that of the process that forked
    here = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024 if status.exists() else None
    report.write_text(str(here or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""
"""A conversion that reports its peak of memory, in bytes."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder that is fine, and is spoiled in copies."""
    folder = tmp_path_factory.mktemp("sound")
    random_hf().save_pretrained(folder)
    return folder


# ways to spoil a folder: each takes a copy of the sound one, and returns what to convert


def config(**fields):
    def spoil(folder: Path) -> Path:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return folder

    return spoil


def config_without(name: str, **fields):
    def spoil(folder: Path) -> Path:
        file = folder / "config.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != name} | fields))
        return folder

    return spoil


def config_text(text: str):
    def spoil(folder: Path) -> Path:
        (folder / "config.json").write_text(text)
        return folder

    return spoil


def tensors(change):
    def spoil(folder: Path) -> Path:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        return folder

    return spoil


def raw(content: bytes, name: str = "model.safetensors"):
    def spoil(folder: Path) -> Path:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)
        return folder if name.startswith(("model", "pytorch_model")) else folder / name

    return spoil


def header(entries, data: bytes = b"", length: int | None = None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return raw((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def index(weight_map, name: str = "model.safetensors.index.json"):
    def spoil(folder: Path) -> Path:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / name).write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return spoil


def saved(make):
    """A `.bin` that torch.save writes of what `make` returns."""

    def spoil(folder: Path) -> Path:
        (folder / "model.safetensors").unlink()
        torch.save(make(), folder / "pytorch_model.bin")
        return folder

    return spoil


def archive(members: dict[str, bytes], compress: int = zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return raw(buffer.getvalue(), "pytorch_model.bin")


def program(code: bytes, **members: bytes):
    """A zip that is sound but for its pickle."""
    return archive({"archive/data.pkl": b"\x80\x02" + code + b".", "archive/data/0": bytes(64)} | members)


class Call:
    """Pickles as a call of any function at all."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def legacy():
    return random_hf().state_dict()


def tar(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    with tarfile.open(folder / "pytorch_model.bin", "w") as file:
        file.add(folder / "config.json", "pickle")
    return folder


def storage(kind: bytes = b"ctorch\nFloatStorage\n", key: bytes = b"0", count: int = 16) -> bytes:
    text = b"X" + struct.pack("<I", len(key)) + key
    return b"(X\x07\0\0\0storage" + kind + text + b"X\x03\0\0\0cpuJ" + struct.pack("<i", count) + b"tQ"


def tensor(inner: bytes, offset: int = 0, shape: tuple = (4,), strides: tuple = (1,)) -> bytes:
    def integers(numbers):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in numbers) + b"t"

    rest = b"\x8a\x08" + struct.pack("<q", offset) + integers(shape) + integers(strides) + b"\x89)"
    return b"}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + inner + rest + b"tRs"


LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def old(make):
    """The same as `saved`, in the format of PyTorch before 1.6."""

    def spoil(folder: Path) -> Path:
        (folder / "model.safetensors").unlink()
        torch.save(make(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        return folder

    return spoil


def old_storage(count: int) -> bytes:
    text = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\x03\0\0\0cpu"
    return text + b"\x8a\x08" + struct.pack("<q", count) + b"NtQ"


def old_program(code: bytes, keys: list[str], count: int = 16):
    """A file of PyTorch before 1.6 with one storage of 16 numbers."""
    machine = pickle.dumps({"little_endian": True}, 2)
    head = LEGACY_MAGIC + pickle.dumps(1001, 2) + machine + b"\x80\x02" + code + b"." + pickle.dumps(keys, 2)
    return raw(head + struct.pack("<q", count) + bytes(64), "pytorch_model.bin")


def add(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


def flax(change):
    """A `flax_model.msgpack`, changed."""

    def spoil(folder: Path) -> Path:
        (folder / "model.safetensors").unlink()
        (folder / "flax_model.msgpack").write_bytes(change(to_bytes({"wte": {"embedding": np.ones((97, 36))}})))
        return folder

    return spoil


def array(shape: list[int], data: bytes = bytes(4), kind: str = "float32"):
    """A dict of one array that may lie about itself."""
    inner = msgpack.packb([shape, kind, data], use_bin_type=True)
    return lambda _: msgpack.packb({"a": msgpack.ExtType(1, inner)})


def wrap(state: dict, prefix: str) -> None:
    for name in list(state):
        state[prefix + name] = state.pop(name)


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
MARKER = "hacked"
TOUCH = f"touch {MARKER}"

CASES = {
    # config.json
    "no config": (lambda folder: (folder / "config.json").unlink() or folder, "give --n-head"),
    "config not JSON": (config_text("{'n_head': 3}"), "not JSON"),
    "config a list": (config_text("[1]"), "not a JSON object"),
    "config named twice": (config_text('{"n_head": 3, "n_head": 6}'), "a name appears twice"),
    "config nested deep": (config_text("[" * 100_000), "not JSON"),
    "config nested a bit": (config(mine=json.loads("[" * 150 + "]" * 150)), "nested too deep"),
    "config binary": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0") and folder, "not JSON"),
    "another model_type": (config(model_type="gptj"), "model_type 'gptj'"),
    "heads that do not divide": (config(n_head=5), "n_embd 36 is not divisible by n_head 5"),
    "10^12 heads": (config(n_head=10**12), "n_head must be an integer from 1 to 2^31"),
    "no heads": (config(n_head=0), "n_head must be"),
    "heads as text": (config(n_head="3"), "n_head must be"),
    "layers as truth": (config(n_layer=True), "n_layer must be"),
    "2 billion layers": (config(n_layer=2 * 10**9), "n_layer must be at most 10,000"),
    "9,999 layers": (config(n_layer=9999), "missing: h.2.ln_1.weight (36,)"),
    "width of 2^30": (config(n_embd=2**30, n_head=1), "describes more than 1,000,000,000,000 parameters"),
    "no width": (config(n_embd=None), "n_embd must be"),
    "quick_gelu": (config(activation_function="quick_gelu"), "activation_function must be one of gelu_new"),
    "activation as list": (config(activation_function=["gelu"]), "activation_function must be one of"),
    "epsilon as text": (config(layer_norm_epsilon="1e-5"), "layer_norm_epsilon must be"),
    "epsilon NaN": (config(layer_norm_epsilon=float("nan")), "layer_norm_epsilon must be"),
    "dropout of everything": (config(attn_pdrop=1.0), "attn_pdrop must be"),
    "flag as number": (config(scale_attn_weights=1), "scale_attn_weights must be true or false"),
    "end token as text": (config(eos_token_id="96"), "eos_token_id must be"),
    "end tokens as texts": (config(eos_token_id=["a", "b"]), "eos_token_id must be"),
    "cross-attention": (config(add_cross_attention=True), "add_cross_attention = True is not supported"),
    "rotary positions": (config(rope_theta=1e4), "rope_theta = 10000.0 stands for rotary positions, which this"),
    "quantised": (config(quantization_config={}), "quantization_config = {} stands for quantised weights"),
    "quantised to 4 bits": (config(quantization_config={"quant_method": "bnb"}), "stands for quantised weights"),
    "loaded in 8 bits": (config(load_in_8bit=True), "load_in_8bit = True stands for quantised weights"),
    "multi-query by config": (config(multi_query=True), "multi_query = True stands for grouped or multi-query"),
    "grouped-query by config": (config(num_key_value_heads=1), "num_key_value_heads = 1 stands for grouped"),
    "ALiBi": (config(alibi=True), "alibi = True stands for ALiBi"),
    "ALiBi by its old name": (config(position_embedding_type="alibi"), "position_embedding_type = 'alibi' is not"),
    "windows": (config(sliding_window=128), "sliding_window = 128 stands for attention in windows"),
    "windows in some layers": (config(layer_types=["sliding_attention", "full_attention"]), "attention in windows"),
    "windows of GPT-Neo": (config(attention_types=[[["global", "local"], 1]]), "attention in windows"),
    "soft caps": (config(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0 stands for soft caps"),
    "experts": (config(num_local_experts=8), "num_local_experts = 8 stands for experts"),
    "an adapter in the config": (config(peft_type="LORA"), "peft_type = 'LORA' stands for an adapter"),
    "muP": (config(mup_width_scale=0.5), "delete the field from config.json and try again"),
    "norms after the block": (config(do_layer_norm_before=False), "do_layer_norm_before = False is not supported"),
    "two widths": (config(hidden_size=48), "contradicts itself: n_embd is 36 and hidden_size is 48"),
    "two contexts": (config(max_position_embeddings=40), "contradicts itself"),
    "no context but another's": (config_without("n_positions", n_ctx=40), "the config says (40, 36)"),
    "vocabulary of another size": (config(vocab_size=96), "wte.weight is (97, 36), the config says (96, 36)"),
    "context of another size": (config(n_positions=64), "wpe.weight is (41, 36), the config says (64, 36)"),
    "MLP of another size": (config(n_inner=144), "h.0.mlp.c_fc.weight is (36, 52), the config says (36, 144)"),
    # the tensors
    "missing tensor": (tensors(lambda s: s.pop("transformer.ln_f.bias")), "missing: ln_f.bias (36,)"),
    "extra tensor": (tensors(lambda s: s.update({"transformer.h.2.ln_1.bias": torch.ones(36)})), "unknown: h.2.ln"),
    "wide tensor": (
        tensors(lambda s: s.update({"transformer.h.1.attn.c_proj.weight": torch.ones(36, 37)})), "is (36, 37)"
    ),
    "integer weights": (tensors(lambda s: s.update({"transformer.ln_f.bias": torch.ones(36).int()})), "is int32"),
    "contradictory tying": (
        lambda folder: config(tie_word_embeddings=False)(folder), "missing: lm_head.weight (97, 36)"
    ),
    "two models": (tensors(lambda s: s.update({"h.0.ln_1.weight": torch.ones(36)})), "two models in one file?"),
    "old and new norm names": (tensors(lambda s: s.update({"transformer.ln_f.gamma": torch.ones(36)})), "twice, under"),
    "multi-query attention": (
        tensors(lambda s: s.update({"transformer.h.0.attn.c_attn.weight": torch.ones(36, 60)})), "multi-query"
    ),
    "GPT-Neo": (
        tensors(lambda s: s.update({"transformer.h.0.attn.attention.q_proj.weight": torch.ones(36, 36)})), "GPT-Neo"
    ),
    "GPT-J": (tensors(lambda s: s.update({"transformer.h.0.attn.q_proj.weight": torch.ones(36, 36)})), "GPT-J"),
    "NeoX": (tensors(lambda s: s.update({"gpt_neox.layers.0.x": torch.ones(1)})), "GPT-NeoX"),
    "BTLM": (tensors(lambda s: s.update({"transformer.h.0.mlp.c_fc2.weight": torch.ones(1)})), "BTLM"),
    "CodeShell": (tensors(lambda s: s.update({"transformer.h.0.attn.rotary_emb.f": torch.ones(1)})), "rotary"),
    "cross-attention tensors": (
        tensors(lambda s: s.update({"transformer.h.0.crossattention.c_attn.weight": torch.ones(1)})), "cross-attention"
    ),
    "LoRA": (tensors(lambda s: s.update({"transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(1)})), "LoRA"),
    "no names at all": (raw(b"\2\0\0\0\0\0\0\0{}"), "unknown checkpoint format"),
    # safetensors files
    "empty file": (raw(b""), "0 bytes are too few"),
    "short file": (raw(b"1234567"), "7 bytes are too few"),
    "truncated file": (
        lambda folder: os.truncate(folder / "model.safetensors", 20_000) or folder, "bytes are missing"
    ),
    "header past the end": (header({"a": F4}, b"1234", 10**6), "truncated"),
    "giant header": (header({"a": F4}, b"1234", 2**63), "not a safetensors file"),
    "header of 100 MB": (header({"a": F4}, b"1234", 10**8), "truncated"),
    "header not JSON": (header(b"{{{{"), "header is broken"),
    "header a list": (header(b"[]"), "header is broken"),
    "header nested deep": (header(b"[" * 100_000), "header is broken"),
    "header named twice": (header(b'{"a":{},"a":{}}'), "a name appears twice"),
    "unknown dtype": (header({"a": F4 | {"dtype": "F4_E2M1"}}, b"1234"), "'a': unsupported dtype 'F4_E2M1'"),
    "negative shape": (header({"a": F4 | {"shape": [-1]}}, b"1234"), "'a': invalid shape [-1]"),
    "shape of fractions": (header({"a": F4 | {"shape": [1.0]}}, b"1234"), "'a': invalid shape [1.0]"),
    "shape NaN": (header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"), "invalid shape [nan]"),
    "huge shape": (header({"a": F4 | {"shape": [2**62, 2**62]}}, b"1234"), "'a': invalid shape [4611686018427387904"),
    "zero times huge": (header({"a": F4 | {"shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}), "invalid shape [0, "),
    "wrong size": (header({"a": F4 | {"shape": [2]}}, b"1234"), "does not take 4 bytes"),
    "offsets swapped": (header({"a": F4 | {"data_offsets": [4, 0]}}, b"1234"), "or offsets 4:0"),
    "overlapping tensors": (header({"a": F4, "b": F4}, b"1234"), "does not begin where the tensor before it ends"),
    "hole": (header({"a": F4 | {"data_offsets": [4, 8]}}, b"12345678"), "does not begin where"),
    "data left over": (header({"a": F4}, b"123456"), "2 bytes follow the last tensor"),
    # shards
    "index out of its folder": (index({"a": "../model.safetensors"}), "not the name of a .safetensors file"),
    "index of an absolute path": (index({"a": "/etc/passwd"}), "'/etc/passwd' is not the name"),
    "index of another format": (index({"a": "pytorch_model.bin"}), "is not the name of a .safetensors file"),
    "shard missing": (index({"a": "other.safetensors"}), "shards are missing: other.safetensors"),
    "index without a tensor": (index({"a": "part.safetensors"}), "which the index does not place there"),
    "index of numbers": (index({"a": 7}), "not an index of shards"),
    "index of nothing": (index(None), "not an index of shards"),
    # PyTorch files
    "calls os.system": (saved(lambda: {"a": Call(os.system, TOUCH)}), "names posix.system"),
    "calls eval": (saved(lambda: {"a": Call(eval, f"__import__('os').system('{TOUCH}')")}), "names __builtin__.eval"),
    "calls exec": (saved(lambda: {"a": Call(exec, "x = 1")}), "names __builtin__.exec"),
    "calls getattr": (saved(lambda: {"a": Call(getattr, "x", "upper")}), "names __builtin__.getattr"),
    "imports by name": (program(b"cevil.module\nload\n)R"), "calls evil.module.load, which no state"),
    "calls by stack": (program(b"\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R"), "names os.system"),
    "calls a tensor's class": (program(b"ctorch\nFloatStorage\n)R"), "calls torch.FloatStorage"),
    "makes an object": (program(b"ccollections\nOrderedDict\n)\x81"), "NEWOBJ"),
    "an old instance": (program(b"(cos\nsystem\nS'touch'\no"), "names os.system"),
    "an INST": (program(b"(S'touch'\nios\nsystem\n"), "which no state dict needs"),
    "an extension code": (program(b"\x82\x01"), "EXT1"),
    "sets attributes": (program(b"ctorch\nFloatStorage\n}X\1\0\0\0aJ\1\0\0\0sb"), "belongs"),
    "memo of 4 billion": (program(b"Nr\xff\xff\xff\xff"), "no state dict in it"),
    "string of 4 billion": (program(b"X\xff\xff\xff\xffabc"), "a damaged pickle"),
    "number of a megabyte": (program(b"\x8b\xff\xff\x0f\0" + bytes(0xFFFFF)), "LONG4"),
    "stack underflow": (program(b"0000"), "which no state dict needs"),
    "pops what is not there": (program(b"\x87"), "takes more from the stack than it holds"),
    "takes what is not there": (program(b"h\7"), "a damaged pickle"),
    "no end": (archive({"archive/data.pkl": b"\x80\x02}"}), "a damaged pickle"),
    "appends to a dict": (program(b"}Na"), "a dict where a list belongs"),
    "strange storage type": (program(tensor(storage(b"ctorch\nUntypedStorage\n"))), "names torch.UntypedStorage"),
    "storage that is a string": (program(tensor(storage(b"X\1\0\0\0a"))), "names an invalid storage"),
    "storage that is not there": (program(tensor(storage(key=b"../../etc/passwd"))), "names an invalid storage"),
    "storage larger than its member": (program(tensor(storage(count=2**30))), "and not 1073741824 numbers of float32"),
    "storage of negative size": (program(tensor(storage(count=-1))), "and not -1 numbers of float32"),
    "tensor beyond its storage": (program(tensor(storage(), 13)), "reaches beyond its storage of 16 elements"),
    "strides beyond the storage": (program(tensor(storage(), 0, (4,), (6,))), "reaches beyond its storage"),
    "negative stride": (program(tensor(storage(), 4, (4,), (-1,))), "and strides (-1,)"),
    "negative offset": (program(tensor(storage(), -4)), "at -4"),
    "tensor of a billion zeros": (program(tensor(storage(), 0, (2**40,), (0,))), "unknown checkpoint format"),
    "tensor of no tensor": (program(tensor(b"N")), "a NoneType where a ndarray belongs"),
    "zip bomb": (
        archive({"archive/data.pkl": b"\x80\x02}" + bytes(300_000_000)}, zipfile.ZIP_DEFLATED), "is compressed"
    ),
    "a zip's first bytes": (raw(b"PK\3\4" + bytes(40), "pytorch_model.bin"), "a damaged zip file"),
    "two pickles": (archive({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}), "not one that torch.save"),
    "any zip": (archive({"word/document.xml": b"<x/>"}), "not one that torch.save writes"),
    "TorchScript": (archive({"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b""}), "a TorchScript program"),
    "big-endian": (archive({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"big"}), "a big-endian machine"),
    "cut in two": (
        lambda folder: (saved(legacy_new)(folder) and os.truncate(folder / "pytorch_model.bin", 60_000)) or folder,
        "a damaged zip file",
    ),
    "no state dict": (saved(lambda: {"epoch": 3, "loss": 1.5}), "no state dict in it, nor under model, state_dict"),
    "a whole module": (saved(lambda: torch.nn.Linear(2, 2)), "names torch.nn.modules.linear.Linear"),
    "before PyTorch 1.6, that calls os.system": (old(lambda: {"a": Call(os.system, TOUCH)}), "names posix.system"),
    "before PyTorch 1.6, cut in two": (
        lambda folder: (old(legacy)(folder) and os.truncate(folder / "pytorch_model.bin", 60_000)) or folder,
        "is beyond the end of the file: truncated",
    ),
    "before PyTorch 1.6, cut in its pickle": (
        lambda folder: (old(legacy)(folder) and os.truncate(folder / "pytorch_model.bin", 2_000)) or folder,
        "numbers of float32, more than the file's 2,000 bytes hold",
    ),
    "before PyTorch 1.6, with more behind": (
        lambda folder: add(old(legacy)(folder) / "pytorch_model.bin", b"more") or folder, "4 bytes follow the last"
    ),
    "before PyTorch 1.6, of a petabyte": (
        old_program(tensor(old_storage(2**50)), ["0"]),
        "truncated: storage 0 has 1125899906842624 numbers of float32, more than",
    ),
    "before PyTorch 1.6, a storage missing": (old_program(tensor(old_storage(16)), []), "the keys of its storages"),
    "before PyTorch 1.6, of another size": (old_program(tensor(old_storage(16)), ["0"], 15), "another size in the"),
    "before PyTorch 1.6, a called tensor": (old_program(tensor(old_storage(16))[7:-1] + b")R", ["0"]), "a ndarray"),
    "before PyTorch 1.6, another version": (
        raw(LEGACY_MAGIC + pickle.dumps(7, 2) + pickle.dumps({}, 2), "pytorch_model.bin"),
        "version 7 of the format that PyTorch had before 1.6; only version 1001 of it can be read",
    ),
    "before PyTorch 1.6, a text of 4 billion": (
        raw(LEGACY_MAGIC + b"\x80\x02X\xff\xff\xff\xffabc", "pytorch_model.bin"), "a damaged pickle"
    ),
    "before PyTorch 1.6, a whole module": (old(lambda: torch.nn.Linear(2, 2)), "a whole nn.Module: save its"),
    "before PyTorch 1.6, a module's source": (
        old_program(b"(X\6\0\0\0modulecmodel\nGPT\nNNtQ", []), "holds a whole nn.Module"
    ),
    "a class of another package, called": (program(b"cmodel\nGPTConfig\n)R"), "calls model.GPTConfig, which no state"),
    "a class with arguments": (program(b"cmodel\nGPTConfig\nK\1\x85\x81"), "makes 'model.GPTConfig' by NEWOBJ"),
    "an instance of a shell": (program(b"csubprocess\nPopen\n)\x81"), "names subprocess.Popen"),
    "an attribute of the machine": (program(b"cbuiltins\nopen\n)\x81"), "names builtins.open"),
    "a set of lists": (program(b"c__builtin__\nset\n]]a\x85R"), "its pickle has a list where a str"),
    "a bytearray of a terabyte": (
        program(b"c__builtin__\nbytearray\n\x8a\6\0\0\0\0\0\1\x85R"), "a int where a str belongs"
    ),
    "an encoding of its own": (
        program(b"c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0rot13\x86R"), "encodes a text as 'rot13'"
    ),
    "a NumPy object": (program(b"cnumpy\ndtype\nX\1\0\0\0O\x85R"), "an unsupported NumPy type: 'O'"),
    "a NumPy scalar of another size": (
        program(b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\2\0\0\0f8\x85RC\4aaaa\x86R"),
        "another number of bytes",
    ),
    "NumPy's loader": (program(b"cnumpy.core.multiarray\nfromfile\n)R"), "names numpy.core.multiarray.fromfile"),
    "a circle": (program(b"}q\0X\5\0\0\0modelh\0s"), "no state dict in it"),
    "before PyTorch 0.2": (tar, "a tar archive of PyTorch before 0.2"),
    "a bare pickle": (raw(pickle.dumps({"a": 1}), "pytorch_model.bin"), "a bare pickle"),
    "nanoGPT that contradicts itself": (
        saved(lambda: {"model": linear_state(), "model_args": {"n_head": 3, "n_layer": 5}}), "n_layer = 5, the"
    ),
    "nanoGPT with 10^9 heads": (
        saved(lambda: {"model": linear_state(), "model_args": {"n_head": 10**9}}), "not divisible by n_head 1000000000"
    ),
    "block 999999999": (
        saved(lambda: linear_state() | {"h.999999999.mlp.c_fc.weight": torch.ones(1, 1)}), "unknown: h.999999999"
    ),
    # Flax
    "Flax cut in two": (flax(lambda data: data[: len(data) // 2]), "truncated, "),
    "Flax with more behind": (flax(lambda data: data + b"more"), "4 bytes follow the last array"),
    "Flax of nothing": (flax(lambda data: b""), "the file is empty"),
    "Flax of noise": (flax(lambda data: os.urandom(64)), "not a file of Flax's parameters"),
    "Flax nested deep": (flax(lambda data: b"\x81\xa1a" * 100_000), "dicts in each other"),
    "Flax of 4 billion entries": (flax(lambda data: b"\xdf\xff\xff\xff\xff" + data), "100,000 entries"),
    "Flax with a name of a gigabyte": (flax(lambda data: b"\x81\xdb\x40\0\0\0" + data), "a name of 1,073,741"),
    "Flax with a text": (flax(lambda data: b"\x81\xa1a\xa1b"), "a is neither a dict nor an array (byte 0xa1)"),
    "Flax with another extension": (flax(lambda data: b"\x81\xa1a\xc7\4\2aaaa"), "an extension of another type"),
    "Flax with a lying shape": (flax(array([2**40, 2**40])), "does not take 4 bytes"),
    "Flax with a zero times huge shape": (flax(array([0, 2**40, 2**40], b"")), "does not take 0 bytes"),
    "Flax with a negative shape": (flax(array([-1])), "where a size belongs"),
    "Flax of objects": (flax(array([1], kind="object")), "of an unsupported type, 'object'"),
    "Flax with a name twice": (
        flax(lambda data: b"\x82\xa1a" + array([1])(b"")[3:] + b"\xa1a" + array([1])(b"")[3:]), "a appears twice"
    ),
    # heads, wrappers and what lies beside
    "a classifier": (
        tensors(lambda s: s.update({"score.weight": torch.ones(2, 36)})), "score.weight (2, 36) is the head of a seq"
    ),
    "a value head": (tensors(lambda s: s.update({"v_head.summary.weight": torch.ones(1, 36)})), "--drop-heads reads"),
    "two choices": (
        tensors(lambda s: s.update({"multiple_choice_head.summary.weight": torch.ones(1, 36)})), "GPT2DoubleHeadsModel"
    ),
    "teacher and student": (
        tensors(lambda s: s.update({f"teacher.{name}": value.clone() for name, value in s.items()})), "two models"
    ),
    "weights beside a model": (
        tensors(lambda s: (wrap(s, "gpt."), s.update({"loss.weight": torch.ones(97)}))), "loss.weight (97,), which"
    ),
    "a scale beside a model": (
        tensors(lambda s: (wrap(s, "gpt."), s.update({"scale": torch.ones(())}))),
        "under 'gpt.' the file holds a model, and outside of it scale (), which does not belong to that model",
    ),
    "a name in a wrapper and without": (
        tensors(lambda s: s.update({"module.transformer.ln_f.bias": torch.ones(36)})), "ln_f.bias appears twice"
    ),
    # llm.c
    "llm.c of version 9": (
        raw(np.asarray([20240326, 9] + [1] * 254, "<i4").tobytes(), "gpt2.bin"), "llm.c version 9 is not supported"
    ),
    "llm.c without weights": (
        raw(np.asarray([20240326, 3, 8, 8, 1, 1, 8, 8] + [0] * 248, "<i4").tobytes(), "gpt2.bin"), "header describes"
    ),
    "llm.c with negative sizes": (
        raw(np.asarray([20240326, 3, -8, 8, 1, 1, 8, 8] + [0] * 248, "<i4").tobytes(), "gpt2.bin"), "n_positions must"
    ),
    "llm.c of a petabyte": (
        raw(np.asarray([20240326, 3] + [2**30] * 6 + [0] * 248, "<i4").tobytes(), "gpt2.bin"), "n_inner must be"
    ),
    "noise": (raw(os.urandom(5000), "pytorch_model.bin"), "no safetensors, PyTorch or llm.c file"),
}  # fmt: skip


def legacy_new():
    return random_hf().state_dict()


def linear_state() -> dict:
    return {
        name.removeprefix("transformer."): tensor.t().contiguous() if "c_" in name and tensor.ndim == 2 else tensor
        for name, tensor in random_hf().state_dict().items()
    }


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_message_and_does_no_harm(name, sound, tmp_path):
    spoil, message = CASES[name]
    shutil.copytree(sound, tmp_path / "in")
    source = spoil(tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    peak = tmp_path.with_suffix(".peak")
    done = forked.run(MEASURED, peak, source, tmp_path / "out", "--to=hf", imports=forked.CONVERSION)
    text = done.stderr
    assert done.returncode == 2, text
    assert text.startswith("convert: ")
    assert message in text
    assert "Traceback" not in text
    assert text.count("\n") == 1 or "problem" in text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not (ROOT / MARKER).exists()
    assert not Path(MARKER).exists()
    assert int(peak.read_text()) < MEMORY


def test_there_are_enough_of_them():
    assert len(CASES) >= 40
