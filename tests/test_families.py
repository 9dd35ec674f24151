"""What every family of models can do here, each beside transformers: `families.MODELS` has small random ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from conftest import ROOT, torch_logits
from families import (
    BEGIN,
    END,
    FIRST,
    MODELS,
    TWO_BLOCKS,
    L,
    T,
    capabilities,
    random_model,
    random_rows,
    table,
    write_model,
)

import jaxgpt
from jaxgpt import convert, freeze, named_params, with_params
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.families.shapes import SHAPES
from jaxgpt.convert.mapping import same, to_ours
from jaxgpt.data.corpus import tokenise
from jaxgpt.mesh import make_mesh
from jaxgpt.model.attention import attention, blocked_attention, einsum_attention
from jaxgpt.params import count_params
from jaxgpt.sanity.check import expected_counts
from jaxgpt.tokenizer import begin_ids, encode_prompt, fingerprint
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.optimizer import make_optimizer
from jaxgpt.training.step.spec import batch_shapes

every_model = pytest.mark.parametrize("name", MODELS)
every_family = pytest.mark.parametrize("name", FIRST)
logits_of = jax.jit(lambda model, tokens: model(tokens))


def two_blocks(name: str) -> dict:
    """Return what makes any of the models one of two blocks."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"]} if name == "qwen3 with biases" else {}
    return TWO_BLOCKS.get(name, {"num_hidden_layers": 2} | kinds)


def as_ours(tensors: dict, config) -> dict[str, np.ndarray]:
    """PyTorch's tensors by name under our names."""
    found, _ = to_ours(FAMILIES[config.model_type].dialect, {n: t.numpy() for n, t in tensors.items()}, config)
    return {name: np.array(array) for name, array in found.items()}


@pytest.mark.capability("logits")
@every_model
@pytest.mark.parametrize("outliers", [False, True])
def test_logits_equal_transformers_over_the_whole_context(name, outliers, tmp_path):
    theirs = write_model(tmp_path, name, outliers=outliers)
    tokens = random_rows(2)
    expected = torch_logits(theirs, tokens)
    logits = np.asarray(logits_of(jaxgpt.from_pretrained(tmp_path), tokens))
    assert np.abs(expected).max() > 1
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@every_model
def test_parameters_are_counted_by_the_configs_dimensions(name, tmp_path):
    theirs = write_model(tmp_path, name)
    model = jaxgpt.from_pretrained(tmp_path)
    n_theirs = sum(p.numel() for p in theirs.parameters())
    assert count_params(model) == sum(expected_counts(model.config).values()) == n_theirs


