"""jaxgpt convert SRC: inspect a checkpoint. jaxgpt convert SRC DST --to=hf: convert it. Also python -m convert."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgpt.convert.checkpoint import Checkpoint, open_checkpoint, read
from jaxgpt.convert.command_line.console import say, table, terminal_width, wrapped
from jaxgpt.convert.command_line.flags import flag, flags_of
from jaxgpt.convert.command_line.help import Help
from jaxgpt.convert.command_line.mistakes import in_flags, one_clear_line
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.command_line.parser import Parser
from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.contents import open_contents
from jaxgpt.convert.dialect import HEAD
from jaxgpt.convert.disk import target_path
from jaxgpt.convert.errors import InputError, about, escaped
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.convert.export import write
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.peft import rows_to_add
from jaxgpt.convert.propose import propose
from jaxgpt.convert.source import resolve, tokenizer_files
from jaxgpt.convert.unwrap import unwrap


@dataclass(frozen=True)
class ConvertCommand(ModelFlags):
    """The flags of `jaxgpt convert`."""

    src: str = flag(
        help="A Hugging Face folder, a .safetensors, .pt or .bin file, an Orbax checkpoint, a training run, or a hub "
        "name such as gpt2.", metavar="SRC", is_positional=True,
    )  # fmt: skip
    dst: Path | None = flag(
        None, "The folder or file to write. Without it SRC is only inspected.", metavar="[DST]", is_positional=True
    )
    to: str = flag(
        "orbax", "The form of DST. orbax: for JAX. hf: a Hugging Face folder, adapters merged. peft: only what a "
        "LoRA run adds to --base. nanogpt: its ckpt.pt. lesson: a .pt file with the names tok_emb, pos_emb, blocks, "
        "ln_f, lm_head. my.toml: a .pt file by a table of your own.", metavar="FORM",
    )  # fmt: skip
    dtype: Literal["float32", "float16", "bfloat16"] | None = flag(
        None, "The type of the numbers in DST.", default_text="that of SRC"
    )
    shard_size: str = flag(
        "5GB", "The largest safetensors file in DST (1GB is 10^9 bytes). A larger model is split.", metavar="SIZE",
    )  # fmt: skip
    base: str | None = flag(
        None, "With --to=peft: the model that SRC began as.", metavar="MODEL", default_text="the run's --model"
    )
    propose: Path | None = flag(
        None, "Where no dialect fits SRC: draft a table of its names and layouts into this file, for --dialect.",
        metavar="my.toml", default_text="no draft",
    )  # fmt: skip
    force: bool = flag(False, "Replace a checkpoint in DST, or the draft of --propose.")


HELP = Help(
    program="jaxgpt convert",
    summary="Inspect a checkpoint of a GPT, or convert it between PyTorch and JAX.",
    examples=(
        ("gpt2", "what is in it, and how every name maps"),
        ("gpt2 gpt2-orbax --to=orbax", "to Orbax, for JAX"),
        ("runs/demo out --to=hf", "a run's newest checkpoint, for transformers"),
    ),
)

PARSER = Parser(ConvertCommand, HELP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line, and return its exit code; a mistake of the user's is one message and exit code 2."""
    with one_clear_line("convert", flags_of(ConvertCommand)):
        command: ConvertCommand = PARSER.parse(sys.argv[1:] if arguments is None else arguments)
        run(command)
    return ExitCode.OK


def run(command: ConvertCommand) -> None:
    """Inspect or convert."""
    if command.propose is not None:
        draft(command)
        return
    if command.dst is None:
        print(describe(open_checkpoint(command.src, **command.how_to_read), terminal_width()))
        return
    target_path(command.dst)  # before SRC is looked for
    checkpoint = read(command.src, **command.how_to_read)
    base_name = base_of(command.src, command.base) if command.to == "peft" else ""
    base = read(base_name) if base_name else None
    write(
        command.dst,
        checkpoint.params,
        checkpoint.config,
        to=command.to,
        dtype=command.dtype,
        shard_size=command.shard_size,
        tokenizer=tokenizer_files(checkpoint.path),
        base=base,
        base_name=base_name,
        force=command.force,
    )
    if command.to == "peft":
        say(f"{checkpoint.path} -> {command.dst}: an adapter for {base_name}, written, read back, bitwise equal")
        if base is not None and (n_rows := rows_to_add(checkpoint.config, base.params)):
            resize = f"base.resize_token_embeddings({n_rows})"
            say(f"before PEFT loads it, resize its base: {resize}, as README.md in {command.dst} shows")
        return
    how = f"equal as {command.dtype}" if command.dtype else "bitwise equal"
    say(f"{checkpoint.path} -> {command.dst}: {len(checkpoint.params)} tensors written, read back, {how}")


