"""Every dialect: PyTorch's own modules in that layout import with their logits, and load what is exported strictly."""

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import DIMS, call, random_hf, random_tokens, torch_logits
from safetensors.torch import save_file
from torch.nn import functional as F
from torch_gpts import HuggingFaceNames, Lesson, OldMinGPT, tanh_gelu

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.dialects import DIALECTS
from jaxgpt.convert.dialects.nanogpt import NANOGPT
from jaxgpt.convert.mapping import same

TOKENS = random_tokens((2, DIMS["n_positions"]))
N = DIMS["n_head"]
MODEL_ARGS = {name: DIMS[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")} | {
    "block_size": DIMS["n_positions"],
    "dropout": 0.0,
}


def logits_of(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).numpy()


def assert_same_logits(source, expected: np.ndarray, **told) -> jaxgpt.GPT:
    model = jaxgpt.from_pretrained(source, **told)
    assert np.abs(expected).max() > 1
    assert np.abs(np.asarray(model(TOKENS)) - expected).max() <= 1e-5
    return model


def nanogpt_checkpoint(model, bias: bool, wrapper: str = "") -> dict:
    state = {wrapper + name: tensor for name, tensor in model.state_dict().items()}
    return {
        "model": state, "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "model_args": MODEL_ARGS | {"bias": bias}, "iter_num": 5, "best_val_loss": torch.tensor(1.5),
        "config": {"learning_rate": 6e-4, "compile": True, "out_dir": "out", "init_from": "scratch"},
    }  # fmt: skip


# reading


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "_orig_mod.module."])
def test_nanogpt(tmp_path, bias, wrapper):
    model = HuggingFaceNames(tied=True, activation=F.gelu, bias=bias)
    torch.save(nanogpt_checkpoint(model, bias, wrapper), tmp_path / "ckpt.pt")
    checkpoint = convert.read(tmp_path / "ckpt.pt")
    assert checkpoint.dialect is NANOGPT
    assert checkpoint.config.bias == bias
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.config.activation_function == "gelu"
    assert_same_logits(tmp_path / "ckpt.pt", logits_of(model))


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_mingpt_and_makemore(tmp_path, form):
    model = HuggingFaceNames(tied=False, activation=tanh_gelu, masks=True)
    file = tmp_path / f"model.{form}"
    if form == "pt":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    assert_same_logits(file, logits_of(model), n_head=N)
    checkpoint = convert.read(file, n_head=N)
    assert checkpoint.dialect.name == "mingpt"
    assert len(checkpoint.buffers) == DIMS["n_layer"]
    assert not checkpoint.config.tie_word_embeddings


def test_mingpt_of_2020(tmp_path):
    model = OldMinGPT()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert_same_logits(tmp_path / "model.pt", logits_of(model), n_head=N)
    assert "blocks.1.attn.query.weight" in call("convert", tmp_path / "model.pt", f"--n-head={N}").stdout


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "activation"), [("gelu", F.gelu), ("gelu_new", tanh_gelu), ("relu", F.relu)])
def test_the_lessons_gpt(tmp_path, tied, name, activation):
    model = Lesson(tied, activation)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ours = assert_same_logits(tmp_path / "model.pt", logits_of(model), n_head=N, activation=name)
    assert ours.config.tie_word_embeddings == tied


@pytest.mark.parametrize("version", [3, 5])
def test_llmc(tmp_path, version):
    theirs = random_hf(n_inner=None)
    if version == 5:
        theirs = theirs.bfloat16().float()
    file = tmp_path / "gpt2.bin"
    write_llmc(file, theirs, version)
    model = jaxgpt.from_pretrained(file)
    assert model.config.vocab_size == 128  # padded rows are kept
    logits = np.asarray(model(TOKENS))
    assert np.abs(logits[..., : DIMS["vocab_size"]] - torch_logits(theirs, TOKENS)).max() <= 1e-5
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(convert.InputError, match="bytes, but its header describes"):
        convert.read(file)


