"""GPT-2-class PyTorch checkpoints in JAX: load, freeze, fine-tune, and take them back out."""

from convert import GPTConfig, InputError
from jaxgpt import freeze
from jaxgpt.evaluate import evaluate
from jaxgpt.generate import generate
from jaxgpt.loss import next_token_loss
from jaxgpt.mesh import make_mesh
from jaxgpt.model import GPT
from jaxgpt.params import count_params, named_params, with_params
from jaxgpt.pretrained import from_pretrained, load, save, save_pretrained
from jaxgpt.sanity.check import check
from jaxgpt.tokenizer import load_tokenizer
from jaxgpt.vocab import resize_vocab, untie_head

__all__ = [
    "GPT",
    "GPTConfig",
    "InputError",
    "check",
    "count_params",
    "evaluate",
    "freeze",
    "from_pretrained",
    "generate",
    "load",
    "load_tokenizer",
    "make_mesh",
    "named_params",
    "next_token_loss",
    "resize_vocab",
    "save",
    "save_pretrained",
    "untie_head",
    "with_params",
]
