"""The model in PyTorch that another is compared with: transformers' GPT2LMHeadModel, in float32 on the CPU."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialects.hf import HF
from jaxgpt.convert.dialects.hf_config import config_from_hf
from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.mapping import to_ours
from jaxgpt.convert.source import resolve

MODULES = {"wte": "tok_emb", "wpe": "pos_emb", "drop": "embeddings", "ln_f": "ln_f"}
"""Theirs to ours, beside the blocks."""


@dataclass(frozen=True)
class Reference:
    """A GPT-2 of transformers, and the same parameters under our names."""

    name: str
    module: Any
    """GPT2LMHeadModel."""
    config: GPTConfig
    params: dict[str, np.ndarray]

    def counts(self) -> dict[str, int]:
        """Count the parameters of each module as PyTorch does: a tied head counts once."""
        counts: Counter[str] = Counter()
        for name, param in self.module.named_parameters():
            parts = name.removeprefix("transformer.").split(".")
            counts[f"blocks.{parts[1]}" if parts[0] == "h" else MODULES.get(parts[0], parts[0])] += param.numel()
        return dict(counts)


def load_reference(source: Any) -> Reference:
    """Load a folder or a hub name with transformers; a GPT2LMHeadModel is used as it is.

    Raises:
        InputError: PyTorch is not installed, or it is no whole GPT-2 checkpoint.
    """
    try:
        import torch
    except ImportError:
        raise InputError("a comparison with PyTorch needs PyTorch: pip install 'jaxgpt[torch]'") from None
    if isinstance(source, torch.nn.Module):
        if others := {str(param.dtype) for param in source.parameters()} - {"torch.float32"}:
            raise InputError(
                f"the comparison needs a float32 reference, not {', '.join(sorted(others))}, whose rounding would hide "
                "faults: from_pretrained(..., dtype=torch.float32)"
            )
        return _reference(type(source).__name__, source.eval())
    path = resolve(source)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{source} is not a Hugging Face folder (no config.json): jaxgpt convert {source} NEW --to=hf writes one"
        )
    with about(str(source)):
        config_from_hf(read_json(path / "config.json"))  # from_pretrained would take a BERT's for a GPT-2's
    return _reference(str(source), _from_folder(path))


def _from_folder(path: Path) -> Any:
    import torch
    from transformers import GPT2LMHeadModel

    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    settings["output_loading_info"] = True
    try:
        with _quiet():
            loaded: Any = GPT2LMHeadModel.from_pretrained(path, **settings)
    except Exception as error:  # transformers, safetensors and torch raise whatever they like for a broken file
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(f"{path}: transformers can't load it ({type(error).__name__}: {cause})") from None
    module, info = loaded
    if missing := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise InputError(
            f"{path}: not a whole GPT-2 checkpoint; transformers would initialise these at random: "
            + ", ".join(missing[:4])
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        )
    return module.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bar, and its table of what is missing, which is one line here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _reference(name: str, module: Any) -> Reference:
    with about(name):
        config = config_from_hf(module.config.to_dict())
        tensors = {key: value.detach().float().numpy() for key, value in module.state_dict().items()}
        params, config = to_ours(HF, tensors, config)
    return Reference(name, module, config, params)


def torch_outputs(
    reference: Reference,
    tokens: np.ndarray,
    see: Callable[[str, np.ndarray], None],
    *,
    pattern: str | None = None,
    double: bool = False,
) -> None:
    """Run the reference, and show each module's output, under our name for it, as soon as it is there.

    Args:
        tokens: ids, (1, T).
        see: is given name and output; nothing is kept here.
        pattern: show the attention weights of this name alone, and none where the attention returns none.
        double: compute in float64.
    """
    import torch

    def hook(name: str) -> Callable:
        def show(_module, _inputs, output) -> None:
            output = output[pattern is not None] if isinstance(output, tuple) else output
            if output is not None:
                see(name, output.numpy())

        return show

    body = reference.module.transformer
    places = [(MODULES[name], body.get_submodule(name)) for name in MODULES] + [("logits", reference.module.lm_head)]
    for i, block in enumerate(body.h):
        places += [(f"blocks.{i}.{part}", getattr(block, part)) for part in ("ln_1", "attn", "ln_2", "mlp")]
        places += [(f"blocks.{i}", block)]
    if pattern is not None:
        places = [(pattern, module) for name, module in places if f"{name}.pattern" == pattern]
    handles = [module.register_forward_hook(hook(name)) for name, module in places]
    kind = next(reference.module.parameters()).dtype
    try:
        with torch.no_grad():
            reference.module.to(torch.float64 if double else kind)
            reference.module(torch.tensor(tokens, dtype=torch.long), use_cache=False)
    finally:
        reference.module.to(kind)  # there and back changes no bit
        for handle in handles:
            handle.remove()
