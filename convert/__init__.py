"""PyTorch GPT-2 checkpoints <-> parameter pytrees: `read`, `write`, and `python -m convert`. No Flax, no torch."""

from convert.checkpoint import Checkpoint, read
from convert.config import GPTConfig
from convert.dialect import Dialect, Row
from convert.errors import InputError
from convert.export import write

__all__ = ["Checkpoint", "Dialect", "GPTConfig", "InputError", "Row", "read", "write"]
