"""Floating-point operations of a training step, by formula: XLA counts a loop's body once and a kernel of ours never.

Only matrix products count, a multiplication and an addition each, as in appendix B of Chowdhery et al. 2022 (PaLM):
attention over all T x T pairs, though a causal kernel skips half of them. Softmax, LayerNorm, GELU and AdamW, which do
not count, are a few percent.
"""

from collections.abc import Collection
from dataclasses import dataclass

from convert.config import GPTConfig


@dataclass(frozen=True)
class Flops:
    """Of one step, over all chips."""

    forward: int
    backward: int
    """Of what trains only: a product needs the gradient of its kernel if that trains, and that of its input if anything
    below it does. Below the lowest that trains, nothing is differentiated."""
    again: int = 0
    """What `--remat` computes a second time."""

    @property
    def model(self) -> int:
        """What the mathematics needs: of this, utilisation (MFU) is a fraction."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """What the chips do."""
        return self.model + self.again


@dataclass(frozen=True)
class Product:
    """A product in the forward pass, in the order of the network."""

    name: str
    """Of what it multiplies with: a kernel; or a block's attention, which multiplies activations with each other."""
    flops: int
    before: tuple[str, ...] = ()
    """Modules between the product before it and this one."""


def step_flops(config: GPTConfig, trainable: Collection[str], batch: tuple[int, int], *, remat: bool = False) -> Flops:
    """What a step costs.

    Args:
        trainable: names of the parameters that train.
        batch: B and T.
    """
    modules = {name.rpartition(".")[0] for name in trainable}
    below = bool(modules & {"tok_emb", "pos_emb"})
    forward = backward = again = 0
    for product in products(config, *batch):
        forward += product.flops
        below = below or bool(modules.intersection(product.before))
        attention = product.name.endswith(".attn")
        # of an attention, both that it multiplies are activations
        gradients = 2 * below if attention else below + (product.name in trainable)
        backward += gradients * product.flops
        module = product.name.rpartition(".")[0]
        if remat and product.name.startswith("blocks.") and not module.endswith(".fc2") and _differentiated(
            product.name, modules, below
        ):  # fmt: skip
            again += product.flops  # the output of fc2 is added to the stream, and no gradient needs it
        below = below or (not attention and module in modules)
    return Flops(forward, backward, again)


def products(config: GPTConfig, B: int, T: int) -> list[Product]:
    """All products of a forward pass over B rows of T tokens."""
    D, F, V = config.n_embd, config.n_inner, config.vocab_size
    found = []
    for i in range(config.n_layer):
        block = f"blocks.{i}"
        found += [
            Product(f"{block}.attn.c_attn.kernel", 2 * B * T * D * 3 * D, (f"{block}.ln_1",)),
            Product(f"{block}.attn", 2 * 2 * B * T * T * D),
            Product(f"{block}.attn.c_proj.kernel", 2 * B * T * D * D),
            Product(f"{block}.mlp.fc1.kernel", 2 * B * T * D * F, (f"{block}.ln_2",)),
            Product(f"{block}.mlp.fc2.kernel", 2 * B * T * F * D),
        ]
    head = "tok_emb.embedding" if config.tie_word_embeddings else "lm_head.kernel"
    return [*found, Product(head, 2 * B * T * D * V, ("ln_f",))]


def _differentiated(name: str, modules: Collection[str], below: bool) -> bool:
    """Whether anything in the block of a product, or below it, trains, so that its backward pass is run."""
    block = ".".join(name.split(".")[:2])
    return below or any(module.startswith(f"{block}.") for module in modules)
