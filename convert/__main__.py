"""python -m convert SRC: inspect a checkpoint. python -m convert SRC DST --to=hf: convert it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxgpt.convert.checkpoint import Checkpoint, read
from jaxgpt.convert.dialect import HEAD
from jaxgpt.convert.errors import one_clear_line
from jaxgpt.convert.export import write
from jaxgpt.convert.source import tokenizer_files

DESCRIPTION = """Inspects a GPT-2 checkpoint, or converts it between PyTorch's world and JAX's.

  python -m convert gpt2                         what is in it, and how every name maps
  python -m convert gpt2 gpt2-orbax --to=orbax   to an Orbax checkpoint, for JAX
  python -m convert runs/demo out --to=hf        a training run's newest checkpoint, for transformers"""


@dataclass(frozen=True)
class Command:
    """A conversion; see `DESCRIPTION`."""

    src: Annotated[str, tyro.conf.Positional]
    """A Hugging Face folder, a .safetensors file, an Orbax checkpoint, a training run, or a hub name such as gpt2."""
    dst: Annotated[Path | None, tyro.conf.Positional] = None
    """The folder to write; without it SRC is only inspected."""
    to: Literal["orbax", "hf", "nanogpt", "lesson"] = "orbax"
    """Form of DST: an Orbax folder; a Hugging Face folder (config.json and safetensors); nanoGPT's ckpt.pt; or the
    lesson's state dict, a .pt file."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the numbers in DST; None keeps SRC's."""
    shard_size: str = "5GB"
    """Largest safetensors file in DST, in bytes (KB, MB, GB are powers of ten); more is split into shards."""
    dialect: str | None = None
    """How SRC names and lays out its tensors: hf, dialogpt, nanogpt, mingpt, old-mingpt, linear, lesson, llmc or
    jaxgpt; None: recognised."""
    n_head: int | None = None
    """Number of attention heads; needed for a bare state dict, whose shapes do not tell."""
    activation: str | None = None
    """gelu_new (GPT-2's tanh form), gelu (exact), relu, silu or tanh; needed where neither config nor dialect tells."""
    force: bool = False
    """Replace DST if it exists and holds a checkpoint."""


def main() -> None:
    """Reads the command line; a mistake of the user's is one message and exit code 2."""
    with one_clear_line("convert"):
        flags = tyro.conf.FlagCreatePairsOff
        run(tyro.cli(Command, prog="python -m convert", description=DESCRIPTION, config=(flags,)))


def run(command: Command) -> None:
    """Inspects or converts."""
    checkpoint = read(command.src, dialect=command.dialect, n_head=command.n_head, activation=command.activation)
    if command.dst is None:
        print(describe(checkpoint))
        return
    write(
        command.dst,
        checkpoint.params,
        checkpoint.config,
        to=command.to,
        dtype=command.dtype,
        shard_size=command.shard_size,
        tokenizer=tokenizer_files(checkpoint.path),
        force=command.force,
    )
    how = f"compared as {command.dtype}" if command.dtype else "bitwise equal"
    print(f"{checkpoint.path} -> {command.dst}: {len(checkpoint.params)} parameters written, read back, {how}")


def describe(checkpoint: Checkpoint) -> str:
    """The mapping as a table, and what was found out about the checkpoint."""
    config, dialect = checkpoint.config, checkpoint.dialect
    theirs = {dialect.bare(name): name for name in checkpoint.tensors}
    head = dialect.row(HEAD).names[0]
    rows = [("theirs", "shape", "dtype", "layout", "ours")]
    for row in dialect.expand(config):
        for name in row.names:
            array = checkpoint.tensors[theirs[name if name in theirs else head]]
            shape = "x".join(map(str, array.shape))
            layout = "same" if row.left == row.right else row.layout
            rows.append((theirs.get(name, theirs.get(head, name)), shape, str(array.dtype), layout, row.ours))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = sum(math.prod(array.shape) for array in checkpoint.params.values())
    padding = f" ({config.n_padding:,} of padding)" if config.n_padding else ""
    summary = [
        f"source      {checkpoint.path}",
        f"format      {checkpoint.format}",
        f"dialect     {dialect.title}: {checkpoint.reason}",
        f"model       {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, MLP {config.n_inner}, "
        f"context {config.n_positions}, vocabulary {config.vocab_size:,}{padding}, {config.activation_function}, "
        f"{'tied' if config.tie_word_embeddings else 'untied'} head",
        f"            {'with' if config.bias else 'without'} biases, LayerNorm epsilon {config.layer_norm_epsilon:g}",
        f"parameters  {count:,} in {len(checkpoint.params)} tensors; {len(checkpoint.buffers)} buffers left out",
    ]
    return "\n".join([*table, "", *summary])


if __name__ == "__main__":
    main()