def test_dialogpt(tmp_path):
    theirs = random_hf(tie_word_embeddings=True)
    state = theirs.state_dict()
    state["lm_head.decoder.weight"] = state.pop("lm_head.weight")
    theirs.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "small_ft.pkl")
    assert_same_logits(tmp_path / "small_ft.pkl", torch_logits(theirs, TOKENS))
    assert convert.read(tmp_path / "small_ft.pkl").dialect.name == "dialogpt"


@pytest.mark.parametrize("shards", [1, 3])
def test_cerebras_gpt_as_pytorch_bins(tmp_path, shards):
    """model_type gpt2, exact GELU, an explicit n_inner, head sizes that are odd; in one file or several."""
    flags = {"activation_function": "gelu", "n_inner": 4 * 34, "n_embd": 34, "n_head": 17, "scale_attn_weights": True}
    theirs = random_hf(**flags)
    theirs.config.save_pretrained(tmp_path)
    state, names = theirs.state_dict(), list(theirs.state_dict())
    if shards == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        files = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
        for file in set(files.values()):
            torch.save({name: state[name] for name in names if files[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_same_logits(tmp_path, torch_logits(theirs, TOKENS))


def test_old_layer_norm_names_and_wrappers(tmp_path):
    theirs = random_hf()
    state = {}
    for name, tensor in theirs.state_dict().items():
        old = name.replace("ln_1.weight", "ln_1.gamma").replace("ln_1.bias", "ln_1.beta")
        state[f"module.{old}"] = tensor
    theirs.config.save_pretrained(tmp_path)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "pytorch_model.bin")
    assert_same_logits(tmp_path, torch_logits(theirs, TOKENS))


def test_strided_and_shared_tensors_of_a_torch_file(tmp_path):
    """Transposed views, slices of a larger storage and parameters, as `torch.save` writes them."""
    theirs = random_hf()
    state, big = theirs.state_dict(), torch.randn(200, 36)
    for name, tensor in state.items():
        if tensor.ndim == 2 and "wte" not in name and "lm_head" not in name:
            state[name] = tensor.t().contiguous().t()
    big[50 : 50 + DIMS["vocab_size"]] = state["transformer.wte.weight"]
    state["transformer.wte.weight"] = state["lm_head.weight"] = big[50 : 50 + DIMS["vocab_size"]]
    state["transformer.ln_f.weight"] = torch.nn.Parameter(state["transformer.ln_f.weight"])
    theirs.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_logits(tmp_path, torch_logits(theirs, TOKENS))


# what a file can't tell


def test_a_plain_state_dict_asks_for_the_heads_and_the_activation(tmp_path):
    torch.save(Lesson(True, F.gelu).state_dict(), tmp_path / "lesson.pt")
    torch.save(HuggingFaceNames(True, F.gelu).state_dict(), tmp_path / "linear.pt")
    for name in ("lesson", "linear"):
        file = tmp_path / f"{name}.pt"
        done = call("convert", file, check=False)
        assert done.returncode == 2
        assert "give --n-head" in done.stderr
        done = call("convert", file, f"--n-head={N}", check=False)
        assert done.returncode == 2
        assert "give --activation" in done.stderr
        text = call("convert", file, f"--n-head={N}", "--activation=gelu").stdout
        assert "c_attn.weight" in text
        assert "(C N H) D -> D C N H" in text
    with pytest.raises(convert.InputError, match="36 is not divisible by n_head 5"):
        convert.read(tmp_path / "lesson.pt", n_head=5, activation="gelu")


def test_what_is_told_must_not_contradict_what_is_stated(tmp_path, hf_folder):
    folder, _ = hf_folder()
    with pytest.raises(convert.InputError, match=": n_head=4 contradicts the checkpoint, which says 3"):
        convert.read(folder, n_head=4)
    with pytest.raises(convert.InputError, match=": activation=gelu contradicts the checkpoint's gelu_new"):
        convert.read(folder, activation="gelu")
    with pytest.raises(convert.InputError, match="dialect='gpt3': unknown dialect; known are hf, dialogpt"):
        convert.read(folder, dialect="gpt3")
    with pytest.raises(convert.InputError, match=r"shape: h\.0\.attn\.c_attn\.weight is \(36, 108\)"):
        convert.read(folder, dialect="mingpt")


# writing


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_export_to_nanogpt(tmp_path, bias, dtype):
    model = HuggingFaceNames(tied=True, activation=F.gelu, bias=bias)
    torch.save(nanogpt_checkpoint(model, bias), tmp_path / "in.pt")
    flags = [f"--dtype={dtype}"] if dtype else []
    call("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--to=nanogpt", *flags)
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert written["model_args"] == MODEL_ARGS | {"bias": bias}
    again = HuggingFaceNames(tied=True, activation=F.gelu, bias=bias)
    torch.nn.init.zeros_(again.lm_head.weight)
    again.load_state_dict(written["model"], strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(written["model"][name], tensor.to(getattr(torch, dtype or "float32"))), name
    if dtype is None:
        assert (logits_of(again) == logits_of(model)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_export_to_the_lesson(tmp_path, tied):
    model = Lesson(tied, tanh_gelu)
    torch.save(model.state_dict(), tmp_path / "in.pt")
    told = {"n_head": N, "activation": "gelu_new"}
    ours = jaxgpt.from_pretrained(tmp_path / "in.pt", **told)
    jaxgpt.save_pretrained(ours, tmp_path / "out.pt", dialect="lesson")
    again = Lesson(tied, tanh_gelu)
    torch.nn.init.zeros_(again.lm_head.weight)
    again.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True, mmap=True), strict=True)
    assert (logits_of(again) == logits_of(model)).all()
    with pytest.raises(convert.InputError, match="exists already"):
        jaxgpt.save_pretrained(ours, tmp_path / "out.pt", dialect="lesson")
    jaxgpt.save_pretrained(ours, tmp_path / "out.pt", dialect="lesson", force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"in.pt", "out.pt"}


def sources(folder: Path) -> dict[str, tuple[Path, dict]]:
    """A file of every dialect, and what has to be told about it."""
    torch.save(nanogpt_checkpoint(HuggingFaceNames(True, F.gelu, False), False), folder / "nanogpt.pt")
    torch.save(HuggingFaceNames(False, tanh_gelu, masks=True).state_dict(), folder / "mingpt.pt")
    torch.save(OldMinGPT().state_dict(), folder / "old-mingpt.pt")
    torch.save(Lesson(False, F.relu).state_dict(), folder / "lesson.pt")
    write_llmc(folder / "llmc.bin", random_hf(n_inner=None), 5)
    random_hf(scale_attn_by_inverse_layer_idx=True).save_pretrained(folder / "hf")
    told = {
        "lesson.pt": {"n_head": N, "activation": "relu"},
        "mingpt.pt": {"n_head": N},
        "old-mingpt.pt": {"n_head": N},
    }
    files = [*folder.glob("*.pt"), folder / "llmc.bin", folder / "hf"]
    return {path.name: (path, told.get(path.name, {})) for path in files}


def test_any_dialect_to_orbax_and_hugging_face_and_back_is_bitwise(tmp_path):
    for name, (path, told) in sources(tmp_path).items():
        source = convert.read(path, **told)
        params = source.params
        for to in ("orbax", "hf"):
            out = tmp_path / f"{name}-{to}"
            convert.write(out, params, source.config, to=to)
            again = convert.read(out)
            for parameter, array in params.items():
                assert same(np.asarray(array), np.asarray(again.params[parameter])), (name, parameter)
            extra = again.params.keys() - params.keys()
            assert all(parameter.endswith(".bias") for parameter in extra)
            assert bool(extra) == (to == "hf" and not source.config.bias)
            assert not any(np.asarray(again.params[parameter]).any() for parameter in extra)
        theirs = type(random_hf()).from_pretrained(tmp_path / f"{name}-hf", attn_implementation="eager").eval().float()
        expected = torch_logits(theirs, TOKENS)
        logits = np.asarray(jaxgpt.from_pretrained(path, **told)(TOKENS))
        assert np.abs(logits - expected).max() <= 1e-5


def test_a_form_that_can_not_hold_the_model_is_refused(tmp_path, hf_folder):
    for flags, to, message in [
        ({}, "nanogpt", r"nanoGPT can't represent this model: there, n_inner is always 144; the model's is 52"),
        ({"n_inner": None}, "nanogpt", "activation_function is always 'gelu'; the model's is 'gelu_new'"),
        (
            {"n_inner": None, "activation_function": "gelu", "tie_word_embeddings": False},
            "nanogpt",
            "tie_word_embeddings",
        ),
        ({"n_inner": None, "scale_attn_weights": False}, "lesson", "scale_attn_weights is always True"),
        ({"n_inner": None, "layer_norm_epsilon": 0.1}, "lesson", "layer_norm_epsilon is always 1e-05"),
    ]:
        folder, _ = hf_folder(**flags)
        checkpoint = convert.read(folder)
        with pytest.raises(convert.InputError, match=message):
            convert.write(tmp_path / "out.pt", checkpoint.params, checkpoint.config, to=to)
        assert not (tmp_path / "out.pt").exists()


def test_every_dialect_names_the_same_parameters():
    config = jaxgpt.GPTConfig(**DIMS, tie_word_embeddings=False)
    ours = [row.ours for row in DIALECTS["jaxgpt"].expand(config)]
    for dialect in (dialect for dialect in DIALECTS.values() if not dialect.needs_config):
        assert [row.ours for row in dialect.expand(config)] == ours
        without = [row.ours for row in dialect.expand(replace(config, bias=False))]
        assert without == [name for name in ours if not name.endswith(".bias")]


def write_llmc(path: Path, model, version: int) -> None:
    """As `train_gpt2.py` of llm.c writes it."""
    c = model.config
    header = np.zeros(256, "<i4")
    header[:8] = [20240326, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, 128]
    state = {name.removeprefix("transformer."): t.numpy() for name, t in model.state_dict().items()}
    padding = np.zeros((128 - c.vocab_size, c.n_embd), np.float32)
    tensors = [np.concatenate([state["wte.weight"], padding]), state["wpe.weight"]]
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for kind in ("weight", "bias"):
            for i in range(c.n_layer):
                array = state[f"h.{i}.{part}.{kind}"]
                tensors.append(array.T if array.ndim == 2 else array)  # Conv1D to Linear
    tensors += [state["ln_f.weight"], state["ln_f.bias"]]
    dtype = {3: np.dtype("<f4"), 5: np.dtype(ml_dtypes.bfloat16)}[version]
    with path.open("wb") as file:
        file.write(header.tobytes())
        for array in tensors:
            file.write(np.ascontiguousarray(array).astype(dtype).tobytes())
    assert struct.unpack("<i", path.read_bytes()[:4]) == (20240326,)


@dataclass
class GPTConfig:
    """As in build-nanogpt, and pickled in whole beside the model."""

    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int


@dataclass
class GPTConfigWithBias(GPTConfig):
    """As of those who keep nanoGPT's fields."""

    bias: bool = True


@pytest.mark.parametrize(
    ("config", "name", "activation"),
    [(GPTConfig, "build-nanogpt", tanh_gelu), (GPTConfigWithBias, "nanogpt", F.gelu)],
)
def test_a_config_object_beside_the_model(tmp_path, config, name, activation):
    model = HuggingFaceNames(tied=True, activation=activation)
    sizes = (DIMS["n_positions"], DIMS["vocab_size"], DIMS["n_layer"], N, DIMS["n_embd"])
    tree = {"model": model.state_dict(), "config": config(*sizes), "step": 5, "val_loss": 3.0}
    torch.save(tree, tmp_path / "model_00005.pt")
    assert_same_logits(tmp_path / "model_00005.pt", logits_of(model))
    checkpoint = convert.read(tmp_path / "model_00005.pt")
    assert checkpoint.dialect.name == name
    assert any("the activation is not stated in the file" in note for note in checkpoint.notes)
    wrong = {**tree, "config": config(sizes[0] + 1, *sizes[1:])}
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(convert.InputError, match="says block_size = 42, the tensors 41"):
        convert.read(tmp_path / "wrong.pt")
