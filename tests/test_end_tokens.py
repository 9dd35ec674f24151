"""What ends a text: decided once, when a model and a tokenizer meet, for training, generation, check and export."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import call, random_hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import jaxgpt
from jaxgpt.tokenizer import check_vocabulary, decide_ids, encode_prompt, stop_ids
from jaxgpt.vocab import match_tokenizer, rebuilt

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer_of(
    special: dict[str, int], size: int = 120, unknown: str | None = None, adds: bool = False, **roles: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of characters and made-up words, with special tokens at the ids given."""
    free = (i for i in range(size) if i not in special.values())
    names = [*WORDS, *WORDS.upper(), " ", "\n", ".", ","]
    vocab = dict(special) | {names[n] if n < len(names) else f"word{i}": i for n, i in enumerate(free)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if adds:  # as Llama's and BERT's tokenizers do
        begin, end = roles["bos_token"], roles["eos_token"]
        ids = [(begin, vocab[begin]), (end, vocab[end])]
        backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    extra = [token for token in special if token not in roles.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, extra_special_tokens=extra, clean_up_tokenization_spaces=False,
        **roles,
    )  # fmt: skip


def chatml() -> PreTrainedTokenizerFast:
    special = {"<|endoftext|>": 0, "<|im_start|>": 99, "<|im_end|>": 100}
    tokenizer = tokenizer_of(special, eos_token="<|im_end|>", pad_token="<|endoftext|>", unknown="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def config_of(size: int = 120, eos=None, bos=None) -> jaxgpt.GPTConfig:
    return jaxgpt.GPTConfig(
        vocab_size=size, n_positions=64, n_embd=32, n_layer=1, n_head=2, n_inner=64, eos_token_id=eos, bos_token_id=bos
    )


def folder_of(path: Path, tokenizer, size: int = 120, **ids) -> Path:
    dims = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_inner": 128, "n_positions": 64}
    random_hf(**dims, vocab_size=size, **ids).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def saying(folder: Path, token: int) -> None:
    """Change a checkpoint so that it says one token for ever."""
    model = jaxgpt.untie_head(jaxgpt.from_pretrained(folder))
    params = jaxgpt.named_params(model)
    bias = jnp.zeros_like(params["ln_f.bias"]).at[0].set(1.0)
    head = jnp.zeros_like(params["lm_head.kernel"]).at[0, token].set(9.0)
    params |= {"ln_f.scale": jnp.zeros_like(bias), "ln_f.bias": bias, "lm_head.kernel": head}
    model, tokenizer = jaxgpt.with_params(model, params), jaxgpt.load_tokenizer(folder)
    jaxgpt.save_pretrained(model, folder, tokenizer=tokenizer, force=True)


# which tokens end a text, and what is said of it


@pytest.mark.parametrize(
    ("tokenizer", "eos", "ends", "said"),
    [
        (chatml(), 0, (100, 0), "and 0 '<|endoftext|>', according to the config; the tokenizer names only the first"),
        (chatml(), 100, (100,), "ends with 100 '<|im_end|>', according to the tokenizer and the config"),
        (chatml(), [100, 0], (100, 0), "according to the tokenizer and the config"),
        (chatml(), [0, 100], (100, 0), "according to the tokenizer and the config"),
        (chatml(), None, (100,), "according to the tokenizer; the config names none"),
        (chatml(), 50256, (100,), "according to the tokenizer; 50256, which the config names, does not end one"),
        (
            tokenizer_of({"</s>": 2}, eos_token="</s>"),
            5,
            (2,),
            "according to the tokenizer; 5, which the config names, does not end one",
        ),
        (tokenizer_of({"<endofstring>": 7}, eos_token="<endofstring>"), None, (7,), "ends with 7 '<endofstring>'"),
        (tokenizer_of({"</s>": 2, "<unk>": 3}, eos_token="</s>", unknown="<unk>"), 2, (2,), "ends with 2 '</s>'"),
        (tokenizer_of({"<unk>": 3}, unknown="<unk>"), 8, (8,), "according to the config; the tokenizer names none"),
        (tokenizer_of({"<unk>": 3}, unknown="<unk>"), 50256, (), "no token ends a text"),
        (tokenizer_of({}), None, (), "no token ends a text: neither the tokenizer nor the config names one"),
    ],
)
def test_the_tokenizer_s_end_token_comes_first_and_the_config_s_end_a_text_too(tokenizer, eos, ends, said):
    config = config_of(eos=eos)
    check_vocabulary(tokenizer, config)
    decided, line = decide_ids(config, tokenizer)
    assert decided.end_ids == ends
    assert said in line
    assert replace(decided, eos_token_id=None, bos_token_id=None) == replace(config, eos_token_id=None)
    assert decide_ids(decided, tokenizer)[0] == decided


@pytest.mark.parametrize(
    ("tokenizer", "size", "eos"),
    [
        (tokenizer_of({"</s>": 2, "<unk>": 3}, eos_token="</s>", unknown="<unk>"), 120, 2),  # not the unknown token's
        (tokenizer_of({"<|endoftext|>": 0}, eos_token="<|endoftext|>"), 120, 50256),  # GPT2Config's default
        (tokenizer_of({"<|endoftext|>": 0}, 60_000, eos_token="<|endoftext|>"), 60_000, 50256),  # and in range
        (chatml(), 120, 100),  # <|endoftext|> is there, and something else ends a text
        (tokenizer_of({"[UNK]": 1, "[SEP]": 4}, eos_token="[SEP]", unknown="[UNK]"), 128, 50256),
    ],
)
def test_a_right_tokenizer_is_not_refused(tokenizer, size, eos):
    check_vocabulary(tokenizer, config_of(size, eos=eos))


@pytest.mark.parametrize(
    ("tokenizer", "size", "eos"),
    [
        (tokenizer_of({"<|endoftext|>": 0}, eos_token="<|endoftext|>"), 120, 119),
        (tokenizer_of({"<|endoftext|>": 0}, 4096, eos_token="<|endoftext|>"), 50257, 50256),  # as of GPT-2
        (chatml(), 120, 57),
    ],
)
def test_a_tokenizer_to_which_the_model_s_end_is_an_ordinary_token_is_refused(tokenizer, size, eos):
    with pytest.raises(jaxgpt.InputError, match=f"has the id 0 in the tokenizer and {eos} in the model"):
        check_vocabulary(tokenizer, config_of(size, eos=eos))


@pytest.mark.parametrize("eos", [-1, [3, -1], "3", [True], 1.5])
def test_an_end_token_that_is_no_id_is_refused(eos):
    with pytest.raises(jaxgpt.InputError, match="eos_token_id must be a token id, a list of them, or null"):
        config_of(eos=eos)


# generation, check and export go by it


@pytest.mark.parametrize("token", [100, 0])
def test_generation_stops_at_each_end_token_and_so_does_transformers_after_the_export(tmp_path, token):
    folder = folder_of(tmp_path / "chat", chatml(), bos_token_id=0, eos_token_id=0)
    saying(folder, token)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == [100, 0], name
    done = call("jaxgpt", "generate", folder, "--chat", "--prompt=hello", "--max-new-tokens=20")
    assert done.stdout == "\n"
    call("convert", folder, tmp_path / "orbax", "--to=orbax")
    assert jaxgpt.load(tmp_path / "orbax").config.eos_token_id == (100, 0)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert theirs.generate(torch.tensor([[5, 6]]), max_new_tokens=20, do_sample=False).tolist() == [[5, 6, token]]


def test_several_end_tokens_end_each_row_at_its_first(tmp_path):
    model = jaxgpt.from_pretrained(folder_of(tmp_path / "m", chatml()))
    prompts = [[5, 6, 7], [8], [9, 10]]
    free = jaxgpt.generate(model, prompts, max_new_tokens=20)
    ends = [int(free[0][6]), int(free[1][10])]
    for before, after in zip(free, jaxgpt.generate(model, prompts, max_new_tokens=20, eos_id=ends), strict=True):
        n = len(before) - 20
        hits = np.flatnonzero(np.isin(before[n:], ends))
        assert (after == before[: n + hits[0] + 1 if hits.size else None]).all()
    (row,) = jaxgpt.generate(model, np.asarray([prompts[0]]), max_new_tokens=20, eos_id=ends)
    first = 3 + np.flatnonzero(np.isin(free[0][3:], ends))[0]
    assert (row[first + 1 :] == ends[0]).all()


def test_training_on_conversations_writes_its_end_token_into_the_run_and_the_export(tmp_path):
    folder = folder_of(tmp_path / "base", chatml(), bos_token_id=0, eos_token_id=0)
    pairs = [{"instruction": f"say {a}", "output": a} for a in WORDS]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs * 3))
    run = tmp_path / "run"
    flags = ("--steps=2", "--batch-size=4", "--eval-every=2", f"--cache={tmp_path}/cache")
    text = call(
        "train", f"--model={folder}", f"--data={tmp_path}/chat.jsonl", f"--out={run}", *flags, samples=False
    ).stdout
    assert "a text ends with 100 '<|im_end|>' and 0 '<|endoftext|>'" in " ".join(text.split())
    assert json.loads((run / "run.json").read_text())["resolved"]["end_tokens"] == "100, 0"
    call("convert", run, tmp_path / "hf", "--to=hf")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["eos_token_id"] == [100, 0]


