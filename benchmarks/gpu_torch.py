"""PyTorch's programs, each measured in its own process: python benchmarks/gpu_torch.py CASE; see gpu.py.

`nanogpt`: the architecture and the training step of nanoGPT (https://github.com/karpathy/nanoGPT), written anew:
biases, exact GELU, a tied head, no dropout; `torch.compile`, autocast to bfloat16 over float32 weights, fused AdamW,
flash attention by `scaled_dot_product_attention`, a vocabulary padded to a multiple of 64.
`hf`: GPT-2 of transformers in the same step, with its own attention by `scaled_dot_product_attention`.
"""

import json
import sys
import time

import torch
from gpu_windows import batches, measure, tell
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, D: int, N: int):
        super().__init__()
        self.heads, self.qkv, self.out = N, nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(D, dim=2))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, D: int, N: int, F_: int):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(D), Attention(D, N), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, F_), nn.GELU(), nn.Linear(F_, D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Model(nn.Module):
    """From tokens to the mean loss."""

    def __init__(self, shape: dict[str, int], padding: int):
        super().__init__()
        D, V = shape["n_embd"], shape["vocab_size"] + padding
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(shape["n_positions"], D)
        self.blocks = nn.ModuleList(Block(D, shape["n_head"], shape["n_inner"]) for _ in range(shape["n_layer"]))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        self.head.weight = self.tokens.weight
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    @property
    def frozen_first(self) -> list[nn.Module]:
        """What `firstN` freezes: embeddings, with a tied head, and then the blocks."""
        return [self.tokens, self.positions, *self.blocks]


class HF(nn.Module):
    """The same of transformers."""

    def __init__(self, shape: dict[str, int]):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        config = GPT2Config(**shape, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, use_cache=False)
        config._attn_implementation = "sdpa"
        self.model = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.model(tokens).logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    @property
    def frozen_first(self) -> list[nn.Module]:
        """What `firstN` freezes: embeddings, with a tied head, and then the blocks."""
        return [self.model.transformer.wte, self.model.transformer.wpe, *self.model.transformer.h]


def main() -> None:
    """Train and print the measurement."""
    case = json.loads(sys.argv[1])
    on_gpu = not case["cpu"]
    if on_gpu and not torch.cuda.is_available():
        return tell({"skipped": f"PyTorch {torch.__version__} sees no GPU"})
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32 for matrix products that autocast leaves in float32
    device = torch.device("cuda" if on_gpu else "cpu")
    model = HF(case["shape"]) if case["program"] == "hf" else Model(case["shape"], case["padding"])
    model = model.to(device)
    if case["freeze"] != "full":
        for module in model.frozen_first[: 2 + int(case["freeze"].removeprefix("first"))]:
            module.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=on_gpu)
    compiled = torch.compile(model) if on_gpu else model
    rows = batches(case)

    def synchronize() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def send() -> tuple[Tensor, Tensor]:
        whole = torch.from_numpy(next(rows)).long()
        parts = whole[:, :-1].contiguous(), whole[:, 1:].contiguous()
        if not on_gpu:
            return parts
        return tuple(part.pin_memory().to(device, non_blocking=True) for part in parts)

    synchronize()
    began = time.perf_counter()
    batch, n_steps, loss = send(), 0, torch.zeros(())

    def step() -> None:
        nonlocal batch, n_steps, loss
        n_steps += 1
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * min(1.0, n_steps / 1000)
        with torch.autocast(device.type, torch.bfloat16):
            loss = compiled(*batch)
        batch = send()  # while the GPU computes the forward pass
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> float:
        synchronize()
        return float(loss.detach())

    found = measure(case, began, step, wait)
    tell(
        found
        | {
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "runtime": f"cuda {torch.version.cuda}, cudnn {torch.backends.cudnn.version()}" if on_gpu else "cpu",
            "trainable": sum(p.numel() for p in trainable),
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        }
    )


if __name__ == "__main__":
    main()
