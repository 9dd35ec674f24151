"""One table per family of models in transformers; `FAMILIES` has them all by their `model_type`."""

from jaxgpt.convert.families.gpt2 import GPT2
from jaxgpt.convert.families.gpt_neo import NEO
from jaxgpt.convert.families.gpt_neox import NEOX
from jaxgpt.convert.families.llama import LLAMAS, MISTRAL
from jaxgpt.convert.families.opt import OPT_FAMILY
from jaxgpt.convert.families.qwen import QWEN2, QWEN3_FAMILY

ALL = (GPT2, NEOX, NEO, OPT_FAMILY, LLAMAS, MISTRAL, QWEN2, QWEN3_FAMILY)

FAMILIES = {family.model_type: family for family in ALL}