def test_a_nanogpt_file_learns_its_end_token_from_the_tokenizer(tmp_path):
    tokenizer = tokenizer_of({"<endofstring>": 7}, eos_token="<endofstring>")
    folder = folder_of(tmp_path / "base", tokenizer, activation_function="gelu")
    call("convert", folder, tmp_path / "ckpt.pt", "--to=nanogpt")
    assert jaxgpt.from_pretrained(tmp_path / "ckpt.pt").config.eos_token_id is None
    (tmp_path / "some.txt").write_text("hello world. " * 200)
    run = tmp_path / "run"
    flags = ("--steps=2", "--batch-size=4", "--eval-every=2", f"--cache={tmp_path}/cache", f"--tokenizer={folder}")
    call(
        "train", f"--model={tmp_path / 'ckpt.pt'}", f"--data={tmp_path}/some.txt", f"--out={run}", *flags, samples=False
    )
    assert jaxgpt.from_pretrained(run).config.eos_token_id == 7


def test_check_says_what_ends_a_text(tmp_path):
    folder = folder_of(tmp_path / "m", chatml(), bos_token_id=0, eos_token_id=0)
    said = " ".join(call("jaxgpt", "check", folder, check=False).stdout.split())
    assert "end token 100" in said
    assert "end token 100 or 0" in said


