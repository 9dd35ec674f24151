"""Work of a training step, by formula: XLA counts a loop's body once and a kernel of ours never.

Only matrix products count, a multiplication and an addition each, as in appendix B of Chowdhery et al. 2022 (PaLM):
attention over all T x T pairs, though a causal kernel skips half of them. Softmax, LayerNorm, GELU and AdamW, which do
not count, are a few percent.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from jaxgpt.convert.config import GPTConfig


@dataclass(frozen=True)
class Flops:
    """Of one step, over all chips."""

    forward: int
    backward: int
    """Of what trains only: a product needs the gradient of its kernel if that trains, and that of its input if anything
    below it does. Below the lowest that trains, nothing is differentiated."""
    recomputed: int = 0
    """What `--remat` computes a second time."""

    @property
    def model(self) -> int:
        """What the mathematics needs: of this, utilisation (MFU) is a fraction."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """What the chips do."""
        return self.model + self.recomputed


@dataclass(frozen=True)
class Product:
    """A product in the forward pass, in the order of the network."""

    name: str
    """Of what it multiplies with: a kernel; or a block's attention, which multiplies activations with each other."""
    flops: int
    activations: int
    """Numbers that it reads and writes, but for the kernel's."""
    kernel: int = 0
    """Numbers of its kernel."""
    before: str | None = None
    """The LayerNorm between the product before it and this one."""


def step_flops(config: GPTConfig, trainable: Collection[str], batch: tuple[int, int], *, remat: bool = False) -> Flops:
    """What a step costs.

    Args:
        trainable: names of the parameters that train.
        batch: B and T.
    """
    forward = backward = recomputed = 0
    for product, gradients, again in passes(config, trainable, batch, remat=remat):
        forward += product.flops
        backward += gradients * product.flops
        recomputed += again * product.flops
    return Flops(forward, backward, recomputed)


def passes(
    config: GPTConfig, trainable: Collection[str], batch: tuple[int, int], *, remat: bool = False
) -> Iterator[tuple[Product, int, bool]]:
    """Each product, how many as large its gradients take, and whether it is computed again."""
    modules = {name.rpartition(".")[0] for name in trainable}
    below = bool(modules & {"tok_emb", "pos_emb"})
    for product in products(config, *batch):
        below = below or product.before in modules
        is_attention, module = product.name.endswith(".attn"), product.name.rpartition(".")[0]
        # of an attention, both that it multiplies are activations
        gradients = 2 * below if is_attention else below + (product.name in trainable)
        in_block = product.name.startswith("blocks.")
        block = ".".join(product.name.split(".")[:2])
        differentiated = below or any(name.startswith(f"{block}.") for name in modules)
        # the output of fc2 is added to the stream, and no gradient needs it
        yield product, gradients, remat and in_block and differentiated and not module.endswith(".fc2")
        below = below or (not is_attention and module in modules)


def products(config: GPTConfig, B: int, T: int) -> list[Product]:
    """All products of a forward pass over B rows of T tokens."""
    D, n = config.n_embd, B * T

    def linear(name: str, rows: int, columns: int, before: str | None = None) -> Product:
        return Product(name, 2 * n * rows * columns, n * (rows + columns), rows * columns, before)

    found = []
    for i in range(config.n_layer):
        block = f"blocks.{i}"
        found += [
            linear(f"{block}.attn.c_attn.kernel", D, 3 * D, f"{block}.ln_1"),
            Product(f"{block}.attn", 2 * 2 * n * T * D, n * 4 * D),
            linear(f"{block}.attn.c_proj.kernel", D, D),
            linear(f"{block}.mlp.fc1.kernel", D, config.n_inner, f"{block}.ln_2"),
            linear(f"{block}.mlp.fc2.kernel", config.n_inner, D),
        ]
    head = "tok_emb.embedding" if config.tie_word_embeddings else "lm_head.kernel"
    return [*found, linear(head, D, config.vocab_size, "ln_f")]
