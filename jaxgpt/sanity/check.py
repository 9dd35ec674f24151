"""Sanity checks of a model that has just been loaded: loss, text, counts, tokenizer, and parity with PyTorch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxgpt.adapter import merge_lora
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.model.gpt import GPT
from jaxgpt.params import by_module, count_params, module_of, named_params
from jaxgpt.sanity.comparison import compare
from jaxgpt.sanity.language import NOT_ENGLISH, SENTENCES, check_loss, check_text, reads_english, texts_loss
from jaxgpt.sanity.parity import TOLERANCE, Parity
from jaxgpt.sanity.reference import Reference, load_reference
from jaxgpt.sanity.verdict import Check, Report
from jaxgpt.tokenizer import check_vocabulary, decide_ids, encode_prompt, encode_text, vocabulary_size
from jaxgpt.vocab import mark_padding

HARD_TEXT = "  Naïve café: 👩‍🚀🇺🇳 東京 e\u0301 ﬁ\ttabs\t\r\n\n  <|x|> don't 1234567890 \u200b\u00a0trailing   "
"""Emoji of several code points, CJK, a combining accent, a ligature, tabs, line ends, and spaces at both ends."""

PARITY_TOKENS, PROMPT_TOKENS = 512, 8


def check(
    model: GPT,
    tokenizer: Any | None,
    reference: Any = None,
    *,
    name: str | None = None,
    texts: Sequence[str] | None = None,
) -> Report:
    """Check a model in all ways.

    Args:
        tokenizer: its transformers tokenizer; None skips loss and text, which is no failure.
        reference: what transformers' GPT2LMHeadModel can load, a folder or a hub name, or such a model itself; without
            it there is no comparison with PyTorch.
        name: what the model is called; `"tiny"` or a published GPT-2's name holds it to that model's loss.
        texts: texts that the model should know, each judged alone; English sentences by default, which can't judge a
            model whose tokenizer was not made for English.

    Raises:
        InputError: PyTorch is not installed, the reference is no GPT-2, or it is to be compared with a model that is
            not of float32.
    """
    model = merge_lora(model)  # PyTorch's has no adapters beside its weights
    theirs = None if reference is None else load_reference(reference)
    checks, text = [check_counts(model, theirs), check_weights(model)], None
    rows = [] if tokenizer is None else _encode(tokenizer, texts)
    ids = [token for row in rows for token in row]
    if tokenizer is None:
        checks += [Check("tokenizer", None, "the model has none", "one, for the checks of loss and text")]
    else:
        checks += [check_tokenizer(tokenizer, model.config)]
    if ids and max(ids) < model.config.n_tokens:
        marked = mark_padding(model, min(vocabulary_size(tokenizer), model.config.n_tokens))
        losses = texts_loss(marked, rows)
        judged, text = check_text(marked, tokenizer, losses, None if texts is None else rows[0][:PROMPT_TOKENS])
        found = [check_loss(marked, losses, name), judged]
        if texts is None and not math.isnan(losses[0]) and not reads_english(tokenizer):
            found = [replace(one, ok=None, detail=NOT_ENGLISH) if one.ok is False else one for one in found]
        checks += found
    else:
        why = "no tokenizer" if tokenizer is None else "the tokenizer does not belong to the model"
        why = NOT_ENGLISH if tokenizer is not None and not ids else why
        checks += [Check(skipped, None, why, "") for skipped in ("loss", "text")]
    parity = None
    if theirs is not None:
        parity = compare(model, theirs, parity_tokens(model.config, theirs.config, ids))
        checks += check_parity(parity)
    return Report(name or "model", tuple(checks), text, parity)


def _encode(tokenizer: Any, texts: Sequence[str] | None) -> list[list[int]]:
    """Return the tokens of each text, of at least two; of the English sentences nothing if they can't be encoded."""
    try:
        rows = [encode_prompt(tokenizer, text) for text in (SENTENCES if texts is None else texts)]
    except InputError:
        if texts is not None:
            raise
        return []
    rows = [row for row in rows if len(row) > 1]
    if texts is not None and not rows:
        raise InputError("texts must hold at least one text of two or more tokens")
    return rows


def expected_counts(config: GPTConfig) -> dict[str, int]:
    """Return the number of parameters of each module by the config's dimensions alone; a tied head counts once."""
    dims = config.dims
    V, D, F, H = dims["V"], dims["D"], dims["F"], dims["H"]
    q, kv = dims["N"] * H, dims["K"] * H
    b_qkv, b_out, b_mlp, b_norm = map(config.has_bias, ("q_proj", "c_proj", "fc1", "ln_f"))
    norm, n_hidden = D * (1 + b_norm), 1 + config.gated_mlp
    attention = (D + b_qkv) * (q + 2 * kv) + (q + b_out) * D + 2 * H * config.qk_norm
    mlp = n_hidden * (D + b_mlp) * F + (F + b_mlp) * D
    block = 2 * norm + attention + mlp
    counts = {"tok_emb": V * D} | ({"pos_emb": dims["P"] * D} if config.positions == "learned" else {})
    counts |= {f"blocks.{i}": block for i in range(config.n_layer)} | {"ln_f": norm}
    counts |= {} if config.tie_word_embeddings else {"lm_head": V * D + config.head_bias * V}
    for module in ("tok_emb", "lm_head"):  # rows of new tokens that are apart
        if module in counts:
            counts[module] += config.n_new_tokens * D
    sizes = {"c_attn": (D, 3 * q), "q_proj": (D, q), "k_proj": (D, kv), "v_proj": (D, kv), "c_proj": (q, D)}
    sizes |= {"gate": (D, F), "fc1": (D, F), "fc2": (F, D), "lm_head": (D, V)}
    for layer in config.lora.modules if config.lora else ():
        assert config.lora is not None
        n_in, n_out = sizes[layer.rpartition(".")[2]]
        counts[module_of(layer)] += config.lora.r * (n_in + n_out) + config.lora.dora * n_out
    return counts


