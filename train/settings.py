"""The settings of a training run: every flag of `jaxgpt train`, described once."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxgpt.commands import COMPILE_CACHE
from jaxgpt.convert.command_line.flags import Flag, defaults_of, flag, flags_of, from_json, spelled, values_of
from jaxgpt.convert.command_line.model_flags import ModelFlags
from jaxgpt.convert.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Setting(Flag):
    """The description of a setting, which has more than other flags."""

    may_change: bool = False
    """True if a resumed run may have another value: it is the same run nevertheless."""
    is_repeated: bool = True
    """True if `--config` and `--resume` take it from an earlier run. A setting that addresses machines, or permits
    destruction, is never taken."""
    is_per_process: bool = False
    """True if each process of a run may have its own."""


def setting(default: Any, help: str, **about: Any) -> Any:
    """Return a dataclass field that describes a setting."""
    return flag(default, help, kind=Setting, **about)


GROUPS = {
    "model": "the checkpoint to start from, and its vocabulary",
    "data": "what to train on, and what to hold out",
    "freeze": "which parameters train, and from when on",
    "length": "how long to train",
    "optimizer": "the optimizer, its learning rate, and regularisation",
    "run": "the folder of the run, checkpoints, resuming, logs",
    "devices": "number formats, memory, and how devices are arranged",
    "processes": "runs in several processes",
    "compile": "what a step will need, without training",
}
"""The groups of flags in the help, in order."""

COUNT: dict[str, Any] = {"low": 1, "high": 10**9}
TRACKERS = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class Settings(ModelFlags):
    """The settings of a training run; the defaults make a run of the bundled model on text that is on every machine."""

    model: str = setting(
        "tiny", "The checkpoint to start from: a Hugging Face folder, a .safetensors, .pt or .bin file, an Orbax "
        "checkpoint, the folder of a run, or a hub name such as gpt2.", metavar="MODEL", group="model", is_common=True,
        brief="Where to start: a folder, a file, a run, or a hub name such as gpt2",
        default_text="tiny, the bundled model",
    )  # fmt: skip
    tokenizer: str | None = setting(
        None, "The tokenizer, in the same forms as --model.", metavar="MODEL", group="model",
        default_text="the one beside the model",
    )  # fmt: skip
    untie_head: bool = setting(
        False, "Before training, give the output head its own copy of the token embedding, to which GPT-2 ties it.",
        group="model",
    )  # fmt: skip
    add_tokens: str | None = setting(
        None, "New special tokens, joined by commas, as in '<|user|>,<|assistant|>'. Their embeddings start at the "
        "mean of the others.", metavar="TOKENS", group="model", default_text="none",
    )  # fmt: skip
    data: str | None = setting(
        None, "What to train on: a file of text; .jsonl, .json, .csv, .tsv or .parquet records with a text or a "
        "conversation (messages; or instruction, input and output); a .bin of nanoGPT or llm.c. All but .bin may also "
        "be .gz or .zst. Or a "
        "folder of such files, a data set that Hugging Face's datasets saved, hf:OWNER/NAME from its hub, or a URL "
        "such as gs://BUCKET/FILE.", metavar="PATH", group="data", is_common=True,
        brief="A text, .jsonl or .parquet, a folder, hf:OWNER/NAME, gs://…",
        default_text="the Python language reference",
    )  # fmt: skip
    eval_data: str | None = setting(
        None, "What to evaluate on, in the same forms.", metavar="PATH", group="data",
        default_text="the validation split of --data, or else its last tenth, at most 65,536 tokens",
    )  # fmt: skip
    text_field: str | None = setting(
        None, "The field or column of records that holds a text, in --data and --eval-data.", metavar="NAME",
        group="data", default_text="text; a record without it holds a conversation",
    )  # fmt: skip
    skip_bad_records: bool = setting(
        False, "Leave out records that can't be read, such as a line that is no JSON, and print how many. Without this "
        "flag, the first is an error.", group="data",
    )  # fmt: skip
    rows: Literal["stream", "packed", "padded"] | None = setting(
        None, "What a sequence holds. stream: texts one after the other, cut anywhere. packed: as many whole texts as "
        "fit; attention does not cross from one to another. padded: one whole text.", group="data",
        default_text="packed for conversations, stream for other texts",
    )  # fmt: skip
    train_on: Literal["assistant", "all"] = setting(
        "assistant", "Which tokens of a conversation count in the loss: what the assistant says and its end-of-text "
        "(EOS) token, or all.", group="data",
    )  # fmt: skip
    context: int | None = setting(
        None, "Tokens in a sequence.", metavar="N", group="data", default_text="the model's, at most 1024",
        **COUNT,
    )  # fmt: skip
    workers: int = setting(
        2, "Threads that prepare batches ahead of the step. The batches are the same for any number.", metavar="N",
        group="data", may_change=True, is_per_process=True, low=1, high=1000,
    )  # fmt: skip
    cache: Path | None = setting(
        None, "The folder of the cache of tokenised texts.", metavar="PATH", group="data",
        default_text="~/.cache/jaxgpt/tokens", may_change=True, is_per_process=True,
    )  # fmt: skip
    objective: Literal["next-token", "dpo", "simpo"] = setting(
        "next-token", "What is learned. next-token: texts and conversations. dpo, simpo: which of two answers is "
        "preferred, from records with prompt, chosen and rejected (texts or lists of messages). dpo compares with the "
        "model that training began with (Rafailov et al. 2023), simpo with nothing (Meng et al. 2024).", group="data",
    )  # fmt: skip
    beta: float | None = setting(
        None, "With --objective=dpo or simpo: the factor of the reward.", metavar="FACTOR", group="data", low=0,
        is_above=True, high=1000, default_text="0.1 for dpo, 2 for simpo",
    )  # fmt: skip
    margin: float | None = setting(
        None, "With --objective=simpo: how much more reward the preferred answer should have.", metavar="REWARD",
        group="data", low=0, high=1000, default_text="half of --beta",
    )  # fmt: skip
    freeze: str = setting(
        "full", "What trains; the rest is frozen. Only firstN names what is frozen: the embeddings and the first N "
        "blocks. All others name what trains. full: everything. lastN: the last N blocks, ln_f and an untied head. "
        "head, embeddings, biases, norms, regex:PATTERN: only these. "
        "lora, or lora:r=8,alpha=16,on=attn+mlp,dropout=0,rslora,dora: low-rank adapters beside the frozen "
        "model. new-tokens: rows that --add-tokens adds. A+B: what either trains. "
        "gradual: three phases, each a third of the steps: the head; then also the last quarter of the blocks and "
        "ln_f; then everything. Or phases of your own, gradual:STRATEGY@START,…, with START in steps, percent or "
        "epochs, as in gradual:head@0,last3@40%,full@2ep.",
        metavar="STRATEGY", group="freeze", is_common=True,
        brief="What to freeze. full: nothing. firstN: the embeddings and the first N blocks. lastN, head, embeddings, "
        "lora, regex:PATTERN: all but what they name. gradual: less in each phase",
    )  # fmt: skip
    layer_lr_decay: float = setting(
        1.0, "Multiply the learning rate by FACTOR for each block further from the output. Embeddings, and a head tied "
        "to them, get the lowest rate.", metavar="FACTOR", group="freeze", low=0, is_above=True, high=1,
    )  # fmt: skip
    lr_scale: tuple[str, ...] = setting(
        (), r"Multiply the learning rate of parameters whose whole name matches the regular expression PATTERN, as in "
        r"'blocks\.1\d\..*=2.0'. If several match, the first applies.", metavar="PATTERN=FACTOR", group="freeze",
    )  # fmt: skip
    thaw_warmup: float = setting(
        0.05, "Warm-up of layers that thaw in a later phase, as a fraction of all steps: their learning rate rises to "
        "that of the others.", metavar="FRACTION", group="freeze", low=0, high=1,
    )  # fmt: skip
    steps: int | None = setting(
        None, "Length of training, in optimizer steps.", metavar="N", group="length", is_common=True,
        brief="Optimizer steps", default_text="150, unless --epochs is given",
        **COUNT,
    )  # fmt: skip
    epochs: float | None = setting(
        None, "Length of training in passes over the data, instead of --steps.", metavar="N", group="length",
        low=0, is_above=True, high=10**6,
    )  # fmt: skip
    patience: int | None = setting(
        None, "Stop early, after this many evaluations in a row that were no better than the best.", metavar="N",
        group="length", default_text="never", **COUNT,
    )  # fmt: skip
    batch_size: int = setting(
        16, "Sequences in a step, over all devices.", metavar="N", group="length", is_common=True, **COUNT
    )
    accumulate: int = setting(
        1, "Gradient accumulation: split each batch into N micro-batches, one after the other. The same step with the "
        "memory of one micro-batch.", metavar="N", group="length", **COUNT,
    )  # fmt: skip
    optimizer: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = setting(
        "adamw", "The optimizer. adafactor: second moments by rows and columns, in a fraction of the memory; lion: the "
        "sign of a momentum; muon: orthogonalised momentum for kernels (weight matrices) inside blocks, AdamW for the "
        "rest and for adapters; sgd: with momentum 0.9.", group="optimizer",
    )  # fmt: skip
    schedule: Literal["cosine", "linear", "constant", "wsd"] = setting(
        "cosine", "How the learning rate goes on after its warm-up. cosine, linear: it falls to a tenth; constant: it "
        "stays; wsd: it stays, and falls to zero in the last fifth.", group="optimizer",
    )  # fmt: skip
    ema: float | None = setting(
        None, "Also keep an exponential moving average of what trains, with this decay in each step, as in 0.999. It "
        "is evaluated too, and --averaged reads it from the run.", metavar="FRACTION",
        group="optimizer", low=0, is_above=True, high=0.999999, default_text="none",
    )  # fmt: skip
    lr: float | None = setting(
        None, "The peak learning rate. The default below is for adamw, adafactor and muon; it is a fifth of that for "
        "lion, 200 times for sgd, ten times for adapters, and a twentieth for --objective=dpo and simpo.",
        metavar="RATE", group="optimizer", is_common=True, brief="Peak learning rate",
        default_text="0.128 / n_embd: 1e-3 for tiny, 1.7e-4 for gpt2", low=0, is_above=True, high=10,
    )  # fmt: skip
    warmup: float = setting(
        0.1, "The fraction of the steps in which the learning rate rises to its peak.", metavar="FRACTION",
        group="optimizer", low=0, high=1,
    )  # fmt: skip
    weight_decay: float = setting(
        0.1, "The decoupled weight decay of matrices, multiplied by the learning rate. Biases and LayerNorms never "
        "decay.",
        metavar="RATE", group="optimizer", low=0, high=10,
    )  # fmt: skip
    clip: float = setting(
        1.0, "The largest global norm of the trainable gradients. Larger ones are scaled down to it.", metavar="NORM",
        group="optimizer", low=0, is_above=True,
    )  # fmt: skip
    dropout: float | None = setting(
        None, "The dropout probability of embeddings, attention and residuals in training.",
        metavar="RATE", group="optimizer", default_text="the checkpoint's config, 0.1 for gpt2", low=0, high=0.99,
    )  # fmt: skip
    label_smoothing: float = setting(
        0.0, "The share of each target that is spread over all tokens in training. Evaluation has none.",
        metavar="FRACTION", group="optimizer", low=0, high=1,
    )  # fmt: skip
    seed: int = setting(
        0, "Seed of the order of the data, of dropout, and of the text samples.", metavar="N", group="optimizer",
        low=0, high=2**32 - 1,
    )  # fmt: skip
    out: Path = setting(
        Path("runs/demo"), "The folder of the run. One that holds a run already needs --resume or --force.",
        metavar="RUN", group="run", is_common=True, may_change=True, brief="The folder of the run",
    )  # fmt: skip
    resume: bool | str = setting(
        False, "Resume RUN from its newest complete checkpoint, with its own settings. Without RUN: resume the run in "
        "--out, or start one if there is none.", metavar="RUN", group="run", is_common=True, may_change=True,
        is_repeated=False, may_stand_alone=True, brief="Resume a run where it stopped, with its own settings",
    )  # fmt: skip
    resume_anyway: bool = setting(
        False, "Resume the run in --out even if data, tokenizer or settings differ from its own. Use it instead of "
        "--resume.",
        group="run", may_change=True, is_repeated=False,
    )  # fmt: skip
    force: bool = setting(
        False, "Delete the run that --out holds, and start over.", group="run", may_change=True, is_repeated=False
    )
    config: Path | None = setting(
        None, "Take the settings of an earlier run (its folder, or its run.json). Flags override them.",
        metavar="RUN", group="run", may_change=True, is_repeated=False, is_per_process=True,
    )  # fmt: skip
    eval_every: int = setting(
        50, "Steps between evaluations on the held-out text. The first and the last step are evaluated anyway.",
        metavar="N", group="run", **COUNT,
    )  # fmt: skip
    checkpoint_every: int = setting(
        50, "Steps between checkpoints. The last step writes one anyway, as does each evaluation that is the best so "
        "far.", metavar="N", group="run", may_change=True, **COUNT,
    )  # fmt: skip
    keep: int = setting(
        3, "Number of newest checkpoints that stay on disk, beside the one with the best evaluation.", metavar="N",
        group="run", may_change=True, **COUNT,
    )  # fmt: skip
    standalone: bool = setting(
        False, "Write all parameters into each checkpoint. Without it a checkpoint is small: it holds what trained, "
        "and digests of the rest. The rest is read from --model: keep that where it is, or copy it to RUN/base.",
        group="run", may_change=True,
    )  # fmt: skip
    log_every: int = setting(
        10, "Steps between lines on the screen. metrics.jsonl has every step.", metavar="N", group="run",
        may_change=True, **COUNT,
    )  # fmt: skip
    prompt: str | None = setting(
        None, "The beginning of the text samples that are written before and after training.", metavar="TEXT",
        group="run",
        default_text="'The', and the beginnings of two held-out texts; for conversations, held-out questions instead",
    )  # fmt: skip
    track: tuple[TRACKERS, ...] = setting(
        (), "Experiment trackers that receive numbers and samples during the run. A tracker that fails never stops "
        "the run.",
        group="run", may_change=True,
    )  # fmt: skip
    dtype: Literal["float32", "bfloat16"] | None = setting(
        None, "The format in which matrix products are computed. Weights are kept in float32 either way.",
        group="devices", default_text="bfloat16 on a GPU or TPU that has it, and on a CPU with AMX for models at least "
        "256 wide; else float32",
    )  # fmt: skip
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = setting(
        "float32", "The format in which kernels (weight matrices) that never train are kept on the devices. bfloat16 "
        "takes half the memory, and with --dtype=bfloat16 changes no result, since kernels are rounded for each "
        "product anyway. int8 takes a quarter, and rounds to 255 levels with a scale for each output; products are "
        "still computed in --dtype. Checkpoints and exports keep the exact weights of --model.", group="devices",
    )  # fmt: skip
    remat: bool = setting(
        False, "Gradient checkpointing: keep only what lies between blocks, and recompute the rest in the backward "
        "pass. This saves memory and takes about a third more work. On a CPU it saves none unless a step has more "
        "tokens than the model's width, n_embd.", group="devices",
    )  # fmt: skip
    mesh: str | None = setting(
        None, "How all devices are arranged, as in data=2,fsdp=4. data: splits the batch. fsdp: splits the batch and "
        "the parameters. tensor: splits the heads, the MLP's hidden layer and the vocabulary.", metavar="AXIS=N,…",
        group="devices", may_change=True,
        default_text="the largest fsdp that divides the model's width into parts of at least 32, and data for the "
        "rest of the devices",
    )  # fmt: skip
    compile_cache: bool = setting(True, COMPILE_CACHE, group="devices", may_change=True, is_per_process=True)
    coordinator: str | None = setting(
        None, "Address of the coordinator, for several processes. auto: from the environment (TPU pods, Slurm, GKE, "
        "Open MPI). HOST:PORT: the address of process 0; needs --processes and --process too. Give all "
        "processes the same data and folder, and the same flags but for --process.",
        metavar="HOST:PORT", group="processes", may_change=True, is_repeated=False, is_per_process=True,
        default_text="auto if the environment says that there are several processes, else one process",
    )  # fmt: skip
    processes: int | None = setting(
        None, "With --coordinator=HOST:PORT: how many processes there are in all.", metavar="N", group="processes",
        may_change=True, is_repeated=False, low=1, high=10**6,
    )  # fmt: skip
    process: int | None = setting(
        None, "With --coordinator=HOST:PORT: which of them this is, from 0.", metavar="N", group="processes",
        may_change=True, is_repeated=False, is_per_process=True, low=0, high=10**6,
    )  # fmt: skip
    compile_only: bool = setting(
        False, "Compile the training step, and print what it needs: memory, FLOPs, collectives, an estimated time, the "
        "largest batch. No data is read and nothing is written. For published models, such as gpt2, no weights are "
        "downloaded. Exit code 1 if the step does not fit.", group="compile", is_repeated=False,
    )  # fmt: skip
    topology: str | None = setting(
        None, "With --compile-only: the devices to compile for, which need not be here: TPUs such as v5e:4x4, "
        "or h100:8.",
        metavar="CHIPS", group="compile", is_repeated=False, default_text="this machine's devices",
    )  # fmt: skip


def trait(name: str) -> dict[str, bool]:
    """Return one of the traits of a `Setting`, such as `may_change`, of every setting by its name."""
    usual = getattr(Setting, name)  # of a flag that every command has
    return {field: getattr(described, name, usual) for field, described in flags_of(Settings).items()}


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings by name, as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def stored_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings out of a run.json that another run may take over, checked and of their own types, by name.

    Raises:
        InputError: some are unknown, of another type, or out of bounds.
    """
    values, flags = values_of(Settings), flags_of(Settings)
    if unknown := stored.keys() - values.keys():
        raise InputError(
            f"run.json holds unknown settings: {', '.join(sorted(unknown))}; another version of jaxgpt wrote it"
        )
    is_repeated = trait("is_repeated")
    taken = {name: value for name, value in stored.items() if is_repeated[name]}
    return {name: from_json(name, value, flags[name], values[name]) for name, value in taken.items()}


def changed_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of settings that a run had otherwise, and that make it another run."""
    may_change, defaults = trait("may_change"), defaults_of(Settings)
    return [
        f"{spelled(name)} was {_said(earlier.get(name, defaults[name]))} and is {_said(now[name])}"
        for name in defaults
        if name in now and not may_change[name] and now[name] != earlier.get(name, defaults[name])
    ]


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "nothing"
    return "not given" if value is None else str(value)
