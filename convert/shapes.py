"""Shapes of published models, by name: what can be said of them without their files."""

from convert.config import GPTConfig

DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
"""What their `config.json` files say."""

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
            end = {"bos_token_id": 50256, "eos_token_id": 50256}
            return GPTConfig(n_layer=L, n_embd=D, n_head=N, n_inner=4 * D, **DROPOUT, **end)
    return None