@pytest.mark.capability("gradients and AdamW")
@every_model
def test_gradients_and_a_step_of_adamw_equal_torch(name, tmp_path):
    theirs = write_model(tmp_path, name, **two_blocks(name))
    model = jaxgpt.from_pretrained(tmp_path)
    params, tokens, rate = named_params(model), random_rows(4), 1e-4
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    their_tx = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)
    batch = torch.tensor(tokens, dtype=torch.long)
    theirs(batch, labels=batch).loss.backward()
    their_grads = as_ours({n: p.grad for n, p in theirs.named_parameters()}, model.config)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    their_tx.step()
    wanted = as_ours({n: p.detach() for n, p in theirs.named_parameters()}, model.config)

    plan = freeze.parse("full", model.config)
    tx = make_optimizer(plan, params, optax.constant_schedule(rate), weight_decay=0.1, clip=1.0)

    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: jaxgpt.next_token_loss(with_params(model, p), tokens).mean())(params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return grads, optax.apply_updates(params, updates)

    with jax.numpy_dtype_promotion("standard"):
        grads, after = step(params)
    assert grads.keys() == their_grads.keys()
    for name_, grad in grads.items():
        expected = their_grads[name_]
        scale = np.abs(expected).max()
        if name_.endswith("k_proj.bias") and model.config.positions == "learned":
            assert scale < 1e-6  # it cancels in the softmax
            continue
        assert scale > 1e-7, name_
        assert np.abs(np.asarray(grad) - expected).max() <= 1e-4 * scale, name_
        # where a gradient is rounding error, Adam's first step is so too
        certain = np.abs(expected) > 1e-3 * scale
        assert np.abs(np.asarray(after[name_]) - wanted[name_])[certain].max() <= 1e-6, name_


@pytest.mark.capability("generation")
@every_family
def test_greedy_text_of_200_tokens_equals_transformers_single_and_batched(name, tmp_path):
    theirs = write_model(tmp_path, name, max_position_embeddings=256, **TWO_BLOCKS[name])
    model = jaxgpt.from_pretrained(tmp_path)
    prompts = [random_rows(1, length, seed=length)[0] for length in (3, 17, 11)]
    theirs.generation_config.eos_token_id = None
    wanted = {"max_new_tokens": 200, "do_sample": False, "pad_token_id": 1}
    alone = theirs.generate(torch.tensor(prompts[1][None], dtype=torch.long), **wanted)[0, 17:].numpy()
    padded, mask = np.full((3, 17), 1), np.zeros((3, 17), np.int64)
    for row, prompt in enumerate(prompts):
        padded[row, 17 - len(prompt) :], mask[row, 17 - len(prompt) :] = prompt, 1
    batched = theirs.generate(torch.tensor(padded), attention_mask=torch.tensor(mask), **wanted)[:, 17:].numpy()
    rows = jaxgpt.generate(model, prompts, max_new_tokens=200, eos_id=())
    ours = np.stack([np.asarray(row)[len(p) :] for row, p in zip(rows, prompts, strict=True)])
    single = np.asarray(jaxgpt.generate(model, prompts[1][None], max_new_tokens=200, eos_id=()))[0, 17:]
    assert (ours == batched).all()
    assert (ours[1] == alone).all()
    assert (single == alone).all()
    assert len({*ours.ravel().tolist()}) > 5


@pytest.mark.capability("padding and packing")
@every_family
def test_padded_and_packed_logits_are_those_of_plain_texts(name, tmp_path):
    write_model(tmp_path, name)
    model = jaxgpt.from_pretrained(tmp_path)
    a, b = random_rows(1, 15, seed=3), random_rows(1, 21, seed=4)
    tokens = np.concatenate([np.full((1, 2), 5), a, b, np.full((1, 3), 7)], 1).astype(np.int32)
    segments = np.concatenate([np.zeros(2), np.ones(15), np.full(21, 2), np.zeros(3)])[None].astype(np.int32)
    packed = np.asarray(model(tokens, segments=segments))
    for text, start in ((a, 2), (b, 17)):
        plain = np.asarray(model(text))
        assert np.abs(packed[:, start : start + text.shape[1]] - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.capability("conversion both ways")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "safetensors") for name in MODELS),
        *((name, kind) for name in ("gpt_neox", "qwen2") for kind in ("bin", "shards")),  # untied, and tied
    ],
)
def test_an_export_is_loaded_strictly_with_the_same_bits(name, kind, tmp_path):
    theirs = random_model(name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if kind == "shards" else "5GB")
    if kind == "bin":
        (tmp_path / "theirs" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    model = jaxgpt.from_pretrained(tmp_path / "theirs")
    jaxgpt.save_pretrained(model, tmp_path / "ours", shard_size="20KB" if kind == "shards" else "5GB")
    assert (
        len([*(tmp_path / "ours").glob("*.safetensors")]) == len([*(tmp_path / "theirs").glob("*.safetensors")] or [0])
        or kind == "shards"
    )
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    tokens = random_rows(2)
    difference = np.abs(torch_logits(theirs, tokens) - torch_logits(again.eval(), tokens)).max()
    assert difference < 1e-5  # an activation's other name computes the same in another order
    assert convert.read(tmp_path / "ours").config.model_type == theirs.config.model_type
    jaxgpt.save(model, tmp_path / "orbax")
    back = jaxgpt.load(tmp_path / "orbax")
    assert back.config == model.config
    params = named_params(back)
    assert all(same(np.asarray(p), np.asarray(params[n])) for n, p in named_params(model).items())


@pytest.mark.capability("freezing")
@every_family
def test_frozen_parameters_keep_their_bits_and_cost_no_gradient(name, tmp_path):
    write_model(tmp_path, name)
    model = jaxgpt.from_pretrained(tmp_path)
    params, tokens = named_params(model), random_rows(2)
    head = "lm_head.kernel" if "lm_head.kernel" in params else "tok_emb.embedding"
    trained = {
        "full": {*params},
        "first2": {n for n in params if n.startswith(("blocks.2", "ln_f", "lm_head"))},
        "last1": {n for n in params if n.startswith(("blocks.2", "ln_f", "lm_head"))},
        "head": {head},
        "embeddings": {n for n in params if n.startswith(("tok_emb", "pos_emb"))},
        "norms": {n for n in params if "ln_" in n or "_norm" in n},
        r"regex:blocks\.1\.attn\..*": {n for n in params if n.startswith("blocks.1.attn")},
    }
    if any(n.endswith(".bias") for n in params):
        trained["biases"] = {n for n in params if n.endswith(".bias")}
    for text, expected in trained.items():
        trainable, frozen = freeze.parse(text, model.config).partition(params)
        assert {*trainable} == expected, text
        assert {*frozen} == {*params} - expected

    def flops(text):
        trainable, frozen = freeze.parse(text, model.config).partition(params)
        gradient = jax.grad(lambda t: jaxgpt.next_token_loss(with_params(model, t | frozen), tokens).mean())
        return jax.jit(gradient).lower(trainable).cost_analysis()["flops"]  # before XLA makes it less

    assert flops("last1") < 0.75 * flops("full")
    plan = freeze.parse("gradual", model.config, 9)
    assert [len(plan.partition(params, phase.start)[0]) for phase in plan.phases] == sorted(
        len(plan.partition(params, phase.start)[0]) for phase in plan.phases
    )


@pytest.mark.capability("dropout")
@every_family
def test_dropout_is_where_the_family_has_it_and_in_training_only(name, tmp_path):
    kinds = {
        "gpt_neox": ("hidden_dropout", "attention_dropout"),
        "gpt_neo": ("embed_dropout", "attention_dropout", "resid_dropout"),
        "opt": ("dropout", "attention_dropout"),
    }
    tokens, none = random_rows(1, 20), dict.fromkeys(kinds.get(name, ()), 0.0)
    for field in kinds.get(name, ("attention_dropout",)):
        few = TWO_BLOCKS[name] if name == "gpt_neo" else {"num_hidden_layers": 1}
        write_model(tmp_path / field, name, **(none | {field: 0.5} | few))
        model = jaxgpt.from_pretrained(tmp_path / field)
        quiet, noisy = model(tokens), model(tokens, dropout_key=jax.random.key(0))
        assert np.abs(np.asarray(quiet - noisy)).max() > 0.1, field
        jaxgpt.save_pretrained(model, tmp_path / f"{field}-again")
        assert json.loads((tmp_path / f"{field}-again" / "config.json").read_text())[field] == 0.5


@pytest.mark.capability("capture")
@every_family
def test_what_is_captured_is_what_transformers_computes(name, tmp_path):
    theirs = write_model(tmp_path, name)
    tokens = random_rows(1)
    with torch.no_grad():
        told = theirs(torch.tensor(tokens, dtype=torch.long), output_hidden_states=True, output_attentions=True)
    _, found = jaxgpt.from_pretrained(tmp_path)(tokens, capture=r"embeddings|blocks\.\d(\.attn\.pattern)?|ln_f")
    expected = {"embeddings": told.hidden_states[0], "blocks.0": told.hidden_states[1], "ln_f": told.hidden_states[-1]}
    expected |= {f"blocks.{i}.attn.pattern": told.attentions[i] for i in range(L)}
    for module, value in expected.items():
        value = value.numpy()
        assert np.abs(np.asarray(found[module]) - value).max() <= 1e-5 * np.abs(value).max(), module


@pytest.mark.capability("new tokens")
@every_family
def test_new_tokens_are_added_and_taken_out(name, tmp_path):
    theirs = write_model(tmp_path / "theirs", name)
    model = jaxgpt.resize_vocab(jaxgpt.from_pretrained(tmp_path / "theirs"), 101)
    tokens = random_rows(2)
    before, after = torch_logits(theirs, tokens), np.asarray(model(tokens))
    assert np.abs(after[..., :97] - before).max() <= 1e-5 * np.abs(before).max()
    jaxgpt.save_pretrained(model, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert again.config.vocab_size == 101
    new = np.full((1, 5), 100, np.int32)
    wanted = torch_logits(again, new)
    assert np.abs(np.asarray(model(new)) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("window", [0, 700])
def test_attention_of_some_queries_at_a_time_is_the_same(segments, window):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, 1024, n, 8)) for key, n in zip(keys, (4, 2, 2), strict=True))
    rows = jnp.repeat(jnp.asarray([[1, 1, 2, 0]], jnp.int32), 256, 1) if segments else None

    def loss(attend, q, k, v):
        out = attend(q, k, v, scale=0.3, segments=rows, window=window)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype).reshape(out.shape))), out

    plain, some = (
        jax.jit(jax.value_and_grad(lambda *x, attend=attend: loss(attend, *x), (0, 1, 2), has_aux=True))(q, k, v)
        for attend in (einsum_attention, blocked_attention)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(some), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-5)


