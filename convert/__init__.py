"""PyTorch checkpoints of GPTs <-> parameter pytrees: `read`, `write`, and `jaxgpt convert`. No Flax, no torch."""

from jaxgpt.convert.checkpoint import Checkpoint, read
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import Dialect, Row
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.export import write

__all__ = ["Checkpoint", "Dialect", "GPTConfig", "InputError", "Row", "read", "write"]
