"""FLOPs of a training step, by formula: XLA's count takes a loop's body once and misses custom kernels.

Only matrix products count, with a multiplication and an addition each, as in appendix B of Chowdhery et al. 2022
(PaLM). Attention counts all T x T pairs, though a causal kernel skips half of them. Softmax, LayerNorm, GELU and AdamW
do not count; they are a few percent.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from jaxgpt.convert.config import GPTConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of one step, over all chips."""

    forward: int
    backward: int
    """A product needs the gradient of its kernel if the kernel trains, and the gradient of its input if anything below
    it trains. Below the lowest trainable parameter nothing is differentiated."""
    recomputed: int = 0
    """The part of the forward pass that `--remat` computes a second time."""

    @property
    def model(self) -> int:
        """Forward and backward: model FLOPs utilisation (MFU) is a fraction of these."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """FLOPs that the chips execute."""
        return self.model + self.recomputed


@dataclass(frozen=True)
class Product:
    """A matrix product of the forward pass."""

    name: str
    """Name of its kernel, or of a block's attention, which multiplies activations with each other."""
    flops: int
    activations: int
    """Numbers that it reads and writes, without the kernel's."""
    kernel: int = 0
    """Numbers in its kernel."""
    before: str | None = None
    """The LayerNorm between the previous product and this one."""


def step_flops(config: GPTConfig, trainable: Collection[str], batch: tuple[int, int], *, remat: bool = False) -> Flops:
    """Count the FLOPs of a step.

    Args:
        trainable: names of the trainable parameters.
        batch: B and T.
    """
    forward = backward = recomputed = 0
    for product, n_gradients, is_recomputed in passes(config, trainable, batch, remat=remat):
        forward += product.flops
        backward += n_gradients * product.flops
        recomputed += is_recomputed * product.flops
    return Flops(forward, backward, recomputed)


def passes(
    config: GPTConfig, trainable: Collection[str], batch: tuple[int, int], *, remat: bool = False
) -> Iterator[tuple[Product, int, bool]]:
    """Yield each product, the number of products of its size in the backward pass, and whether it is recomputed."""
    modules = {name.rpartition(".")[0] for name in trainable}
    trains_below = bool(modules & {"tok_emb", "pos_emb"})
    below_norm: dict[str, bool] = {}
    for product in products(config, *batch):
        trains_after = trains_below
        if product.before is not None:  # those that read one norm do not lie below each other
            trains_below = below_norm.setdefault(product.before, trains_below or product.before in modules)
        is_attention, module = product.name.endswith(".attn"), product.name.rpartition(".")[0]
        # both operands of attention are activations
        n_gradients = 2 * trains_below if is_attention else trains_below + (product.name in trainable)
        is_in_block = product.name.startswith("blocks.")
        block = ".".join(product.name.split(".")[:2])
        is_differentiated = trains_below or any(name.startswith(f"{block}.") for name in modules)
        # no gradient needs the output of fc2, which is added to the residual stream
        yield product, n_gradients, remat and is_in_block and is_differentiated and not module.endswith(".fc2")
        trains_below = trains_below or trains_after or (not is_attention and module in modules)


def products(config: GPTConfig, B: int, T: int) -> list[Product]:
    """List the products of a forward pass over B rows of T tokens, in the order of the network."""
    D, F, n_tokens, dims = config.n_embd, config.n_inner, B * T, config.dims
    q, kv = dims["N"] * dims["H"], dims["K"] * dims["H"]

    def product(name: str, rows: int, columns: int, before: str | None = None) -> Product:
        return Product(name, 2 * n_tokens * rows * columns, n_tokens * (rows + columns), rows * columns, before)

    def linear(name: str, rows: int, columns: int, before: str | None = None) -> list[Product]:
        module = name.rpartition(".")[0]
        thin = []
        if config.lora and module in config.lora.modules:
            r = config.lora.r
            thin = [product(f"{module}.lora_a", rows, r), product(f"{module}.lora_b", r, columns)]
        return [product(name, rows, columns, before), *thin]

    found = []
    for i in range(config.n_layer):
        block = f"blocks.{i}"
        layers = {"q_proj": q, "k_proj": kv, "v_proj": kv} if config.split_qkv else {"c_attn": 3 * q}
        for name, size in layers.items():
            found += linear(f"{block}.attn.{name}.kernel", D, size, f"{block}.ln_1")
        found.append(Product(f"{block}.attn", 2 * 2 * n_tokens * T * q, n_tokens * 2 * (q + kv)))
        found += linear(f"{block}.attn.c_proj.kernel", q, D)
        for name in ("gate", "fc1") if config.gated_mlp else ("fc1",):
            found += linear(f"{block}.mlp.{name}.kernel", D, F, f"{block}.ln_2")
        found += linear(f"{block}.mlp.fc2.kernel", F, D)
    head = "tok_emb.embedding" if config.tie_word_embeddings else "lm_head.kernel"
    new = [product("tok_emb.new", D, config.n_new_tokens)] if config.n_new_tokens else []
    return [*found, *linear(head, D, config.vocab_size, "ln_f"), *new]
