"""One table per family of checkpoints; `DIALECTS` has them all by name."""

from jaxgpt.convert.dialects.flax import FLAX
from jaxgpt.convert.dialects.gpt_neo import GPT_NEO
from jaxgpt.convert.dialects.gpt_neox import GPT_NEOX
from jaxgpt.convert.dialects.hf import DIALOGPT, HF
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.dialects.lesson import LESSON
from jaxgpt.convert.dialects.llama import LLAMA
from jaxgpt.convert.dialects.llmc import LLMC
from jaxgpt.convert.dialects.nanogpt import BUILD_NANOGPT, MINGPT, NANOGPT, UNKNOWN_LINEAR
from jaxgpt.convert.dialects.old_mingpt import OLD_MINGPT
from jaxgpt.convert.dialects.opt import OPT
from jaxgpt.convert.dialects.qwen3 import QWEN3
from jaxgpt.convert.dialects.raschka import RASCHKA
from jaxgpt.convert.dialects.video_lecture import LECTURE

ALL = (
    HF, DIALOGPT, NANOGPT, BUILD_NANOGPT, MINGPT, UNKNOWN_LINEAR, LESSON, OLD_MINGPT, RASCHKA, LECTURE, LLMC, FLAX,
    GPT_NEOX, GPT_NEO, OPT, LLAMA, QWEN3, JAXGPT,
)  # fmt: skip

DIALECTS = {dialect.name: dialect for dialect in ALL}
