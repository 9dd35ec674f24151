"""Hugging Face's names with `nn.Linear`, which stores kernels as (out, in): nanoGPT, minGPT and their descendants."""

from dataclasses import replace

from jaxgpt.convert.dialect import Dialect, Row

ROWS = (
    Row("tok_emb.embedding", "wte.weight", "V D -> V D"),
    Row("pos_emb.embedding", "wpe.weight", "T D -> T D"),
    Row("blocks.{i}.ln_1.scale", "h.{i}.ln_1.weight", "D -> D"),
    Row("blocks.{i}.ln_1.bias", "h.{i}.ln_1.bias", "D -> D"),
    Row("blocks.{i}.attn.c_attn.kernel", "h.{i}.attn.c_attn.weight", "(C N H) D -> D C N H"),
    Row("blocks.{i}.attn.c_attn.bias", "h.{i}.attn.c_attn.bias", "(C N H) -> C N H"),
    Row("blocks.{i}.attn.c_proj.kernel", "h.{i}.attn.c_proj.weight", "D (N H) -> N H D"),
    Row("blocks.{i}.attn.c_proj.bias", "h.{i}.attn.c_proj.bias", "D -> D"),
    Row("blocks.{i}.ln_2.scale", "h.{i}.ln_2.weight", "D -> D"),
    Row("blocks.{i}.ln_2.bias", "h.{i}.ln_2.bias", "D -> D"),
    Row("blocks.{i}.mlp.fc1.kernel", "h.{i}.mlp.c_fc.weight", "F D -> D F"),
    Row("blocks.{i}.mlp.fc1.bias", "h.{i}.mlp.c_fc.bias", "F -> F"),
    Row("blocks.{i}.mlp.fc2.kernel", "h.{i}.mlp.c_proj.weight", "D F -> F D"),
    Row("blocks.{i}.mlp.fc2.bias", "h.{i}.mlp.c_proj.bias", "D -> D"),
    Row("ln_f.scale", "ln_f.weight", "D -> D"),
    Row("ln_f.bias", "ln_f.bias", "D -> D"),
    Row("lm_head.kernel", "lm_head.weight", "V D -> D V"),
)

NANOGPT = Dialect(
    name="nanogpt",
    title="nanoGPT",
    rows=ROWS,
    buffers=(("h.{i}.attn.bias", "1 1 T T"),),  # only where PyTorch has no flash attention
    prefix="transformer.",
    fixed={"layer_norm_epsilon": 1e-5},
    assumed={"activation_function": "gelu"},  # nn.GELU(), the exact form
    writes_tied_head=True,
)

BUILD_NANOGPT = replace(
    NANOGPT,
    name="build-nanogpt",
    title="Karpathy's build-nanogpt",
    assumed={"activation_function": "gelu_new"},  # nn.GELU(approximate="tanh")
)

MINGPT = Dialect(
    name="mingpt",
    title="minGPT or makemore",
    rows=ROWS,
    buffers=(("h.{i}.attn.bias", "1 1 T T"),),
    prefix="transformer.",
    fixed={"layer_norm_epsilon": 1e-5},
    assumed={"activation_function": "gelu_new"},
)

UNKNOWN_LINEAR = Dialect(
    name="linear",
    title="Hugging Face names with nn.Linear",
    rows=ROWS,
    buffers=(("h.{i}.attn.bias", "1 1 T T"),),
    prefix="transformer.",
    fixed={"layer_norm_epsilon": 1e-5},
)
"""Either of them, from a plain state dict: the activation is unknown and has to be given."""
