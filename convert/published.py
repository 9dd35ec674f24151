"""Published models, by name: what can be said of them without their files.

GPT-2s are here; the shapes of other families are in `jaxgpt.convert.families.shapes`.
"""

from dataclasses import dataclass, replace

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.families.hf_config import config_from_hf
from jaxgpt.convert.families.shapes import SHAPES, fields_of_shape

OWNERS = ("openai-community/", "distilbert/", "")
"""Under whom the hub has a name that is written without an owner."""


@dataclass(frozen=True)
class Published:
    """A model that others know by this name; what is not said here is as in `gpt2`."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_positions: int = 1024
    vocab_size: int = 50257
    dropout: float = 0.1
    loss: tuple[float, float] | None = None
    """From and to which loss it has on the sentences of `jaxgpt/sanity/language.py`, in nats per token."""

    @property
    def config(self) -> GPTConfig:
        p, end = self.dropout, self.vocab_size - 1  # as their config.json says
        return GPTConfig(
            vocab_size=self.vocab_size, n_positions=self.n_positions, n_layer=self.n_layer, n_head=self.n_head,
            n_embd=self.n_embd, n_inner=4 * self.n_embd, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p,
            bos_token_id=end, eos_token_id=end,
        )  # fmt: skip

    def is_called(self, source: str | None) -> bool:
        """Return whether a source is this model's name, alone or as on the hub, with or without a revision."""
        bare = (source or "").partition("@")[0]
        return any(bare.removeprefix(owner) == self.name for owner in OWNERS)

    def has_shape_of(self, config: GPTConfig) -> bool:
        """Return whether a config has this model's width, heads, blocks and tokens."""
        shape = config.model_type, config.n_embd, config.n_head, config.n_layer, config.n_tokens
        return shape == ("gpt2", self.n_embd, self.n_head, self.n_layer, self.vocab_size)


PUBLISHED = (
    Published("tiny", 12, 128, 4, n_positions=256, vocab_size=4096, dropout=0.0, loss=(4.6, 4.8)),  # 4.715 measured
    # nobody measured these losses here: 3 to 5 is what to expect of GPT-2 on plain English, and these texts are well
    # known
    Published("distilgpt2", 6, 768, 12, loss=(2.0, 5.5)),
    Published("gpt2", 12, 768, 12, loss=(2.0, 5.0)),
    Published("gpt2-medium", 24, 1024, 16, loss=(2.0, 5.0)),
    Published("gpt2-large", 36, 1280, 20, loss=(2.0, 5.0)),
    Published("gpt2-xl", 48, 1600, 25, loss=(2.0, 5.0)),
    Published("microsoft/DialoGPT-small", 12, 768, 12),
    Published("microsoft/DialoGPT-medium", 24, 1024, 16),
    Published("microsoft/DialoGPT-large", 36, 1280, 20),
)
"""Radford et al. 2019 (table 2), Sanh et al. 2019, Zhang et al. 2019 (table 2), and the bundled model."""


PUBLISHED_NAMES = (*(model.name for model in PUBLISHED), *SHAPES)
"""Names of all models whose shape is known."""


def config_of_published(name: str) -> GPTConfig | None:
    """Return the config of a published model, whatever the revision; None for a name that is not in the tables."""
    if (fields := fields_of_shape(name)) is not None:
        return replace(config_from_hf(fields), carried="")
    return next((model.config for model in PUBLISHED if model.is_called(name)), None)
