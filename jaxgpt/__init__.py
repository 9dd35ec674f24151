"""PyTorch checkpoints of GPTs in JAX: load, freeze, fine-tune, and take them back out."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgpt import freeze
    from jaxgpt.adapter import add_lora, merge_lora
    from jaxgpt.convert import GPTConfig, InputError
    from jaxgpt.evaluation.perplexity import evaluate
    from jaxgpt.generation.complete import complete
    from jaxgpt.generation.generate import generate
    from jaxgpt.loss import next_token_loss
    from jaxgpt.mesh import make_mesh
    from jaxgpt.model.gpt import GPT
    from jaxgpt.params import count_params, named_params, with_params
    from jaxgpt.pretrained import from_pretrained, load, save, save_pretrained
    from jaxgpt.sanity.check import check
    from jaxgpt.tokenizer import load_tokenizer
    from jaxgpt.training.failures import TrainingError
    from jaxgpt.training.from_python import train
    from jaxgpt.training.run.run import Run
    from jaxgpt.vocab import resize_vocab, untie_head

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "GPTConfig",
    "InputError",
    "Run",
    "TrainingError",
    "add_lora",
    "check",
    "complete",
    "count_params",
    "evaluate",
    "freeze",
    "from_pretrained",
    "generate",
    "load",
    "load_tokenizer",
    "make_mesh",
    "merge_lora",
    "named_params",
    "next_token_loss",
    "resize_vocab",
    "save",
    "save_pretrained",
    "train",
    "untie_head",
    "with_params",
]

_MODULES = {
    "GPT": "model.gpt",
    "GPTConfig": "convert",
    "InputError": "convert",
    "Run": "training.run.run",
    "TrainingError": "training.failures",
    "add_lora": "adapter",
    "check": "sanity.check",
    "complete": "generation.complete",
    "count_params": "params",
    "evaluate": "evaluation.perplexity",
    "from_pretrained": "pretrained",
    "generate": "generation.generate",
    "load": "pretrained",
    "load_tokenizer": "tokenizer",
    "make_mesh": "mesh",
    "merge_lora": "adapter",
    "named_params": "params",
    "next_token_loss": "loss",
    "resize_vocab": "vocab",
    "save": "pretrained",
    "save_pretrained": "pretrained",
    "train": "training.from_python",
    "untie_head": "vocab",
    "with_params": "params",
}
"""Where each name is defined. A module is imported at the first use: `jaxgpt.convert` and `--help` need no JAX."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"jaxgpt.{_MODULES[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"jaxgpt.{name}"):
        return importlib.import_module(f"jaxgpt.{name}")
    raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
