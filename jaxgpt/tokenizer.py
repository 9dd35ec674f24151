"""The tokenizer of a checkpoint, and checks that it belongs to the model."""

import base64
import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgpt.arguments import TokenIds, check_stream
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.families.hf_config import carried_of
from jaxgpt.convert.formats.torch_pickle import read_pickle
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.source import SENTENCEPIECE, VOCABULARIES, check_link, resolve, tokenizer_files

READ_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".pkl")
"""Endings of files that a tokenizer may be made of."""

CHARACTER_MAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
"""A table of the normaliser, as sentencepiece's models have it."""

KNOWN_CLASSES = {
    "GPT2Tokenizer": "GPT2Tokenizer",
    "GPT2TokenizerFast": "GPT2Tokenizer",
    "TokenizersBackend": "TokenizersBackend",
    "PreTrainedTokenizerFast": "TokenizersBackend",
}
"""Classes that a tokenizer.json of a GPT-2 is read with, by the names that files give them."""

END_OF_TEXT = "<|endoftext|>"
GPT2_END = 50256
"""The id of GPT-2's end of text, which GPT2Config has by default, whatever the vocabulary."""


def load_tokenizer(source: str | Path) -> Any:
    """Load the transformers tokenizer of a checkpoint; see `from_pretrained` for `source`.

    It is what `AutoTokenizer` reads, or nanoGPT's table of characters in `meta.pkl`. Code that lies beside it is never
    run.

    Raises:
        InputError: there is none, or its files are broken.
    """
    path = resolve(source)
    files = tokenizer_files(path)
    if not files:
        raise InputError(f"{source}: no tokenizer found: there is none of {', '.join(VOCABULARIES)}")
    folder = next(iter(files.values())).parent
    root = folder.parent if folder.name == "tokenizer" else folder
    for file in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):  # which AutoTokenizer may read
        if file.suffix in READ_SUFFIXES:
            check_link(file, root)
    if not files.keys() & {*VOCABULARIES} - {"meta.pkl"}:
        return character_tokenizer(files["meta.pkl"])
    if not files.keys() & {*VOCABULARIES} - SENTENCEPIECE and not _class_named(folder):
        raise InputError(  # transformers would take it for GPT-2's, and give other ids
            f"{folder}: {next(iter(files))} alone does not say how it is read: in tokenizer_config.json, name the "
            "tokenizer_class that it was made for, such as T5Tokenizer, LlamaTokenizer or XLMRobertaTokenizer"
        )
    kind = {}
    if "tokenizer.json" not in files and not _class_named(folder):
        if "vocab.txt" in files and "vocab.json" not in files:  # of which transformers would make an empty tokenizer
            kind = {"tokenizer_type": "bert"}
        elif {"vocab.json", "merges.txt"} <= files.keys() and not (folder / "config.json").is_file():
            kind = {"tokenizer_type": "gpt2"}
    if "tokenizer.json" in files:
        _check_character_maps(files["tokenizer.json"])
    try:
        with panics_kept_out():
            if "tokenizer.json" in files and (name := _known_class(folder)):
                import transformers

                tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True, _from_auto=True)
            else:
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, **kind
                )
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
            raise ValueError("it has no tokens")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library raises plain Exception, and worse, for a broken file
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise InputError(f"{folder}: the tokenizer can't be read ({type(error).__name__}: {cause})") from None
    return tokenizer


@contextlib.contextmanager
def panics_kept_out() -> Iterator[None]:
    """Keep out what a library in Rust prints on standard error when it panics; that it fails is said by its exception.

    All else that is printed there meanwhile is printed afterwards, if nothing fails.
    """
    with contextlib.ExitStack() as stack:
        try:
            kept = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:  # no room on the disk, or standard error is closed
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        kept.seek(0)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, kept.read())


def _check_character_maps(path: Path) -> None:
    """Refuse a map of characters that is cut off, of which the tokenizers library dies with all its threads."""
    for found in CHARACTER_MAP.finditer(path.read_bytes()):
        try:
            content = base64.b64decode(found[1].replace(b"\\/", b"/"), validate=True)
        except ValueError:
            content = b""
        size = int.from_bytes(content[:4], "little")
        if len(content) < 4 or size % 4 or 4 + size > len(content):
            raise InputError(f"{path}: the tokenizer can't be read (its precompiled_charsmap is damaged)")