def test_no_scores_of_all_pairs_are_held_in_a_long_context():
    """4,096 positions have 268 MB of scores in four heads, three times over with their gradients."""
    q = jax.ShapeDtypeStruct((1, 4096, 4, 16), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 4096, 2, 16), jnp.float32)

    def loss(q, k, v):
        return attention(q, k, v, scale=0.25).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6


def test_a_text_begins_with_what_its_tokenizer_puts_there(tmp_path):
    """Llama's and OPT's models never saw a text that begins with anything else."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    plain = jaxgpt.load_tokenizer("tiny")
    plain.add_special_tokens({"bos_token": "<|begin|>"})
    begin = plain.bos_token_id
    assert begin_ids(plain) == []
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    plain.save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    text = "The cat sat.\nIt slept." * 40
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"text": text}) for _ in range(3)))
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert begin_ids(tokenizer) == [begin]
    assert encode_prompt(tokenizer, text) == [begin, *alone] == tokenizer(text)["input_ids"]
    corpus = tokenise(tmp_path / "data.jsonl", tokenizer, cache=tmp_path / "cache")
    assert corpus.tokens.tolist() == [begin, *alone, tokenizer.eos_token_id] * 3
    assert fingerprint(tokenizer) != fingerprint(jaxgpt.load_tokenizer("tiny"))


def test_rows_of_a_long_context_are_as_long_as_gpt2s():
    """Without --context a model of 131,072 positions would ask for rows that no machine can train."""
    long = jaxgpt.GPTConfig(n_positions=131072)
    assert (long.usual_context, jaxgpt.GPTConfig(n_positions=256).usual_context) == (1024, 256)
    mesh = make_mesh(devices=jax.devices()[:1])
    assert batch_shapes(Settings(), mesh, long, packed=False).weights.shape[-1] == 1024
    assert batch_shapes(Settings(context=4096), mesh, long, packed=False).weights.shape[-1] == 4096


def test_the_documented_table_says_what_these_tests_show():
    """FAMILIES.md is written from tests that passed; here it has every family and every capability, all with yes."""
    written = (ROOT / "FAMILIES.md").read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == table({(name, family) for name in capabilities() for family in FIRST})
    document = (ROOT / "FAMILIES.md").read_text()
    assert [name for name in SHAPES if f"`{name}`" not in document] == []


def test_every_family_has_a_model_here():
    assert {transformers.AutoConfig.for_model(family).model_type for family in FAMILIES} == {*FIRST, "gpt2"}
    assert {random_model(name).config.model_type for name in MODELS} == {*FIRST}
    assert T == 41
