"""PEFT's folders: what PEFT wrote is read with its logits, and PEFT loads what is written here, with ours."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import DIMS, call, random_hf, random_tokens, torch_logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import jaxgpt
from jaxgpt import convert
from jaxgpt.adapter import separate_new_tokens
from jaxgpt.convert.mapping import same
from jaxgpt.convert.peft import ROWS_OF_TOKENS
from jaxgpt.params import named_params, with_params

TOKENS, V = random_tokens((2, DIMS["n_positions"])), DIMS["vocab_size"]

H = "base_model.model.transformer.h."

KINDS = {
    "lora": {"r": 4, "lora_alpha": 12},
    "rslora on all layers": {"r": 3, "use_rslora": True, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    "dora": {"r": 5, "use_dora": True, "target_modules": ["c_attn", "c_fc"]},
    "one layer alone": {"r": 2, "target_modules": ["c_fc"], "layers_to_transform": [1]},
    "a head of its own": {"r": 2, "modules_to_save": ["lm_head"]},
    "an adapter on the head": {"r": 2, "target_modules": ["c_attn", "lm_head"]},
    "embeddings and norms": {"r": 2, "modules_to_save": ["wte", "ln_f"]},
    "rows of some tokens": {"r": 2, "trainable_token_indices": [3, 90, 96]},
    "dropout": {"r": 2, "lora_dropout": 0.3},
}


def base_and_adapter(folder, tied=False, **settings):
    """Write a base, and an adapter of PEFT's whose every parameter is random; return PEFT's model."""
    random_hf(tie_word_embeddings=tied).save_pretrained(folder / "base")
    torch.manual_seed(5)
    base = GPT2LMHeadModel.from_pretrained(folder / "base", attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(fan_in_fan_out=True, task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape) * 0.1)
    model.save_pretrained(folder / "adapter")
    return model


def logits_of(model) -> np.ndarray:
    return np.asarray(model(TOKENS))


@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, False) for kind in KINDS), ("lora", True), ("rows of some tokens", True)]
)
def test_what_peft_wrote_is_read_and_comes_back(kind, tied, tmp_path):
    theirs = base_and_adapter(tmp_path, tied, **KINDS[kind])
    expected = torch_logits(theirs, TOKENS)
    base = jaxgpt.from_pretrained(tmp_path / "base")
    assert np.abs(logits_of(base) - expected).max() > 0.1
    model = jaxgpt.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert np.abs(logits_of(model) - expected).max() <= 1e-5
    flags = [f"--base={tmp_path}/base", "--to=peft"]
    call("convert", tmp_path / "base", tmp_path / "again", f"--adapter={tmp_path}/adapter", *flags)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    if kind not in ("rows of some tokens", "an adapter on the head"):  # whose tables are written whole, here and there
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    plain = GPT2LMHeadModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "again").eval()
    assert np.abs(torch_logits(loaded, TOKENS) - expected).max() <= 1e-5
    call("convert", tmp_path / "base", tmp_path / "hf", f"--adapter={tmp_path}/adapter", "--to=hf")
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    assert np.abs(torch_logits(merged, TOKENS) - expected).max() <= 1e-5


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("body", ["base_model.model.transformer.", "base_model.model."])
def test_old_files_and_models_without_a_head(form, body, tmp_path):
    theirs = base_and_adapter(tmp_path, r=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = {name.replace("base_model.model.transformer.", body): tensor for name, tensor in load_file(file).items()}
    file.unlink()
    if form == "bin":
        torch.save(state, tmp_path / "adapter" / "adapter_model.bin")
    else:
        save_file(state, file)
    model = jaxgpt.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert np.abs(logits_of(model) - torch_logits(theirs, TOKENS)).max() <= 1e-5


def set_base(folder, name):
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": name}))


def test_a_path_in_a_file_is_not_followed_and_a_name_of_the_hub_is(tmp_path, monkeypatch):
    theirs = base_and_adapter(tmp_path, r=2)
    for name in (str(tmp_path / "base"), "../base", None, 3, "/etc/passwd", "file:///x"):
        set_base(tmp_path / "adapter", name)
        with pytest.raises(convert.InputError, match="is an adapter, and it"):
            convert.read(tmp_path / "adapter")
    set_base(tmp_path / "adapter", "someone/small-gpt")
    asked = []

    def snapshot_download(name, **_):
        asked.append(name)
        return str(tmp_path / "base")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = jaxgpt.from_pretrained(tmp_path / "adapter")
    assert asked == ["someone/small-gpt"]
    assert np.abs(logits_of(model) - torch_logits(theirs, TOKENS)).max() <= 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "the kind 'IA3': only LORA"), ({"peft_type": None}, "the kind 'None'"),
        ({"alora_invocation_tokens": [3]}, "'alora_invocation_tokens' is on"), ({"use_qalora": True}, "'use_qalora'"),
        ({"rank_pattern": {"c_attn": 3}}, "'rank_pattern' is on"), ({"lora_bias": True}, "'lora_bias' is on"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication' is on"), ({"something_new": "x"}, "'something_new'"),
        ({"r": 3}, r"lora_a is \(2, 36\)"), ({"r": "2"}, "r must be an integer"), ({"r": 10**9}, "r must be an"),
        ({"lora_alpha": "inf"}, "alpha must be a number"), ({"use_dora": True}, r"missing: blocks\.0\.attn\.c_attn"),
        ({"use_rslora": "yes"}, "rslora and dora must be"),
    ],
)  # fmt: skip
def test_kinds_that_are_not_computed_are_refused_by_name(settings, message, tmp_path):
    base_and_adapter(tmp_path, r=2)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(convert.InputError, match=message):
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{H}0.attn.c_attn.lora_B.weight", None, "missing: blocks.0.attn.c_attn.lora_b"),
        (f"{H}7.attn.c_attn.lora_A.weight", (2, 36), "unknown: blocks.7.attn.c_attn.lora_a"),
        (f"{H}0.attn.c_attn.lora_A", (2, 36), "lora_A"),
        ("base_model.model.wte.lora_embedding_A", (2, 97), "no parameter of Hugging Face GPT-2"),
        ("base_model.model.transformer.ln_f.weight", (35,), "ln_f.weight is"),
        ("evil\n\x1b[31m.lora_A.weight", (2,), "is an adapter, but not of a linear layer"),
        (f"base_model.model.wte.{ROWS_OF_TOKENS}", (2, 36), "trainable_token_indices does not fit"),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_refused(name, shape, message, tmp_path):
    base_and_adapter(tmp_path, r=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.ones(shape)
    save_file(state, file)
    with pytest.raises(convert.InputError, match=re.escape(message)) as caught:
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("other", ["base_model.model.h.", f"{H}0.attn.c_attn.base_layer."])
def test_a_tensor_under_two_names_is_refused(other, tmp_path):
    base_and_adapter(tmp_path, r=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    name = f"{H}0.attn.c_attn.lora_A.weight"
    again = name.replace(H, other) if other.endswith("h.") else f"{other}lora_A.weight"
    save_file(state | {again: torch.zeros(2, 36)}, file)
    with pytest.raises(convert.InputError, match=r"'h\.0\.attn\.c_attn\.lora_A\.weight' appears twice"):
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e999", "-1", "0", "1e7", '"16"', "true"])
def test_an_adapter_is_scaled_by_a_number(alpha, tmp_path):
    base_and_adapter(tmp_path, r=2)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": "ALPHA"}).replace('"ALPHA"', alpha))
    with pytest.raises(convert.InputError, match=r"alpha must be a number|is not JSON|NaN|Infinity"):
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


def test_patterns_of_target_modules_are_not_run(tmp_path):
    """The tensors say where the adapter is."""
    base_and_adapter(tmp_path, r=2)
    config = tmp_path / "adapter" / "adapter_config.json"
    for pattern in ("(a|aa)+$", "(.*)*(.*)*!", ".{1000000000}", "(", ["c_attn"] * 10**5):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": pattern}))
        assert convert.read(tmp_path / "base", adapter=tmp_path / "adapter").config.lora.r == 2


@pytest.mark.parametrize("name", ["adapter_config.json", "tokenizer.json"])
def test_a_link_in_an_adapter_leads_nowhere(name, tmp_path):
    base_and_adapter(tmp_path, r=2)
    (tmp_path / "secret").mkdir()
    secret = tmp_path / "secret" / "secret.json"
    secret.write_text((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / name).unlink(missing_ok=True)
    (tmp_path / "adapter" / name).symlink_to(secret)
    with pytest.raises(convert.InputError, match="is a link to"):
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


def test_hostile_numbers_of_rows_are_refused(tmp_path):
    base_and_adapter(tmp_path, r=2, trainable_token_indices=[3, 4])
    config = tmp_path / "adapter" / "adapter_config.json"
    for numbers in ([3], [3, -1], [3, 10**12], "ab", None, {"lm_head": [1, 2]}, [3, True]):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"trainable_token_indices": numbers}))
        with pytest.raises(convert.InputError, match="trainable_token_indices does not fit"):
            convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


@pytest.mark.parametrize(("tied", "stored"), [(True, "float32"), (False, "float32"), (True, "float16")])
def test_peft_loads_new_rows_over_a_resized_base(tied, stored, tmp_path):
    """Rows that trained in float32 stay so over a base that is stored in half precision."""
    random_hf(tie_word_embeddings=tied).to(getattr(torch, stored)).save_pretrained(tmp_path / "base")
    base = jaxgpt.from_pretrained(tmp_path / "base")
    model = separate_new_tokens(jaxgpt.resize_vocab(base, V + 2, pad_multiple=8), 2)
    model = jaxgpt.add_lora(model, "lora:r=2,on=mlp")
    params = named_params(model)
    rng = np.random.default_rng(0)
    adapters = {name: p for name, p in params.items() if "lora" in name or "new" in name}
    moved = {name: p + jnp.asarray(rng.normal(0, 0.1, p.shape), p.dtype) for name, p in adapters.items()}
    model = with_params(model, params | moved)
    expected = np.asarray(model(TOKENS))[..., : V + 2]
    told = {"to": "peft", "base": convert.read(tmp_path / "base"), "base_name": "mine/base"}
    convert.write(tmp_path / "adapter", named_params(model), model.config, **told)
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < 20_000  # no table is in it
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "base", attn_implementation="eager", dtype=torch.float32)
    theirs.resize_token_embeddings(V + 2)
    loaded = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert np.abs(torch_logits(loaded, TOKENS) - expected).max() <= 1e-5
    again = jaxgpt.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert same(logits_of(again), expected)


@pytest.mark.parametrize("lora", ["lora:r=2,on=all", "lora:r=2,on=attn,dora"])
def test_a_layer_that_changed_beside_its_adapter_is_written_whole(lora, tmp_path):
    """As `gradual:lora@0,last1@50%` leaves it; PEFT would take the layer alone, without its adapter."""
    random_hf(tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    model = jaxgpt.add_lora(jaxgpt.from_pretrained(tmp_path / "base"), lora)
    rng = np.random.default_rng(0)
    params = {
        name: p + jnp.asarray(rng.normal(0, 0.1, p.shape), p.dtype) if "lora" in name or "blocks.1" in name else p
        for name, p in named_params(model).items()
    }
    expected = np.asarray(with_params(model, params)(TOKENS))
    told = {"to": "peft", "base": convert.read(tmp_path / "base"), "base_name": "mine/base"}
    convert.write(tmp_path / "adapter", params, model.config, **told)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    loaded = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert np.abs(torch_logits(loaded, TOKENS) - expected).max() <= 1e-5
    again = jaxgpt.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert np.abs(logits_of(again) - expected).max() <= 1e-5


def test_a_layer_that_is_saved_whole_beside_its_adapter_is_refused(tmp_path):
    base_and_adapter(tmp_path, r=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = {f"{H}1.attn.c_attn.weight": torch.ones(DIMS["n_embd"], 3 * DIMS["n_embd"])}
    save_file(load_file(file) | whole, file)
    with pytest.raises(convert.InputError, match=r"'h\.1\.attn\.c_attn' is saved whole"):
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


def test_layers_without_an_adapter_are_refused_as_one(tmp_path):
    random_hf(tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    base = jaxgpt.from_pretrained(tmp_path / "base")
    told = {"to": "peft", "base": convert.read(tmp_path / "base"), "base_name": "mine/base"}
    for model in (base, jaxgpt.add_lora(base, r"lora:r=2,on=blocks\.1\..*")):
        params = {name: p + 1.0 if "blocks.1" in name else p for name, p in named_params(model).items()}
        with pytest.raises(
            convert.InputError,
            match="can't be written as an adapter, because it has none, or because the weights under its ad",
        ):
            convert.write(tmp_path / "adapter", params, model.config, **told)
    assert not (tmp_path / "adapter").exists()


def test_a_form_that_is_no_adapter_of_the_base_is_refused(tmp_path):
    random_hf(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    base = convert.read(tmp_path / "base")
    model = jaxgpt.untie_head(jaxgpt.from_pretrained(tmp_path / "base"))
    with pytest.raises(convert.InputError, match="the model and base= differ in which biases they have"):
        convert.write(tmp_path / "out", named_params(model), model.config, to="peft", base=base, base_name="x")
    model = jaxgpt.from_pretrained(tmp_path / "base")
    with pytest.raises(convert.InputError, match="nothing differs from x"):
        convert.write(tmp_path / "out", named_params(model), model.config, to="peft", base=base, base_name="x")
    assert not (tmp_path / "out").exists()
    done = call("convert", tmp_path / "base", tmp_path / "out", "--to=peft", check=False)
    assert (done.returncode, "give --base" in done.stderr) == (2, True)


def test_an_adapter_without_tensors_is_refused(tmp_path):
    base_and_adapter(tmp_path, r=2)
    save_file({}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(convert.InputError, match="the adapter holds no tensors"):
        convert.read(tmp_path / "base", adapter=tmp_path / "adapter")


def test_a_model_given_as_an_adapter_is_named(tmp_path):
    random_hf().save_pretrained(tmp_path)
    with pytest.raises(jaxgpt.InputError, match=r"^adapter=.*: there is no adapter_config\.json in it"):
        jaxgpt.from_pretrained("tiny", adapter=tmp_path)


def test_the_card_of_an_adapter_has_the_lines_that_load_it(cut, tmp_path):
    """Rows that chat's tokens and padding added are those that PEFT's base needs, and the command says so."""
    exchange = json.dumps({"instruction": "Who?", "output": "He."}) + "\n"
    (tmp_path / "chat.jsonl").write_text(exchange * 40)
    flags = ("--steps=1", "--batch-size=2", "--context=32", f"--data={tmp_path}/chat.jsonl", "--freeze=lora:r=2")
    run = tmp_path / "run"
    call("train", f"--model={cut}", f"--out={run}", *flags, samples=False)
    said = call("convert", run, tmp_path / "adapter", "--to=peft").stdout
    assert "before PEFT loads it, resize its base: base.resize_token_embeddings(4224), as README.md in " in said
    lines = (tmp_path / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    space = {}
    exec(lines.replace("this folder", str(tmp_path / "adapter")), space)
    tokens = np.asarray([[5, 6, 7]])
    theirs = space["model"](torch.tensor(tokens)).logits.detach().numpy()
    ours = jaxgpt.from_pretrained(run)(tokens)
    assert np.abs(np.asarray(ours)[..., :4098] - theirs[..., :4098]).max() <= 1e-4
