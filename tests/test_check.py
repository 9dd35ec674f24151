"""Sanity checks: a good model passes, and each of the usual faults fails and is named."""

import copy
import json
import math
import shutil
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import DIMS, TINY, call, random_hf
from flax import nnx

import jaxgpt
from jaxgpt.model.gpt import abstract
from jaxgpt.sanity.check import check, expected_counts
from jaxgpt.sanity.comparison import compare
from jaxgpt.sanity.reference import load_reference

TOKENS = np.arange(41, dtype=np.int32)[None] * 7 % 97


@pytest.fixture(scope="module")
def tiny():
    return jaxgpt.from_pretrained("tiny"), jaxgpt.load_tokenizer("tiny")


@pytest.fixture(scope="module")
def pair():
    """A random model, and its reference."""
    reference = load_reference(random_hf())
    params = {name: jnp.asarray(array.copy()) for name, array in reference.params.items()}
    return jaxgpt.with_params(abstract(reference.config), params), reference


def changed(model, **params):
    """The model with other parameters: functions of the old ones, by name with __ for dots."""
    old = jaxgpt.named_params(model)
    return jaxgpt.with_params(
        model, old | {(n := name.replace("__", ".")): new(old[n]) for name, new in params.items()}
    )


def with_config(model, **fields):
    params = jaxgpt.named_params(model)
    if fields.get("bias") is False:
        params = {name: param for name, param in params.items() if not name.endswith(".bias")}
    new = abstract(replace(model.config, **fields))
    shapes = {name: param.shape for name, param in jaxgpt.named_params(new).items()}
    return jaxgpt.with_params(new, {name: params[name].reshape(shape) for name, shape in shapes.items()})


def verdicts(report):
    return {check.name: check.ok for check in report.checks}


def detail(report, name):
    return next(check.detail for check in report.checks if check.name == name)


def test_the_bundled_model_is_fine_and_equals_pytorch(tiny):
    report = check(*tiny, TINY, name="tiny")
    assert verdicts(report) == dict.fromkeys(
        ("counts", "weights", "tokenizer", "loss", "text", "parity", "parameters"), True
    )
    assert report.ok
    assert report.text.startswith("In the morning")
    assert report.parity.first is None
    assert report.parity.top1 == report.parity.top10 == 1
    assert 0 <= report.parity.kl < 1e-9
    assert len(report.parity.modules) == 3 + 12 * 5 + 1 + 1
    assert len(str(report.parity.table()).splitlines()) == 1


def one_token(model):
    """The same model, but whatever is said to it, it says the token 7."""
    model = jaxgpt.untie_head(model)
    head = jnp.zeros_like(jaxgpt.named_params(model)["lm_head.kernel"]).at[:, 7].set(1.0)
    return changed(model, ln_f__scale=jnp.zeros_like, ln_f__bias=jnp.ones_like, lm_head__kernel=lambda _: head)


def noise(model, scale):
    rng = np.random.default_rng(0)
    return {
        name: param if param.ndim == 1 else jnp.asarray(rng.normal(0, scale, param.shape), jnp.float32)
        for name, param in jaxgpt.named_params(model).items()
    }


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda model: jaxgpt.GPT(model.config, rngs=nnx.Rngs(0)), "predicts nearly uniformly"),
        (lambda model: jaxgpt.with_params(model, noise(model, 0.15)), "no likelier than their tokens shuffled"),
        (one_token, "repeats itself: 98% of its 4-grams, and says few different tokens"),
    ],
    ids=["untrained", "noise", "one token"],
)
def test_a_model_that_knows_nothing_fails_loss_and_text(tiny, cut, spoil, cause):
    """Three blocks know nothing as twelve do, and compile faster."""
    report = check(spoil(jaxgpt.from_pretrained(cut)), tiny[1])
    assert verdicts(report) == {"counts": True, "weights": True, "tokenizer": True, "loss": False, "text": False}
    assert cause in detail(report, "text")
    assert "tokenizer of another model" in detail(report, "loss")
    json.dumps(report.as_json(), allow_nan=False)