def _class_named(folder: Path) -> bool:
    """Return whether the files of a tokenizer say which class it has."""
    files = [folder / name for name in ("tokenizer_config.json", "config.json") if (folder / name).is_file()]
    return any(read_json(file).get("tokenizer_class") for file in files)


def _known_class(folder: Path) -> str | None:
    """Return the class that AutoTokenizer would take, where the files of a GPT-2 leave it no choice.

    Else None. To ask it takes a second or two where PyTorch is there, which it imports.
    """
    try:
        model, told = (
            read_json(file) if (file := folder / name).exists() else None
            for name in ("config.json", "tokenizer_config.json")
        )
    except InputError:  # AutoTokenizer says what is wrong
        return None
    told, is_gpt2 = told or {}, model is not None and model.get("model_type") == "gpt2"
    if "auto_map" in told or (model is not None and (not is_gpt2 or model.keys() & {"auto_map", "tokenizer_class"})):
        return None
    name = told.get("tokenizer_class", "GPT2Tokenizer" if is_gpt2 else None)
    return KNOWN_CLASSES.get(name) if isinstance(name, str) else None


def character_tokenizer(path: Path) -> Any:
    """Make a tokenizer of nanoGPT's `meta.pkl`: one token for each character of the table `stoi`.

    Raises:
        InputError: it holds anything else; no code in it is run.
    """
    table = read_pickle(path)
    ids = table.get("stoi") if isinstance(table, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(c, str) and len(c) == 1 for c in ids):
        raise InputError(f"{path}: not nanoGPT's table of characters (stoi)")
    if sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise InputError(f"{path}: the ids of its {len(ids)} characters are not 0 to {len(ids) - 1}")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(ids))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def vocabulary_size(tokenizer: Any) -> int:
    """Return how many ids, from 0 on, hold all tokens: the largest id + 1, as there may be holes."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def fingerprint(tokenizer: Any) -> str:
    """Return a digest that changes when a text may get other tokens, or a conversation another text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        what = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        what = json.loads(backend.to_str())
        what |= {"truncation": None, "padding": None}  # which every call sets
    state = [what, tokenizer.chat_template, tokenizer.eos_token, getattr(tokenizer, "split_special_tokens", False)]
    state += begin_ids(tokenizer)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def check_vocabulary(tokenizer: Any, config: GPTConfig, tokens: TokenIds | None = None) -> None:
    """Refuse a tokenizer that does not belong to the model, before any id is looked up.

    Raises:
        InputError: more tokens than rows for tokens, another end of text, or an id in `tokens` beyond them.
    """
    size = vocabulary_size(tokenizer)
    padding = f" (and {config.n_padding:,} of padding, according to its config)" if config.n_padding else ""
    extend = (
        "extend the model with jaxgpt.resize_vocab(model, tokenizer), save it and the tokenizer with "
        "jaxgpt.save_pretrained, and use that model"
    )
    if size > config.n_tokens:
        raise InputError(
            f"the tokenizer has {size:,} tokens, the model only {config.n_tokens:,} embedding rows{padding}; {extend}"
        )
    if (end := _other_end(tokenizer, config)) is not None:
        raise InputError(
            f"{END_OF_TEXT} has the id {end} in the tokenizer and {config.eos_token_id} in the model: "
            "they have different vocabularies; use the tokenizer that the model was trained with"
        )
    if tokens is not None:
        hint = f": the model has {config.n_tokens:,} embedding rows{padding}; {extend}"
        check_stream(tokens, config.n_tokens, "the data's token ids", hint)


