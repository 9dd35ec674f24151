"""The flags of every command that reads a checkpoint: what the file itself may leave open."""

from dataclasses import dataclass
from typing import Any

from jaxgpt.convert.command_line.flags import flag


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Flags that say of a checkpoint what it does not say itself. They come last in the help of a command."""

    dialect: str | None = flag(
        None, "How the checkpoint names and lays out its tensors, such as hf, nanogpt or llama, or a table of your "
        "own, my.toml. --dialect=list names all.",
        metavar="NAME", default_text="detected", group="model",
    )  # fmt: skip
    n_head: int | None = flag(
        None, "The number of attention heads. Needed for a plain state dict, whose shapes do not determine it.",
        metavar="N", low=1, high=2**31, group="model",
    )  # fmt: skip
    activation: str | None = flag(
        None, "gelu_new (GPT-2's tanh form), gelu (exact), relu, silu or tanh, where the checkpoint does not state it.",
        metavar="NAME", group="model",
    )  # fmt: skip
    adapter: str | None = flag(
        None, "A LoRA adapter for this model, as PEFT writes it.",
        metavar="PATH", group="model",
    )  # fmt: skip
    drop_heads: bool = flag(
        False, "Ignore output heads that no language model has, such as a classifier's or a value head.", group="model"
    )
    averaged: bool = flag(
        False, "Of a run with --ema, read the averaged weights instead of the plain ones.", group="model"
    )

    @property
    def how_to_read(self) -> dict[str, Any]:
        """The arguments of `convert.read` and `from_pretrained` that stand for these flags."""
        return {name: getattr(self, name) for name in ModelFlags.__dataclass_fields__}