def test_weights_that_are_no_numbers_are_named_also_where_no_text_reaches(tiny):
    model, tokenizer = tiny
    unused = changed(model, pos_emb__embedding=lambda table: table.at[-1, 3].set(jnp.nan))
    report = check(unused, tokenizer)
    assert verdicts(report) == {"counts": True, "weights": False, "tokenizer": True, "loss": True, "text": True}
    assert detail(report, "weights") == "not finite: pos_emb.embedding"
    report = check(changed(model, ln_f__bias=lambda b: b * jnp.nan), tokenizer)
    assert "non-finite loss" in detail(report, "loss")
    assert detail(report, "text") == "the logits are not numbers"
    json.dumps(report.as_json(), allow_nan=False)


def test_a_reference_of_half_precision_is_refused_and_a_rounded_one_is_named(pair):
    model, reference = pair
    module = copy.deepcopy(reference.module)
    with pytest.raises(jaxgpt.InputError, match=r"needs a float32 reference, not torch\.float16"):
        check(model, None, copy.deepcopy(module).half())
    report = check(model, None, module.half().float())
    assert "is not rounded to float16, the reference's is" in detail(report, "parity")


def test_a_published_name_is_held_to_its_loss_and_a_shape_only_reminded(tiny):
    """A position embedding that is off by one: 5.6 nats, far below a uniform guess, above the bundled model's 4.7."""
    model, tokenizer = tiny
    shifted = changed(model, pos_emb__embedding=lambda table: jnp.roll(table, 1, 0))
    assert verdicts(check(shifted, tokenizer, name="tiny"))["loss"] is False
    report = check(shifted, tokenizer, name="mine")
    assert report.ok
    assert "not the loss of tiny" in detail(report, "loss")


@pytest.mark.parametrize("flags", [{}, {"tie_word_embeddings": False}, {"bias": False}], ids=str)
def test_counts_come_from_the_config_alone(flags):
    config = replace(load_reference(random_hf()).config, **flags)
    model = abstract(config)
    assert sum(expected_counts(config).values()) == jaxgpt.count_params(jaxgpt.named_params(model))
    grown = jaxgpt.GPT(replace(config, n_inner=DIMS["n_inner"] + 1), rngs=nnx.Rngs(0))
    grown.config = config
    report = check(grown, None)
    assert verdicts(report)["counts"] is False
    assert "blocks.0 has " in detail(report, "counts")


def test_what_lacks_a_tokenizer_skips_what_needs_one(pair):
    report = check(pair[0], None)
    assert verdicts(report) == {"counts": True, "weights": True, "tokenizer": None, "loss": None, "text": None}
    assert report.ok


def test_another_models_tokenizer_is_named(tiny, pair):
    _, tokenizer = tiny
    report = check(pair[0], tokenizer)
    assert verdicts(report) == {"counts": True, "weights": True, "tokenizer": False, "loss": None, "text": None}
    assert "the tokenizer has 4,096 tokens, the model only 97 embedding rows" in detail(report, "tokenizer")
    other = with_config(tiny[0], eos_token_id=0)
    found = detail(check(other, tokenizer), "tokenizer")
    assert "<|endoftext|> has the id 4095 in the tokenizer and 0 in the model" in found


def transposed(kernel):
    return kernel.reshape(-1, kernel.shape[-1]).T.reshape(kernel.shape)


def swapped(array):
    return jnp.take(array, jnp.array([1, 0, 2]), axis=array.ndim - 3)


