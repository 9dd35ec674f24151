"""A model for EleutherAI's evaluation harness (lm_eval), which knows it as `jaxgpt` once this is imported.

    import lm_eval, jaxgpt.lm_eval

    lm_eval.simple_evaluate(model=jaxgpt.lm_eval.JaxGPT(model, tokenizer, batch_size=8), tasks=["lambada_openai"])
    lm_eval.simple_evaluate(model="jaxgpt", model_args="pretrained=tiny,batch_size=8", tasks=["lambada_openai"])

The harness's own command line finds only models that it was shipped with; this one is the same with ours beside them:

    python -m jaxgpt.lm_eval --model jaxgpt --model_args pretrained=tiny --tasks lambada_openai --batch_size 8

Scores, truncation and texts are those of the harness's own model `hf`; tests/test_lm_eval.py compares them.
"""

import itertools
import logging
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxgpt.chat_templates import Request, Written, write_chats
from jaxgpt.convert.command_line.mistakes import one_clear_line
from jaxgpt.convert.errors import InputError
from jaxgpt.evaluation.score import score
from jaxgpt.model.gpt import GPT
from jaxgpt.params import count_params
from jaxgpt.pretrained import from_pretrained
from jaxgpt.tokenizer import load_tokenizer
from jaxgpt.vocab import match_tokenizer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import Collator, has_bos_prefix
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; the evaluation harness comes with: pip install 'jaxgpt[eval]'") from error
from jaxgpt.lm_eval_text import GenerationSettings, read_settings, write

log = logging.getLogger(__name__)


@register_model("jaxgpt")
class JaxGPT(TemplateLM):
    """A model as the evaluation harness uses it.

    Args:
        pretrained: a model; or where it is, as `from_pretrained` takes it, with `options` for that.
        tokenizer: a tokenizer, or where it is; by default the model's own.
        batch_size: texts that are read at once.
        max_length: tokens that the model reads of a text at most; its context by default.
        seed: of the draws, where a task draws.
        device, max_batch_size: ignored; the harness's command line always gives them, and JAX chooses the device.

    Raises:
        InputError: a tokenizer that does not belong to the model, or a setting out of its bounds.
    """

    def __init__(
        self,
        pretrained: GPT | str,
        tokenizer: Any = None,
        *,
        batch_size: int | str = 1,
        max_length: int | None = None,
        seed: int = 1234,
        device: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size must be an integer from 1 on, not {batch_size!r}")
        if isinstance(pretrained, GPT) and (options or tokenizer is None):
            raise InputError(
                f"{'a loaded model takes no ' + ', '.join(options) if options else 'a loaded model needs tokenizer='}"
            )
        tokenizer = pretrained if tokenizer is None else tokenizer
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        model = pretrained if isinstance(pretrained, GPT) else from_pretrained(pretrained, **options)
        self.model, _ = match_tokenizer(model, self.tokenizer)
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-text token (eos_token), which the harness puts before texts")
        context = self.model.config.n_positions
        if max_length is not None and not 1 <= max_length <= context:
            raise InputError(f"max_length is {max_length}, but must be from 1 to the model's context of {context}")
        self.batch_size, self.max_length, self.max_gen_toks = int(batch_size), max_length or context, 256
        self._seeds = itertools.count(seed)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Return token ids, with the tokenizer's own special tokens unless the text begins with one already."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the conversation as text by the template; without a system role if the template has none.

        Raises:
            InputError: the template fails, or takes too much time or memory.
        """

        def apply(chat: list[dict[str, str]]) -> Written | InputError:
            request = Request(chat, answer=add_generation_prompt, continues=not add_generation_prompt)
            return write_chats(self.tokenizer, [request])[0]

        found = apply(chat_history)
        if isinstance(found, InputError):
            log.warning("the chat template can't be applied; trying again without the system role")
            found = apply([message for message in chat_history if message["role"] != "system"])
        if isinstance(found, InputError):
            raise found
        return found.text

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside results."""
        return {"model_num_parameters": count_params(self.model), "model_dtype": str(np.dtype(self.model.dtype))}

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        """Score requests (texts or None, context ids, continuation ids); results with texts go to the cache."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        if empty := [texts for (texts, *_), pair in zip(requests, pairs, strict=True) if not all(pair)]:
            raise InputError(
                f"{empty[0]!r}: the context or the continuation has no tokens, so it can't be scored "
                f"({len(empty)} of {len(pairs)} requests)"
            )
        self._warn(sum(len(context) + len(continuation) > self.max_length + 1 for context, continuation in pairs))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        bar = tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests")
        for batch in score(self.model, pairs, batch_size=self.batch_size, max_length=self.max_length):
            for i, logprob, greedy in batch:
                results[i] = (logprob, greedy)
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
            bar.update(len(batch))
        bar.close()
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Return the log-probabilities of whole texts in nats, in windows that each fill the context."""
        windows, owners = [], []
        for i, (text,) in enumerate(request.args for request in requests):
            whole = self.tok_encode(text)
            for window in get_rolling_token_windows(whole, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Write texts after contexts, up to the end token or a stop string."""
        asked = [request.args for request in requests]
        prompts = {text: self.tok_encode(text) or [self.prefix_token_id] for text, _ in asked}
        room = min((self.max_length - self._settings(given).new for _, given in asked), default=0)
        self._warn(sum(len(prompt) > room for prompt in prompts.values()))
        order = Collator(
            asked,
            sort_fn=lambda request: (-len(prompts[request[0]]), request[0]),
            group_by="gen_kwargs",
            group_fn=lambda request: request[1],
        )
        results: list[str] = []
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests")
        for batch in order.get_batched(n=self.batch_size):
            settings, seed = self._settings(batch[0][1]), next(self._seeds) % 2**32
            ids = [prompts[text][-(self.max_length - settings.new) :] for text, _ in batch]
            ids += [[self.prefix_token_id]] * (self.batch_size - len(batch))  # one shape for all batches
            texts = write(self.model, self.tokenizer, ids, settings, n_rows=len(batch), seed=seed)
            for request, text in zip(batch, texts, strict=True):
                results.append(text)
                self.cache_hook.add_partial("generate_until", request, text)
            bar.update(len(batch))
        bar.close()
        return order.get_original(results)

    def _settings(self, given: dict[str, Any]) -> GenerationSettings:
        end = self.tokenizer.decode(self.eot_token_id)
        return read_settings(given, end=end, default=self.max_gen_toks, limit=self.max_length)

    def _warn(self, truncated: int) -> None:
        if truncated:
            log.warning("%d texts are longer than the context of %d: their ends are used", truncated, self.max_length)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    with one_clear_line("jaxgpt.lm_eval"):
        cli_evaluate()
