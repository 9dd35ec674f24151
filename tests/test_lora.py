"""LoRA, DoRA and rows of new tokens: against PEFT's own computation, and what must not change beside them."""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import DIMS, random_hf, random_tokens, torch_logits
from peft import LoraConfig, get_peft_model

import jaxgpt
from jaxgpt import convert, freeze
from jaxgpt.adapter import separate_new_tokens
from jaxgpt.convert.mapping import same
from jaxgpt.model.gpt import GPT
from jaxgpt.params import named_params, with_params

TOKENS = random_tokens((2, DIMS["n_positions"]))
PEFT_NAMES = {
    "attn.c_attn": "attn.c_attn",
    "attn.c_proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}

KINDS = {
    "lora": ("lora:r=4,alpha=12", {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"]}),
    "rslora": ("lora:r=9,alpha=6,rslora,on=attn", {
        "r": 9, "lora_alpha": 6, "use_rslora": True, "target_modules": ["attn.c_attn", "attn.c_proj"],
    }),
    "dora": ("lora:r=5,dora,on=all", {
        "r": 5, "lora_alpha": 10, "use_dora": True, "target_modules": ["c_attn", "c_proj", "c_fc"],
    }),
}  # fmt: skip


@functools.cache
def peft_model(kind: str):
    """Return PEFT's model, its adapter random where PEFT begins with zeros."""
    torch.manual_seed(7)
    model = get_peft_model(random_hf(), LoraConfig(fan_in_fan_out=True, task_type="CAUSAL_LM", **KINDS[kind][1])).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
            elif "magnitude" in name:
                p.mul_(1 + 0.3 * torch.rand(p.shape))
    return model


def to_theirs(name: str) -> str:
    """Return PEFT's name of one of our adapters' parameters."""
    block, module, part = re.fullmatch(r"(blocks\.\d+)\.(.*)\.(lora_[abm])", name).groups()
    ending = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
    ending |= {"lora_m": "lora_magnitude_vector.default.weight"}
    return f"base_model.model.transformer.{block.replace('blocks', 'h')}.{PEFT_NAMES[module]}.{ending[part]}"


def as_ours(name: str, theirs: torch.Tensor, shape: tuple) -> np.ndarray:
    """Return PEFT's A (r, in), B (out, r) and magnitudes (out) in our layout."""
    array = theirs.detach().numpy()
    return (array if name.endswith("lora_m") else array.T).reshape(shape)


def ours_of(kind: str) -> GPT:
    """Return our model with the parameters of PEFT's."""
    base = jaxgpt.from_pretrained(hf_file(kind))
    model = jaxgpt.add_lora(base, KINDS[kind][0])
    theirs = dict(peft_model(kind).named_parameters())
    params = named_params(model)
    adapters = {name: as_ours(name, theirs[to_theirs(name)], p.shape) for name, p in params.items() if "lora" in name}
    assert len(adapters) == sum("lora" in name for name in theirs)
    return with_params(model, params | {name: jnp.asarray(array) for name, array in adapters.items()})


@functools.cache
def hf_file(kind: str):
    import tempfile

    folder = tempfile.mkdtemp()
    random_hf().save_pretrained(folder)
    return folder


def loss_and_grads(model: GPT, strategy: str):
    plan = freeze.parse(strategy, model.config)
    trainable, frozen = plan.partition(named_params(model))

    def loss(trainable):
        return jaxgpt.next_token_loss(with_params(model, trainable | frozen), jnp.asarray(TOKENS)).mean()

    return trainable, jax.jit(jax.value_and_grad(loss))(trainable)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_and_a_step_are_pefts(kind):
    theirs, ours = peft_model(kind), ours_of(kind)
    assert np.abs(torch_logits(theirs, TOKENS) - torch_logits(random_hf(), TOKENS)).max() > 0.1  # the adapter matters
    assert np.abs(np.asarray(ours(TOKENS)) - torch_logits(theirs, TOKENS)).max() <= 1e-5
    trainable, (loss, grads) = loss_and_grads(ours, "lora")
    tokens = torch.tensor(TOKENS, dtype=torch.long)
    their_loss = theirs(tokens, labels=tokens).loss
    theirs.zero_grad()
    their_loss.backward()
    assert abs(float(loss) - their_loss.item()) <= 1e-5
    by_name = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert {to_theirs(name) for name in grads} == by_name.keys()
    for name, grad in grads.items():
        expected = as_ours(name, by_name[to_theirs(name)].grad, grad.shape)
        assert np.abs(np.asarray(grad) - expected).max() <= 1e-4 * np.abs(expected).max(), name
    told = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    before = {name: p.detach().clone() for name, p in by_name.items()}
    torch.optim.AdamW(by_name.values(), **told).step()
    tx = optax.adamw(1e-3, 0.9, 0.95, 1e-8, weight_decay=0.1)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(tx.update)(grads, tx.init(trainable), trainable)
    for name, p in optax.apply_updates(trainable, updates).items():
        assert np.abs(np.asarray(p) - as_ours(name, by_name[to_theirs(name)], p.shape)).max() <= 1e-6, name
    with torch.no_grad():
        for name, p in by_name.items():
            p.copy_(before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_what_peft_merges(kind, tmp_path):
    ours = ours_of(kind)
    merged = jaxgpt.merge_lora(ours)
    assert merged.config.lora is None
    assert named_params(merged).keys() == named_params(jaxgpt.from_pretrained(hf_file(kind))).keys()
    logits = np.asarray(ours(TOKENS))
    assert np.abs(np.asarray(merged(TOKENS)) - logits).max() <= 1e-5
    jaxgpt.save_pretrained(ours, tmp_path / "hf")
    theirs = type(random_hf()).from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    assert np.abs(torch_logits(theirs, TOKENS) - logits).max() <= 1e-5
    jaxgpt.save(ours, tmp_path / "orbax")
    again = jaxgpt.load(tmp_path / "orbax")
    assert again.config.lora == ours.config.lora
    params = named_params(again)
    assert all(same(np.asarray(p), np.asarray(params[name])) for name, p in named_params(ours).items())
    half = jaxgpt.load(tmp_path / "orbax", param_dtype=jnp.bfloat16)
    kinds = {name: p.dtype for name, p in named_params(half).items()}
    assert {str(kind) for name, kind in kinds.items() if "lora" in name} == {"float32"}
    assert {str(kind) for name, kind in kinds.items() if "lora" not in name} == {"bfloat16"}


@pytest.mark.parametrize(
    "strategy", ["lora", "lora:on=attn+mlp,r=3,dropout=0.5", "lora:rslora,on=head", "lora:on=all,dora"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_logits_are_the_base_models(strategy, dtype, tmp_path):
    random_hf(tie_word_embeddings=False).save_pretrained(tmp_path)
    base = jaxgpt.from_pretrained(tmp_path, dtype=dtype)
    model = jaxgpt.add_lora(base, strategy, seed=3)
    before, after = np.asarray(base(TOKENS)), np.asarray(model(TOKENS))
    if "dora" in strategy:
        assert np.abs(after - before).max() <= (1e-5 if dtype == "float32" else 0.2)
    else:
        assert same(before, after)
    a = np.asarray(named_params(model)[f"{model.config.lora.modules[0]}.lora_a"])
    bound = 1 / math.sqrt(DIMS["n_embd"])
    assert 0.5 * bound < np.abs(a).max() <= bound
    assert np.abs(a.mean()) < 0.3 * bound


def test_nothing_else_trains_and_weight_decay_leaves_the_base_alone():
    model = ours_of("lora")
    trainable, (_, grads) = loss_and_grads(model, "lora")
    assert {name.rpartition(".")[2] for name in trainable} == {"lora_a", "lora_b"}
    assert all(np.abs(np.asarray(grad)).max() > 0 for grad in grads.values())
    for other in ("full", "head", "last1", "first1", "embeddings", "biases", "norms"):
        names = freeze.parse(other, model.config).partition(named_params(model))[0]
        assert any("lora" in name for name in names) == (other == "full"), other


def test_strategies_join_and_follow_one_another():
    config = convert.GPTConfig(n_layer=4, tie_word_embeddings=False)

    def trains(text: str, step: int = 0, **has) -> set[str]:
        changed = replace(config, **has)
        names = [
            row.ours for row in convert.dialects.DIALECTS["jaxgpt"].expand(freeze.strategies.with_lora(text, changed))
        ]
        return {
            name for name, label in freeze.parse(text, changed, 100).labels(names, step).items() if label != "frozen"
        }

    last, head, lora = trains("last2"), trains("head"), trains("lora")
    assert trains("lora+last2") == lora | last
    assert trains("lora+head") == lora | head
    assert trains("head+lora:r=2,on=mlp+qkv") == head | trains("lora:on=qkv+mlp")
    assert trains("first3+biases") == trains("first3") | trains("biases")
    assert trains(r"norms+regex:blocks\.[01]+\.mlp\.fc1\.kernel") == trains("norms") | {
        f"blocks.{i}.mlp.fc1.kernel" for i in (0, 1)
    }
    phases = "gradual:lora:r=8,alpha=4@0,last2@40%,full@80%"
    assert trains(phases, 39) == lora
    assert trains(phases, 40) == lora | last
    assert trains(phases, 80) >= {"tok_emb.embedding", *lora}
    assert trains("new-tokens", n_new_tokens=3) == {"tok_emb.new", "lm_head.new"}
    assert trains("lora+new-tokens", n_new_tokens=3) == {"tok_emb.new", "lm_head.new"} | lora


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:r=0", "r must be an integer from 1"), ("lora:r=9999999", "r must be an integer from 1"),
        ("lora:alpha=nan", "alpha must be a number, not 'nan'"), ("lora:dropout=1", "dropout must be a probability"),
        ("lora:rank=3", "unknown option 'rank=3'"), ("lora:on=head", "a tied head has no kernel of its own"),
        ("lora:on=nowhere", "on=nowhere is no layer"), ("lora:on=(", "is not a regular expression"),
        ("lora:r=1000000000", "r must be an integer from 1"), ("lora:r=١٦", "r must be an integer"),
        ("lora:r=1_6", "r must be an integer"), ("lora:alpha=1e999", "alpha must be a number above 0"),
        ("lora:dropout=nan", "dropout must be a number"), ("lora:on=mlp,on=attn", "on is given twice"),
        ("first١", "unknown strategy"), ("lora+" * 2000, "unknown strategy"), ("full+first²", "unknown strategy"),
        ("lora:r=2,r=3", "r is given twice"), ("lora+lora:r=2", "a model has one kind of adapter"),
        ("new-tokens", "no tokens were added"), ("lora+nothing", "unknown strategy"), ("lora+", "unknown strategy"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text, message):
    with pytest.raises(jaxgpt.InputError, match=re.escape(message)):
        freeze.parse(text, jaxgpt.GPTConfig())


@pytest.mark.parametrize(
    "lora",
    [
        {"modules": ["blocks.7.attn.c_attn"]}, {"modules": ["blocks.0.attn"]}, {"modules": ["lm_head"]},
        {"modules": []},
        {"modules": ["blocks.0.mlp.fc1"] * 2}, {"modules": ["blocks.0.mlp.fc1"], "r": True}, {"rank": 3}, [3],
        {"modules": ["blocks.0.mlp.fc1"], "alpha": math.inf}, {"modules": 3}, {"modules": [{"a": 1}]},
    ],
)  # fmt: skip
def test_a_config_says_no_nonsense(lora):
    with pytest.raises(jaxgpt.InputError, match="lora"):
        jaxgpt.GPTConfig(n_layer=2, lora=lora)


# new tokens


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_train_alone(tied, tmp_path):
    random_hf(tie_word_embeddings=tied).save_pretrained(tmp_path)
    base = jaxgpt.resize_vocab(jaxgpt.from_pretrained(tmp_path), DIMS["vocab_size"] + 3, pad_multiple=8)
    model = separate_new_tokens(base, 3)
    tokens = TOKENS.copy()
    tokens[:, ::5] = DIMS["vocab_size"] + np.arange(9) % 3
    rows = DIMS["vocab_size"] + np.arange(3)  # of the new tokens, which the head multiplies by themselves
    before, after = np.asarray(base(tokens)), np.asarray(model(tokens))
    assert same(np.delete(before, rows, -1), np.delete(after, rows, -1))
    np.testing.assert_allclose(before[..., rows], after[..., rows], rtol=1e-6, atol=1e-6)
    plan = freeze.parse("new-tokens", model.config)
    trainable, frozen = plan.partition(named_params(model))

    def loss(trainable, model=model, frozen=frozen):
        return jaxgpt.next_token_loss(with_params(model, trainable | frozen), jnp.asarray(tokens)).mean()

    grads, new = jax.grad(loss)(trainable), slice(DIMS["vocab_size"], DIMS["vocab_size"] + 3)
    whole, rest = freeze.parse("regex:(tok_emb|lm_head)\\..*", base.config).partition(named_params(base))
    expected = jax.grad(functools.partial(loss, model=base, frozen=rest))(whole)
    assert np.abs(np.asarray(grads["tok_emb.new"] - expected["tok_emb.embedding"][new])).max() <= 1e-6
    if not tied:
        assert np.abs(np.asarray(grads["lm_head.new"] - expected["lm_head.kernel"][:, new])).max() <= 1e-6
    moved = with_params(model, frozen | {name: p + 0.5 for name, p in trainable.items()})
    merged = jaxgpt.merge_lora(moved)
    assert np.abs(np.asarray(merged(tokens)) - np.asarray(moved(tokens))).max() <= 1e-5
    before, after = named_params(base), named_params(merged)
    for name, p in before.items():
        changed = np.argwhere(np.asarray(p) != np.asarray(after[name]))
        axis = 0 if name == "tok_emb.embedding" else 1
        rows = {int(index[axis]) for index in changed}
        assert rows == ({*range(new.start, new.stop)} if name in ("tok_emb.embedding", "lm_head.kernel") else set()), (
            name
        )
    assert any(name == "lm_head.kernel" for name in before) == (not tied)