C_ATTN = {"blocks__1__attn__c_attn__kernel": swapped, "blocks__1__attn__c_attn__bias": swapped}
FAULTS = {
    "transposed": (
        lambda model: changed(model, blocks__1__attn__c_proj__kernel=transposed),
        "blocks.1.attn", "blocks.1.attn.c_proj.kernel is the reference's, transposed",
    ),
    "exact gelu": (
        lambda model: with_config(model, activation_function="gelu"),
        "blocks.0.mlp", "config.activation_function is gelu, the reference's gelu_new",
    ),
    "q and k": (
        lambda model: changed(model, **C_ATTN),
        "blocks.1.attn.pattern", "blocks.1.attn.c_attn.kernel has q and k swapped",
    ),
    "off by one": (
        lambda model: changed(model, pos_emb__embedding=lambda table: jnp.roll(table, 1, 0)),
        "pos_emb", "pos_emb.embedding is the reference's, its rows shifted by one position",
    ),
    "zero bias": (
        lambda model: changed(model, blocks__1__mlp__fc1__bias=jnp.zeros_like),
        "blocks.1.mlp", "blocks.1.mlp.fc1.bias is all zeros here",
    ),
    "no biases": (
        lambda model: with_config(model, bias=False),
        "blocks.0.ln_1", "blocks.0.ln_1.bias is missing here",
    ),
    "epsilon": (
        lambda model: with_config(model, layer_norm_epsilon=1e-6),
        "blocks.0.ln_1", "config.layer_norm_epsilon is 1e-06, the reference's 1e-05",
    ),
    "scale": (
        lambda model: with_config(model, scale_attn_by_inverse_layer_idx=True),
        "blocks.1.attn.pattern", "config.scale_attn_by_inverse_layer_idx is True, the reference's False",
    ),
    "heads": (
        lambda model: with_config(model, n_head=4),
        "blocks.0.attn.pattern", "config.n_head is 4, the reference's 3",
    ),
    "values": (
        lambda model: changed(model, ln_f__scale=lambda scale: scale * 1.5),
        "ln_f", "ln_f.scale has other values: max |difference|",
    ),
    "half": (
        lambda model: changed(model, ln_f__scale=lambda scale: scale.astype(jnp.bfloat16).astype(scale.dtype)),
        "ln_f", "ln_f.scale is the reference's, rounded to bfloat16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_placed_and_named(pair, fault):
    model, reference = pair
    spoil, place, name = FAULTS[fault]
    parity = compare(spoil(model), reference, TOKENS)
    assert parity.first.name == place
    assert name in parity.cause()
    assert f"{place} " in parity.table()
    assert "<- the first that differs" in parity.table()
    json.dumps(check(spoil(model), None, reference.module).as_json(), allow_nan=False)


def test_without_a_fault_the_same_measure_is_far_below_the_tolerance(pair):
    """5e-7 to 1e-6; the smallest of the faults above, another epsilon, is 1.8e-4."""
    parity = compare(*pair, TOKENS)
    assert parity.first is None
    assert not parity.faults
    assert parity.worst.relative < 5e-6


def test_a_fault_of_the_code_is_seen_where_parameters_and_config_are_equal(pair):
    model, reference = pair
    wrong = jaxgpt.with_params(model, jaxgpt.named_params(model))
    wrong.blocks[1].mlp.activation_function = "gelu"
    parity = compare(wrong, reference, TOKENS)
    assert parity.first.name == "blocks.1.mlp"
    assert "all parameters and the config are equal" in parity.cause()


def test_rounding_that_attention_amplifies_is_no_fault():
    """Scores in the hundreds: float32 of PyTorch is as far from its own float64 as from ours."""
    theirs = random_hf(n_embd=128, n_inner=64, n_head=2)
    with torch.no_grad():
        for block in theirs.transformer.h:
            block.attn.c_attn.weight.mul_(12)
    reference = load_reference(theirs)
    model = jaxgpt.with_params(abstract(reference.config), {n: jnp.asarray(p) for n, p in reference.params.items()})
    parity = compare(model, reference, TOKENS)
    assert parity.first is None
    assert parity.worst.relative > 2e-5  # it would be one if it were not held against the rounding
    assert next(theirs.parameters()).dtype == torch.float32
    spoiled = compare(with_config(model, activation_function="gelu"), reference, TOKENS)
    assert spoiled.first.name == "blocks.0.mlp"


def test_parameters_that_no_token_reaches_are_compared_too(pair):
    model, reference = pair
    late = changed(model, pos_emb__embedding=lambda table: table.at[-1].set(0.0))
    report = check(late, None, reference.module)
    assert verdicts(report)["parity"] is False  # 41 positions, all of them reached
    parity = compare(late, reference, TOKENS[:, :40])
    assert parity.first is None
    assert [fault.name for fault in parity.faults] == ["pos_emb.embedding"]


def test_zero_biases_and_an_untied_copy_compute_the_same():
    theirs = random_hf()
    with torch.no_grad():
        for name, param in theirs.named_parameters():
            if name.endswith("bias"):
                param.zero_()
    reference = load_reference(theirs)
    params = {n: jnp.asarray(p) for n, p in reference.params.items() if not n.endswith("bias")}
    model = jaxgpt.with_params(abstract(replace(reference.config, bias=False)), params)
    report = check(model, None, theirs)
    assert report.ok
    parity = compare(jaxgpt.untie_head(model), reference, TOKENS)
    assert parity.first is None
    assert all(fault.name.startswith("config.") for fault in parity.faults)


def test_half_precision_can_not_be_compared(hf_folder):
    folder, _ = hf_folder()
    with pytest.raises(jaxgpt.InputError, match="needs a float32 model, not bfloat16"):
        check(jaxgpt.from_pretrained(folder, param_dtype=jnp.bfloat16), None, folder)


def test_the_command_line_fails_names_and_prints_strict_json(tmp_path, tiny):
    """A folder as an exporter that transposes a square matrix writes it."""
    model, tokenizer = tiny
    wrong = changed(model, blocks__3__attn__c_proj__kernel=transposed)
    jaxgpt.save_pretrained(wrong, tmp_path / "wrong", tokenizer=tokenizer)
    done = call("jaxgpt", "check", tmp_path / "wrong", "--against", TINY, "--json", check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout, parse_constant=lambda constant: pytest.fail(constant))
    assert list(report) == ["model", "ok", "checks", "text", "parity"]
    assert report["ok"] is False
    assert report["parity"]["first"] == "blocks.3.attn"
    assert all(list(c) == ["name", "ok", "measured", "expected", "detail", "values"] for c in report["checks"])
    verdict = {c["name"]: c["ok"] for c in report["checks"]}
    assert verdict["loss"] is verdict["counts"] is True  # nothing but the comparison sees it
    assert verdict["parity"] is verdict["parameters"] is False
    assert math.isfinite(report["checks"][3]["values"]["loss"])


def test_the_command_line_on_a_folder_without_tokenizer(hf_folder):
    folder, _ = hf_folder()
    done = call("jaxgpt", "check", folder)
    assert "loss       not judged  no tokenizer" in done.stdout
    assert done.stdout.endswith(": fine (not judged: tokenizer, loss, text)\n")


def test_users_mistakes_are_one_line(tmp_path, hf_folder, monkeypatch):
    refused = call("jaxgpt", "check", "nowhere/to/be", check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    folder, theirs = hf_folder()
    bert = shutil.copytree(folder, tmp_path / "bert")
    fields = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(fields | {"model_type": "bert"}))
    with pytest.raises(jaxgpt.InputError, match="unsupported architecture; known are gpt2"):
        load_reference(bert)
    (tmp_path / "empty").mkdir()
    with pytest.raises(jaxgpt.InputError, match="is not a Hugging Face folder"):
        load_reference(tmp_path / "empty")
    state = theirs.state_dict()
    part = {name: tensor for name, tensor in state.items() if "h.1.mlp.c_fc.bias" not in name and "lm_head" not in name}
    theirs.save_pretrained(tmp_path / "part", state_dict=part)
    with pytest.raises(jaxgpt.InputError, match=r"initialise these at random: transformer\.h\.1\.mlp\.c_fc\.bias"):
        load_reference(tmp_path / "part")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(jaxgpt.InputError, match=r"pip install 'jaxgpt\[torch\]'"):
        load_reference(folder)
