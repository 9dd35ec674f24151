"""What a training run is told: every flag of `python -m train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Fine-tunes a GPT. `python -m train --freeze=first6` alone does so with a bundled model and text."""

    model: str = "tiny"
    """Checkpoint to start from: `tiny` (bundled), a Hugging Face folder, a .safetensors, .pt or .bin file, an Orbax
    checkpoint, another run's folder, or a hub name such as gpt2."""
    tokenizer: str | None = None
    """Where the tokenizer lies, if not with the model; same forms as --model."""
    data: str | None = None
    """What to train on: a file of text, .jsonl, .json or .parquet records (text; or conversations: messages, or
    instruction, input and output), nanoGPT's .bin, any but that as .gz or .zst too; a folder of such files; a data set
    saved by Hugging Face, hf:OWNER/NAME from its hub, or a URL such as gs://BUCKET/FILE. None: the Python language
    reference that comes with Python."""
    eval_data: str | None = None
    """What to evaluate on, in the same forms; None: what --data itself holds out (val.bin, a split), or else its last
    tenth, at most 65,536 tokens, on which the run is then not trained."""
    cache: Path | None = None
    """Folder in which texts are kept as tokens, by their contents; None: jaxgpt/tokens in $XDG_CACHE_HOME or
    ~/.cache."""
    rows: Literal["stream", "packed", "padded"] | None = None
    """What a sequence holds: stream (texts one after the other, cut anywhere), packed (whole texts, as many as fit,
    none of which sees another), padded (one whole text). None: packed for conversations, stream for other texts."""
    train_on: Literal["assistant", "all"] = "assistant"
    """What counts in the loss of conversations: what the assistant says, its end token included, or everything."""
    freeze: str = "full"
    """What trains: full; firstN (freezes the embeddings and the first N blocks); lastN, head, embeddings or
    regex:PATTERN (train only what they name); gradual (a third of the steps each: head, then the last quarter of the
    blocks too, then everything), or the same spelled out, with steps, percent or epochs, as in
    gradual:head@0,last3@40%,full@2ep."""
    untie_head: bool = False
    """Give the head a matrix of its own first, a copy of the token embedding that it is tied to in GPT-2."""
    add_tokens: str | None = None
    """New special tokens, joined by commas, as in '<|user|>,<|assistant|>'; their rows start at the mean of the others.
    None: none."""
    out: Path = Path("runs/demo")
    """Folder of the run; one that holds a run already needs --resume or --force."""
    steps: int | None = None
    """Length of training, in optimizer steps. None: 150, or what --epochs comes to."""
    epochs: float | None = None
    """Length of training in passes over the data, instead of --steps."""
    batch_size: int = 16
    """Sequences in a step, over all devices."""
    accumulate: int = 1
    """Parts in which a step goes through its batch, one after the other: the same step with the memory of one part."""
    context: int | None = None
    """Tokens in a sequence; None: the model's whole context."""
    lr: float | None = None
    """Peak learning rate of AdamW; None: 0.128 / width, which is 1e-3 for the bundled model and 1.7e-4 for gpt2."""
    layer_lr_decay: float = 1.0
    """Each block trains at this times the rate of the block above it, and the embeddings (a tied head too) lowest."""
    lr_scale: tuple[str, ...] = ()
    """PATTERN=FACTOR, several if need be, of which the first that matches the whole name of a parameter counts: it
    trains at so many times the rate, as in
    'blocks\\.1\\d\\..*=2.0'."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises from 0; a cosine then takes it to a tenth of the peak."""
    thaw_warmup: float = 0.05
    """Fraction of the steps in which the rate of layers that thaw in a later phase rises to that of the others."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices, per step and unit of learning rate; biases and LayerNorms never decay."""
    clip: float = 1.0
    """Largest global norm of the trainable gradients; larger ones are scaled down to it."""
    dropout: float | None = None
    """Probability with which training drops each number (embeddings, attention, residual); None: as the checkpoint's
    config says, which is 0.1 for gpt2."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all tokens in training; evaluation has none."""
    seed: int = 0
    """Of the data's order, of dropout and of the text samples."""
    eval_every: int = 50
    """Steps between evaluations on the held-out text, which also happens before the first and after the last step."""
    patience: int | None = None
    """Stop early, after so many evaluations in a row that were no better than the best; None: never."""
    checkpoint_every: int = 50
    """Steps between checkpoints; the last step always writes one, and so does each evaluation that is the best yet."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl, which has one for every evaluation too."""
    keep: int = 3
    """Number of newest checkpoints that stay on disk, beside the one with the best evaluation."""
    resume: bool = False
    """Go on from the newest complete checkpoint in --out; starts fresh where nothing is. A run that Ctrl-C or SIGTERM
    stopped has saved its last step, and exited with 75."""
    resume_anyway: bool = False
    """Go on as --resume does, also where data, tokenizer or settings are others than the run was started with."""
    force: bool = False
    """Delete the run that --out holds and start over."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products compute in; the master weights are float32 either way."""
    remat: bool = False
    """Keep only what lies between blocks for the backward pass, and compute the rest again: less memory on a GPU or TPU
    for a third more work. XLA's CPU backend keeps all the same."""
    workers: int = 2
    """Threads that prepare batches ahead of the step; the batches are the same for any number."""
    mesh: str | None = None
    """How all devices are arranged, as in data=2,fsdp=4: data splits the batch, fsdp the batch and the parameters,
    tensor the heads, the MLP's hidden layer and the vocabulary. None: as many on fsdp as divide the model's width and
    leave each 32 of it, the rest on data."""
    coordinator: str | None = None
    """Of a run in several processes (hosts), where they meet: auto (TPU pods, SLURM, Kubernetes and Open MPI tell), or
    HOST:PORT of the first one, with --processes and --process. None: auto where the environment says that there are
    several, otherwise one process. All of them are given the same flags, data, and folder."""
    processes: int | None = None
    """With --coordinator=HOST:PORT: how many processes there are in all."""
    process: int | None = None
    """With --coordinator=HOST:PORT: which of them this is, from 0."""
    topology: str | None = None
    """A slice of TPUs that need not be there, such as v5e:4x4, with --compile-only; None: this machine's devices."""
    compile_only: bool = False
    """Compile the training step, say what it needs (memory, FLOPs, collectives, an estimated time, the largest batch),
    and write and read nothing; published models are known by name. Exit code 1 if it does not fit."""
    prompt: str | None = None
    """Beginning of the text samples that are written before and after training; None: The, or a question if the data
    are conversations."""
    config: Path | None = None
    """The run.json of an earlier run, whose settings are those of this one where no flag says otherwise."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that are told numbers and samples while the run goes on, one or several; they never stop it."""
