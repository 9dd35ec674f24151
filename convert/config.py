"""The shape of a GPT: every dialect is read into this description and written from it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxgpt.convert.adapter import LoRA
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "tanh")
"""Canonical names, as in Hugging Face's `config.json`: `gelu_new` is GPT-2's tanh form, `gelu` the exact one."""

MAX_PARAMETERS, MAX_LAYERS = 10**12, 10_000
"""Largest model that a config may describe; a hostile config is refused before anything is allocated for it."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Shape and constants of a GPT-2-class model, in Hugging Face's field names; the defaults are the 124M `gpt2`."""

    vocab_size: int = 50257
    """V, rows of the token embedding."""
    n_padding: int = 0
    """Rows at the end of the token embedding (and of an untied head) that stand for no token."""
    n_positions: int = 1024
    """T, rows of the position embedding: the longest context."""
    n_embd: int = 768
    """D, width of the residual stream."""
    n_layer: int = 12
    """L, number of blocks."""
    n_head: int = 12
    """N, attention heads; their size is H = D / N."""
    n_inner: int = 3072
    """F, width of the MLP's hidden layer (`null` in a `config.json` means 4 D)."""
    activation_function: str = "gelu_new"
    """One of `ACTIVATIONS`."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""
    scale_attn_weights: bool = True
    """Divide attention scores by sqrt(H)."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Divide the attention scores of block i by i + 1 (Mistral's stanford-crfm models)."""
    reorder_and_upcast_attn: bool = False
    """Attention scores in float32 for any compute dtype. Ours always are, so that both values compute the same."""
    bias: bool = True
    """Linear layers and LayerNorms have biases (nanoGPT's may have none)."""
    tie_word_embeddings: bool = True
    """The output head is the token embedding itself."""
    head_bias: bool = False
    """An output head of its own has a bias (that of Karpathy's lecture; GPT-2's has none)."""
    embd_pdrop: float = 0.0
    """Dropout probability after the embeddings, in training only."""
    attn_pdrop: float = 0.0
    """Dropout probability on attention weights, in training only."""
    resid_pdrop: float = 0.0
    """Dropout probability after each projection back into the residual stream, in training only."""
    bos_token_id: int | None = None
    """Id that begins a text, kept for export."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Id that ends a text (`<|endoftext|>`), or several, of which the first is written in training."""
    lora: LoRA | None = None
    """Low-rank adapters beside the kernels of some linear layers."""
    n_new_tokens: int = 0
    """S, tokens at the end of the vocabulary whose rows are parameters of their own, which can train alone."""
    carried: str = field(default="", repr=False)
    """JSON text: what a Hugging Face folder says beside these fields, for its export. By the name of the file, the
    fields of `config.json` that compute nothing here, and all of `generation_config.json`."""

    def __post_init__(self):
        if isinstance(ends := self.eos_token_id, (list, tuple)):  # a list where it comes from JSON
            object.__setattr__(self, "eos_token_id", tuple(ends) if len(ends) > 1 else ends[0] if ends else None)
        if isinstance(self.lora, dict):  # where it comes from JSON
            object.__setattr__(self, "lora", _lora(self.lora))
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            self._require(name, _is_int, "an integer from 1 to 2^31", lambda v: 1 <= v <= 2**31)
        self._require("n_padding", _is_int, "an integer from 0 to below vocab_size", lambda v: 0 <= v < self.vocab_size)
        self._require("n_new_tokens", _is_int, "an integer from 0 to the tokens", lambda v: 0 <= v < self.n_tokens)
        self._require("layer_norm_epsilon", _is_number, "a number in [0, 1)", lambda v: 0 <= v < 1)
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            self._require(name, _is_number, "a probability in [0, 1)", lambda v: 0 <= v < 1)
        for name in (
            "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings",
            "bias", "head_bias",
        ):  # fmt: skip
            self._require(name, lambda v: isinstance(v, bool), "true or false")
        self._require("bos_token_id", lambda v: v is None or _is_int(v), "a token id or null", lambda v: not v or v > 0)
        self._require("eos_token_id", lambda _: all(map(_is_int, self.end_ids)), "a token id, a list of them, or null")
        self._require(
            "eos_token_id", lambda _: min(self.end_ids, default=0) >= 0, "a token id, a list of them, or null"
        )
        self._require("carried", _is_carried, "empty, or a JSON object of JSON objects")
        self._require("activation_function", lambda v: v in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        self._require("n_layer", _is_int, f"at most {MAX_LAYERS:,}", lambda v: v <= MAX_LAYERS)
        if not isinstance(self.lora, LoRA | None):
            raise InputError("config: lora must be an adapter or null")
        for module in self.lora.modules if self.lora else ():
            layer = int(module.split(".")[1]) if module.startswith("blocks.") else 0
            if layer >= self.n_layer or (module == "lm_head" and self.tie_word_embeddings):
                raise InputError(f"config: lora: the model has no layer {module} of its own")
        if self.head_bias and self.tie_word_embeddings:
            raise InputError("config: head_bias needs a head of its own, tie_word_embeddings false")
        if self.n_embd % self.n_head:
            raise InputError(f"config: n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        n_block = self.n_embd * (4 * self.n_embd + 2 * self.n_inner)  # parameters of its matrices
        if self.n_layer * n_block + (self.vocab_size + self.n_positions) * self.n_embd > MAX_PARAMETERS:
            raise InputError(f"config: describes more than {MAX_PARAMETERS:,} parameters; that is no GPT-2")

    def _require(self, name: str, is_type: Callable, expected: str, in_range: Callable = lambda v: True):
        value = getattr(self, name)
        if not (is_type(value) and in_range(value)):
            raise InputError(f"config: {name} must be {expected}, not {value!r}")

    @property
    def n_tokens(self) -> int:
        """Number of token ids: the rows before the padding."""
        return self.vocab_size - self.n_padding

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text, `eos_token_id` as a tuple."""
        ends = self.eos_token_id
        return ends if isinstance(ends, tuple) else () if ends is None else (ends,)

    @property
    def dims(self) -> dict[str, int]:
        """Sizes by their capital letter in layouts, annotations and einsums."""
        return {
            "V": self.vocab_size,
            "T": self.n_positions,
            "D": self.n_embd,
            "L": self.n_layer,
            "N": self.n_head,
            "H": self.n_embd // self.n_head,
            "F": self.n_inner,
            "C": 3,
            "R": self.lora.r if self.lora else 0,
            "S": self.n_new_tokens,
        }


def _lora(fields: dict) -> LoRA:
    try:
        return LoRA(**fields)
    except TypeError as error:
        raise InputError(f"config: lora: {error}") from None


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_carried(value) -> bool:
    if not isinstance(value, str):
        return False
    try:
        files = parse_json(value or "{}")
    except InputError:
        return False
    return isinstance(files, dict) and all(isinstance(fields, dict) for fields in files.values())