def _other_end(tokenizer: Any, config: GPTConfig) -> int | None:
    """Return the id of `<|endoftext|>` to the tokenizer, if it shows that the model was trained with another one.

    The end tokens of the model's config are then ordinary tokens to the tokenizer, or none. Ids beyond the vocabulary
    say nothing, nor does 50256 where the tokenizer is as large: GPT2Config fills both in.
    """
    end, size = tokenizer.get_vocab().get(END_OF_TEXT), vocabulary_size(tokenizer)
    theirs = [i for i in config.end_ids if i < config.n_tokens and (i != GPT2_END or i >= size)]
    known = {*special_ids(tokenizer), end, tokenizer.eos_token_id}
    return end if end is not None and theirs and not known.intersection(theirs) else None


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that are no part of a text: those with a role, and those marked as special."""
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | {*tokenizer.all_special_ids}


def decide_ids(config: GPTConfig, tokenizer: Any) -> tuple[GPTConfig, str]:
    """Return the config with the ids that begin and end a text to this tokenizer, and a line that says why.

    The tokenizer's end token comes first: it ends the texts that training reads. The ids that the config has end a text
    too, if they are special tokens of the tokenizer; those beyond the vocabulary, and ordinary tokens, don't. Where the
    tokenizer has no end token, the config's count alone.
    """
    size, end, special = vocabulary_size(tokenizer), tokenizer.eos_token_id, special_ids(tokenizer)
    ours = [i for i in config.end_ids if i < size and (end is None or i in special)]
    ends = tuple(dict.fromkeys([*([] if end is None else [end]), *ours]))
    begin = config.bos_token_id
    if begin is None or begin >= size or begin not in special:
        begin = tokenizer.bos_token_id
    decided = replace(config, bos_token_id=begin, eos_token_id=ends)
    if not ends:
        return decided, "no token ends a text: neither the tokenizer nor the config names one"
    named = " and ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in ends)
    if end is None:
        return decided, f"a text ends with {named}, according to the config; the tokenizer names none"
    dropped = [i for i in config.end_ids if i not in ends]
    if dropped:
        what = ", ".join(map(str, dropped))
        return (
            decided,
            f"a text ends with {named}, according to the tokenizer; {what}, which the config names, does not end one",
        )
    by = "the tokenizer and the config" if config.end_ids else "the tokenizer; the config names none"
    if config.end_ids and end not in config.end_ids:
        by = "the config; the tokenizer names only the first"
    return decided, f"a text ends with {named}, according to {by}"


def stop_ids(config: GPTConfig, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids at which a text that the model writes ends: the config's, and those of `generation_config.json`.

    Models for chats name there what ends a turn. Of these only special tokens of the tokenizer count.
    """
    named = (carried_of(config, "generation_config.json") or {}).get("eos_token_id")
    further = [i for i in (named if isinstance(named, list) else [named]) if type(i) is int]
    special = special_ids(tokenizer) if further else set()
    return tuple(dict.fromkeys([*config.end_ids, *(i for i in further if i in special and i < config.n_tokens)]))


def begin_ids(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer puts before each text, as those of Llama and OPT do; most put none."""
    begin = tokenizer.bos_token_id
    if begin is None:
        return []
    try:
        return [begin] if tokenizer("", verbose=False)["input_ids"][:1] == [begin] else []
    except Exception:  # some can't encode nothing, and the tokenizers library raises plain Exception
        return []


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that is to be continued: as training encodes the beginning of one.

    What the tokenizer puts before a text is there; at its end nothing is added, such as an end token.
    """
    return [*begin_ids(tokenizer), *encode_text(tokenizer, text)]


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, and none beside them."""
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # the tokenizers library raises plain Exception for a token that is unknown
        raise InputError(f"the tokenizer can't encode {text[:40]!r} ({error})") from None


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> tuple[str, ...]:
    """Add special tokens to a tokenizer, each with one id of its own, and return those that it did not have.

    A special token is never split, never merged with its neighbours, and dropped by `skip_special_tokens`. What the
    tokenizer has already, as a special token or as an ordinary one, is left as it is.

    Raises:
        InputError: an empty token, white space around it, one that is given twice, or no valid text.
    """
    if isinstance(tokens, str):
        raise InputError(f"new tokens must be a list, not the text {tokens!r}")
    for i, token in enumerate(tokens):
        if problem := _problem(token) or ("is given twice" if token in tokens[:i] else None):
            raise InputError(f"new token {token!r} {problem}")
    known = tokenizer.get_vocab()
    new = tuple(token for token in tokens if token not in known)
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": list(new)}, replace_extra_special_tokens=False)
        if shared := set(known.values()).intersection(tokenizer.convert_tokens_to_ids(list(new))):
            raise InputError(
                f"a new token would get the id {min(shared)}, which is taken: the tokenizer's ids are not contiguous; "
                "renumber them first"
            )
    return new


def _problem(token: Any) -> str | None:
    if not isinstance(token, str) or not token:
        return "is empty" if token == "" else "is not a string"
    if token != token.strip():
        return "has white space around it"
    try:
        token.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return None
