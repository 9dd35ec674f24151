"""Checks of models that are not English: judged by texts of their own, and by English ones not at all."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import call
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import jaxgpt

LETTERS = "CNOF()=#123clns[]+-@H"
RINGS = ("c1ccccc1", "C1CCNCC1", "c1ccncc1", "C(=O)O", "C#N", "C(F)(F)F", "N(C)C", "OCC")


def molecules(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choice(RINGS) for _ in range(draw.randrange(4, 9))) for _ in range(n)]


def of_characters(unknown: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of characters, which refuses or marks what it does not know."""
    vocab = {c: i for i, c in enumerate(LETTERS)} | ({"[UNK]": len(LETTERS)} if unknown else {})
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"unk_token": "[UNK]"} if unknown else {}))


@pytest.fixture(scope="module")
def trained():
    """A model of one block that has learnt molecules in a few hundred steps."""
    config = jaxgpt.GPTConfig(
        vocab_size=len(LETTERS) + 1, n_positions=96, n_embd=32, n_layer=1, n_head=2, n_inner=64, eos_token_id=None
    )
    model = jaxgpt.GPT(config, rngs=nnx.Rngs(0))
    stream = np.asarray([LETTERS.index(c) for c in "".join(molecules(2000, 0))], np.int32)
    params, tx = jaxgpt.named_params(model), optax.adam(3e-3)

    @jax.jit
    def step(params, state, tokens):
        loss = lambda p: jaxgpt.next_token_loss(jaxgpt.with_params(model, p), tokens).mean()  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    with jax.numpy_rank_promotion("allow"):
        state, draw = tx.init(params), np.random.default_rng(0)
        for _ in range(300):
            begins = draw.integers(0, len(stream) - 65, 16)
            params, state = step(params, state, jnp.asarray(np.stack([stream[b : b + 65] for b in begins])))
    return jaxgpt.with_params(model, params), model


def verdicts(report):
    return {check.name: check.ok for check in report.checks}


@pytest.mark.parametrize("unknown", [False, True])
def test_a_right_model_of_molecules_is_judged_by_its_own_texts_only(trained, unknown):
    model, untrained = trained
    tokenizer = of_characters(unknown)
    plain = jaxgpt.check(model, tokenizer)
    assert plain.ok, str(plain)
    assert verdicts(plain)["loss"] is None
    assert "give texts that the model should know" in " ".join(str(plain).split())
    judged = jaxgpt.check(model, tokenizer, texts=molecules(20, 1))
    assert verdicts(judged)["loss"] is verdicts(judged)["text"] is True, str(judged)
    broken = jaxgpt.check(untrained, tokenizer, texts=molecules(20, 1))
    assert not broken.ok
    assert verdicts(broken)["loss"] is False


def test_a_broken_model_that_is_english_still_fails(cut):
    model, tokenizer = jaxgpt.from_pretrained(cut), jaxgpt.load_tokenizer(cut)
    params = jaxgpt.named_params(model)
    params["tok_emb.embedding"] = params["tok_emb.embedding"][::-1]  # the ids of another vocabulary
    assert not jaxgpt.check(jaxgpt.with_params(model, params), tokenizer).ok


def test_the_command_line_takes_texts_from_a_file(trained, tmp_path):
    jaxgpt.save_pretrained(trained[0], tmp_path / "m", tokenizer=of_characters(True))
    (tmp_path / "some.smi").write_text("\n".join(molecules(40, 2)) + "\n\n")
    done = call("jaxgpt", "check", tmp_path / "m", f"--text={tmp_path}/some.smi")
    assert done.stdout.rstrip().endswith(": fine")
    said = call("jaxgpt", "check", tmp_path / "m").stdout
    assert "not judged: " in said
    assert "--text=" in " ".join(said.split())
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, message in (("empty", "holds no text"), ("latin", "is not UTF-8"), ("gone", "no such file"), ("", "no")):
        refused = call("jaxgpt", "check", tmp_path / "m", f"--text={tmp_path / name}", check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert message in refused.stderr