def check_counts(model: GPT, reference: Reference | None = None) -> Check:
    """Check the parameters of each module against the config, and against PyTorch's own count."""
    params = named_params(model)
    counts = {module: count_params(arrays) for module, arrays in by_module(params).items()}
    problems = list(_unequal(counts, expected_counts(model.config), "by the config"))
    expected = f"{sum(expected_counts(model.config).values()):,} by the config"
    if reference is not None:
        theirs = reference.counts()
        expected += f", {sum(theirs.values()):,} in PyTorch"
        for name, array in reference.params.items():  # zeros that fill the place of what a model without biases lacks
            if name not in params and name.endswith(".bias") and not array.any():
                theirs[next(iter(by_module({name: array})))] -= array.size
        problems += _unequal(counts, theirs, "in PyTorch")
    measured = f"{sum(counts.values()):,} in {len(counts)} modules"
    detail = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
    return Check("counts", not problems, measured, expected, detail, {"total": sum(counts.values()), "modules": counts})


def check_weights(model: GPT) -> Check:
    """Check that all parameters are finite: one that is not may be where no text reaches it."""
    params = named_params(model)
    broken = [name for name, param in params.items() if not bool(jnp.isfinite(param).all())]
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    detail = f"not finite: {', '.join(broken[:4])}{more}" if broken else ""
    return Check("weights", not broken, f"{len(params) - len(broken)} of {len(params)} tensors finite", "all", detail)


def check_tokenizer(tokenizer: Any, config: GPTConfig) -> Check:
    """Check that a tokenizer belongs to the model: its size, its end of text, and a hard text there and back.

    It may have fewer tokens than the model has rows, because rows are padded to round numbers, but not less than half.
    """
    size, end, problems = vocabulary_size(tokenizer), tokenizer.eos_token_id, []
    is_lossless = "ByteLevel" in str(
        getattr(tokenizer, "backend_tokenizer", None) and tokenizer.backend_tokenizer.decoder
    )
    try:
        ids = encode_text(tokenizer, HARD_TEXT)
    except InputError:  # not all tokenizers know all characters
        ids = []
    try:
        check_vocabulary(tokenizer, config, np.asarray(ids))
    except InputError as error:
        problems += [str(error)]
    if size < config.n_tokens / 2:
        problems += [
            f"only {size:,} of {config.n_tokens:,} embedding rows have a token: the tokenizer belongs to another model"
        ]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if back != HARD_TEXT and is_lossless:
        problems += [f"a text comes back changed: {HARD_TEXT!r} as {back!r}"]
    decided, said = decide_ids(config, tokenizer)
    ends = " or ".join(map(str, decided.end_ids)) or "none"
    return Check(
        "tokenizer",
        not problems,
        f"{size:,} tokens, end token {'none' if end is None else end}; "
        f"a test text comes back {'unchanged' if back == HARD_TEXT else 'changed'}",
        f"at most {config.n_tokens:,} tokens, end token {ends}; unchanged",
        "; ".join(problems) or (said if decided.end_ids != config.end_ids else ""),
        {"tokens": size, "rows": config.n_tokens, "end": end, "largest_id": max(ids, default=None)},
    )


def check_parity(parity: Parity) -> list[Check]:
    """Turn parity into two checks: of the outputs, and of the parameters, some rows of which no token reaches."""
    logits = parity.logits
    values: dict[str, Any] = {"largest": logits.largest, "kl": parity.kl, "top1": parity.top1, "top10": parity.top10}
    values |= {"relative": parity.worst.relative, "worst": parity.worst.name}
    measured = (
        f"logits within {logits.largest:.1e}, KL {parity.kl:.1e} nats, top-1 {parity.top1:.1%}, "
        f"top-10 {parity.top10:.1%} on {parity.tokens} tokens"
    )
    ok = parity.first is None
    expected = f"every module's output within {TOLERANCE:g} of PyTorch's, relative to its largest value"
    outputs = Check("parity", ok, measured, expected, "" if ok else parity.cause(), values)
    wrong = [fault for fault in parity.faults if not fault.name.startswith("config.")]
    equal = f"{parity.parameters - len(wrong)} of {parity.parameters} equal"
    detail = parity.cause() if wrong and ok else ""
    return [outputs, Check("parameters", not wrong, equal, "all, bit by bit", detail, {"different": len(wrong)})]


def parity_tokens(ours: GPTConfig, theirs: GPTConfig, ids: list[int]) -> Int[np.ndarray, "1 T"]:
    """Return the sentences and random ids below both vocabularies, up to 512 tokens or the shorter context."""
    length, limit = min(PARITY_TOKENS, ours.n_positions, theirs.n_positions), min(ours.n_tokens, theirs.n_tokens)
    random = np.random.default_rng(0).integers(0, limit, length)
    real = [token for token in ids if token < limit][: length // 2]
    return np.concatenate([real, random])[None, :length].astype(np.int32)


def _unequal(counts: dict[str, int], expected: dict[str, int], where: str) -> Iterator[str]:
    for module in dict.fromkeys([*counts, *expected]):
        if (ours := counts.get(module, 0)) != (theirs := expected.get(module, 0)):
            yield f"{module} has {ours:,} parameters here and {theirs:,} {where}"
