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
    data: Path | None = None
    """UTF-8 text file, or a folder of .txt and .md files; None: the Python language reference that comes with Python.
    The last tenth, at most 65,536 tokens, is held out for evaluation."""
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
    steps: int = 150
    """Length of training, in optimizer steps."""
    batch_size: int = 16
    """Sequences in a step, over all devices."""
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
    seed: int = 0
    """Of the data's order, of dropout and of the text samples."""
    eval_every: int = 50
    """Steps between evaluations on the held-out text, which also happens before the first and after the last step."""
    checkpoint_every: int = 50
    """Steps between checkpoints; the last step always writes one."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl, which has one for every evaluation too."""
    keep: int = 3
    """Number of newest checkpoints that stay on disk."""
    resume: bool = False
    """Go on from the newest complete checkpoint in --out; starts fresh where nothing is. A run that Ctrl-C or SIGTERM
    stopped has saved its last step, and exited with 75."""
    force: bool = False
    """Delete the run that --out holds and start over."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products compute in; the master weights are float32 either way."""
    mesh: str | None = None
    """How the local devices are arranged, as in data=2,fsdp=4; None: all on fsdp (parameters and batch are split)."""
    prompt: str = "The"
    """Beginning of the text samples that are written before and after training."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that are told numbers and samples while the run goes on, one or several; they never stop it."""