# the advice of a message is followed to its end


def test_a_model_that_is_extended_as_the_message_says_is_used_from_then_on(tmp_path):
    tokenizer = tokenizer_of({"<|endoftext|>": 0}, 140, eos_token="<|endoftext|>")
    folder = folder_of(tmp_path / "m", tokenizer, bos_token_id=50256, eos_token_id=50256)
    refused = call("jaxgpt", "generate", folder, check=False)
    assert refused.returncode == 2
    assert "jaxgpt.resize_vocab(model, tokenizer)" in refused.stderr
    model, tokenizer = jaxgpt.from_pretrained(folder), jaxgpt.load_tokenizer(folder)
    jaxgpt.save_pretrained(jaxgpt.resize_vocab(model, tokenizer), tmp_path / "new", tokenizer=tokenizer)
    assert call("jaxgpt", "generate", tmp_path / "new", "--prompt=ab", "--max-new-tokens=3").stdout.startswith("ab")
    assert jaxgpt.from_pretrained(tmp_path / "new").config.eos_token_id == 0


# prompts


@pytest.mark.parametrize("adds", [False, True])
def test_a_prompt_is_encoded_as_training_encodes_the_beginning_of_a_text(tmp_path, adds):
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unknown": "<unk>"}
    tokenizer = tokenizer_of({"<s>": 1, "</s>": 2, "<unk>": 3}, adds=adds, **roles)
    assert tokenizer("ab")["input_ids"][-1] == (2 if adds else tokenizer.get_vocab()["b"])
    ids = encode_prompt(tokenizer, "ab")
    assert ids == tokenizer.convert_tokens_to_ids(["<s>", "a", "b"] if adds else ["a", "b"])
    folder = folder_of(tmp_path / "m", tokenizer, bos_token_id=1, eos_token_id=2)
    model, _ = match_tokenizer(jaxgpt.from_pretrained(folder), tokenizer)
    expected = tokenizer.decode(jaxgpt.generate(model, [ids], max_new_tokens=5, eos_id=2)[0], skip_special_tokens=False)
    done = call("jaxgpt", "generate", folder, "--prompt=ab", "--max-new-tokens=5", "--temperature=0", "--top-k=None")
    assert done.stdout.removesuffix("\n").replace(" ", "") == expected.removesuffix("</s>").removeprefix("<s>").replace(
        " ", ""
    )


def test_a_prompt_without_tokens_is_refused(tmp_path):
    """Some tokenizers refuse what they don't know, and some leave it out."""
    leaves_out = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    for name, tokenizer, said in (
        ("refuses", tokenizer_of({"</s>": 2}, eos_token="</s>"), "the tokenizer can't encode 'é'"),
        ("leaves out", PreTrainedTokenizerFast(tokenizer_object=leaves_out, eos_token="</s>"), "'é' gives no tokens"),
    ):
        folder = folder_of(tmp_path / name, tokenizer, bos_token_id=2, eos_token_id=2)
        refused = call("jaxgpt", "generate", folder, "--prompt=é", check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr


def test_what_generation_config_names_ends_a_text_too_if_it_is_special():
    """As in chat models of Llama and Qwen: config.json has the end of a text, and that file the end of a turn."""
    model, tokenizer = jaxgpt.from_pretrained("tiny"), jaxgpt.load_tokenizer("tiny")
    how = {"max_new_tokens": 12, "temperature": 0}
    text = jaxgpt.complete(model, tokenizer, "In the beginning", **how)
    ids = tokenizer(text)["input_ids"]
    turn = next(i for i in ids[3:] if i not in ids[:3])
    said = json.dumps({"generation_config.json": {"eos_token_id": [4095, turn, 10**6, -1, "4"]}})
    model = rebuilt(model, replace(model.config, carried=said), jaxgpt.named_params(model))
    assert stop_ids(model.config, tokenizer) == (4095,)  # an ordinary token ends nothing
    assert jaxgpt.complete(model, tokenizer, "In the beginning", **how) == text
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(tokenizer.convert_ids_to_tokens(turn), special=True)]}
    )
    assert stop_ids(model.config, tokenizer) == (4095, turn)
    shorter = jaxgpt.complete(model, tokenizer, "In the beginning", **how)
    assert shorter == tokenizer.decode(ids[: ids.index(turn)])