def base_of(src: str, base: str | None) -> str:
    """Return the name of the model that SRC began as: what was given, or what a run says."""
    if base is not None:
        return base
    run = Path(src).expanduser() / "run.json"
    settings = read_json(run).get("settings") if run.is_file() else None
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, str):
        raise InputError(f"--to=peft: {src} does not say which model it began as: give --base")
    return model


def draft(command: ConvertCommand) -> None:
    """Write a draft of a dialect, and say what to do with it."""
    assert command.propose is not None
    with about("--propose"):
        target_path(command.propose)
    path = resolve(command.src)
    with about(str(path)):
        text = propose(unwrap(open_contents(path).tensors, keeps_all=True).tensors)
    if command.propose.exists() and not command.force:
        raise InputError(f"{command.propose} is there already: force=True replaces it")
    command.propose.write_text(text, "utf-8")
    say(
        f"{command.propose}: a draft with {text.count('?')} gaps; replace each ?, then read SRC with "
        f"--dialect={command.propose}, and check it: jaxgpt check SRC --dialect={command.propose} --against=…"
    )


def describe(checkpoint: Checkpoint, width: int | None = None) -> str:
    """Return the mapping as a table, and what was found out about the checkpoint, wrapped to a width."""
    config, dialect = checkpoint.config, checkpoint.dialect
    theirs = {dialect.bare(name): name for name in checkpoint.tensors}
    head = dialect.row(HEAD).names[0]
    rows = [("theirs", "shape", "dtype", "layout", "ours")]
    for row in dialect.expand(config):
        if row.may_lack and row.names[0] not in theirs:
            rows.append(("not there", "", "", "zeros", row.ours))
            continue
        for name in row.names:
            array = checkpoint.tensors[theirs[name if name in theirs else head]]
            shape = "x".join(map(str, array.shape))
            layout = "same" if row.left == row.right else row.layout
            rows.append((theirs.get(name, theirs.get(head, name)), shape, str(array.dtype), layout, row.ours))
    count = sum(math.prod(array.shape) for array in checkpoint.params.values())
    padding = f" ({config.n_padding:,} of padding)" if config.n_padding else ""
    summary = [
        f"source      {checkpoint.path}",
        f"format      {checkpoint.format}",
        *([f"base        {base.model}: holds what never trained"] if (base := checkpoint.base) else []),
        f"dialect     {dialect.title}: {checkpoint.reason}",
        f"model       {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, MLP {config.n_inner}, "
        f"context {config.n_positions}, vocabulary {config.vocab_size:,}{padding}, {config.activation_function}, "
        f"{'tied' if config.tie_word_embeddings else 'untied'} head",
        f"            {_biases(config.bias)}, norm epsilon {config.layer_norm_epsilon:g}{_different(config)}",
        f"parameters  {count:,} in {len(checkpoint.params)} tensors; {len(checkpoint.buffers)} buffers left out",
        *(f"note        {in_flags(note, flags_of(ConvertCommand))}" for note in checkpoint.notes),
    ]
    return "\n".join([table(rows, width), "", wrapped("\n".join(map(escaped, summary)), width)])


def _biases(bias: bool | tuple[str, ...]) -> str:
    return f"biases of {', '.join(bias)}" if isinstance(bias, tuple) else f"{'with' if bias else 'without'} biases"


def _different(config: GPTConfig) -> str:
    """Return what is not as in GPT-2, each after a comma."""
    dims, words = config.dims, []
    if config.norm == "rms":
        words.append("RMSNorm")
    if config.positions == "rotary":
        scaled = f" with llama3 scaling by {config.rope_scaling.factor:g}" if config.rope_scaling else ""
        words.append(
            f"rotary positions on {2 * dims['J']} of a head's {dims['H']} dimensions, theta "
            f"{config.rope_theta:g}{scaled}"
        )
    if dims["K"] != dims["N"]:
        words.append(f"{dims['K']} heads of keys and values")
    if config.qk_norm:
        words.append("norms of queries and keys")
    if config.gated_mlp:
        words.append("gated MLP")
    if config.parallel_residual:
        words.append("MLP parallel to attention")
    if windows := sum(map(bool, config.windows)):
        words.append(f"windows of {max(config.windows):,} in {windows} blocks")
    if not config.scale_attn_weights:
        words.append("scores not scaled")
    return "".join(f", {word}" for word in words)


if __name__ == "__main__":
    main()
