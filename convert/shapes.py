"""Shapes of published models, by name: what can be said of them without their files."""

from jaxgpt.convert.config import GPTConfig

SIZES = {
    "distilgpt2": (6, 768, 12),
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
    "microsoft/DialoGPT-small": (12, 768, 12),
    "microsoft/DialoGPT-medium": (24, 1024, 16),
    "microsoft/DialoGPT-large": (36, 1280, 20),
}
"""L, D, N: Radford et al. 2019 (table 2), Sanh et al. 2019, Zhang et al. 2019 (table 2); the rest is that of `gpt2`."""

OWNERS = ("openai-community/", "distilbert/", "")
"""Under whom the hub has a name that is written without an owner."""


def shape_of_published(name: str) -> GPTConfig | None:
    """The config of a model on the hub, whatever the revision; None for a name that is not in the table."""
    name = name.partition("@")[0]
    for owner in OWNERS:
        if (sizes := SIZES.get(name.removeprefix(owner))) is not None:
            L, D, N = sizes
            p, end = 0.1, 50256  # as their config.json says
            return GPTConfig(
                n_layer=L, n_embd=D, n_head=N, n_inner=4 * D, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p,
                bos_token_id=end, eos_token_id=end,
            )  # fmt: skip
    return None
