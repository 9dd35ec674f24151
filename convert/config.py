"""The shape of a GPT: every dialect is read into this description and written from it.

Models differ in what these fields say, and in nothing else; the defaults are GPT-2's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.convert.adapter import LoRA
from jaxgpt.convert.errors import InputError
from jaxgpt.convert.json_input import parse_json

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "tanh")
"""Canonical names, as in Hugging Face's `config.json`: `gelu_new` is GPT-2's tanh form, `gelu` the exact one."""

NORMS = ("layer", "rms")
"""LayerNorm, and RMSNorm (Zhang and Sennrich 2019), which has neither a mean nor a bias."""

POSITIONS = ("learned", "rotary")
"""Rows of a table that are added to the embeddings, or rotations of queries and keys (Su et al. 2021)."""

BIASES = ("qkv", "attn_out", "mlp", "norm")
"""Kinds of layers that may have biases."""

KIND_OF_LAYER = {
    "c_attn": "qkv", "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "c_proj": "attn_out",
    "fc1": "mlp", "fc2": "mlp", "gate": "mlp", "ln_1": "norm", "ln_2": "norm", "ln_f": "norm",
}  # fmt: skip
"""The kind of each layer, by the last part of its name."""

USUAL_CONTEXT = 1024
"""Tokens of a row in training and evaluation, at most, unless more are asked for: contexts reach 131,072."""

MAX_PARAMETERS, MAX_LAYERS = 10**12, 10_000
"""Largest model that a config may describe; a hostile config is refused before anything is allocated for it."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary frequencies for a longer context than the pretraining's, as Llama 3.1 computes them."""

    factor: float
    """Rotations that are slow are slower by this factor."""
    low_freq_factor: float
    """Slow are those of less than this many turns within the pretraining's context."""
    high_freq_factor: float
    """Those of more than this many turns stay; between the two they are blended."""
    original_positions: int
    """The pretraining's context."""

    def __post_init__(self):
        numbers = (self.factor, self.low_freq_factor, self.high_freq_factor, self.original_positions)
        if not all(_is_number(n) and 0 < n <= 2**31 for n in numbers) or not _is_int(self.original_positions):
            raise InputError(
                "config: rope_scaling: its factors must be numbers above 0, and its original context an integer above 0"
            )
        if self.low_freq_factor >= self.high_freq_factor:
            raise InputError("config: rope_scaling: low_freq_factor must be below high_freq_factor")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Shape and constants of a GPT, in Hugging Face's field names for GPT-2; the defaults are the 124M `gpt2`."""

    vocab_size: int = 50257
    """V, rows of the token embedding."""
    n_padding: int = 0
    """Rows at the end of the token embedding (and of an untied head) that stand for no token."""
    n_positions: int = 1024
    """T, the longest context."""
    n_embd: int = 768
    """D, width of the residual stream."""
    n_layer: int = 12
    """L, number of blocks."""
    n_head: int = 12
    """N, attention heads."""
    n_kv_head: int | None = None
    """K, heads of keys and values, each for N / K heads of queries (Ainslie et al. 2023); null means N."""
    head_dim: int | None = None
    """H, size of a head; null means D / N."""
    split_qkv: bool = False
    """Queries, keys and values are computed by a layer each, and not by one for all."""
    qk_norm: bool = False
    """Queries and keys pass through an RMSNorm over H, of one scale for all heads."""
    n_inner: int = 3072
    """F, width of the MLP's hidden layer (`null` in a `config.json` means 4 D)."""
    gated_mlp: bool = False
    """The hidden layer is multiplied by the activation of another one, `gate`, and has none itself (Shazeer 2020)."""
    parallel_residual: bool = False
    """A block's MLP reads what its attention reads, and not what that has added to."""
    norm: str = "layer"
    """One of `NORMS`, for every norm of the residual stream."""
    positions: str = "learned"
    """One of `POSITIONS`."""
    position_offset: int = 0
    """Rows at the beginning of the position embedding that stand for no position."""
    rotary_dim: int | None = None
    """2 J, numbers at the beginning of a head that are rotated; null means H."""
    rope_theta: float = 10000.0
    """Rotary frequencies are the powers of this number from 0 to below -1."""
    rope_scaling: RopeScaling | None = None
    """How they are changed for a long context."""
    windows: tuple[int, ...] = ()
    """For each block the number of positions that one sees, its own and those before it, 0 for all; () if all do."""
    activation_function: str = "gelu_new"
    """One of `ACTIVATIONS`."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in every norm."""
    scale_attn_weights: bool = True
    """Divide attention scores by sqrt(H)."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Divide the attention scores of block i by i + 1 (Mistral's stanford-crfm models)."""
    reorder_and_upcast_attn: bool = False
    """Attention scores in float32 for any compute dtype. Ours always are, so that both values compute the same."""
    bias: bool | tuple[str, ...] = True
    """Linear layers and LayerNorms have biases (nanoGPT's may have none): all, none, or those of these `BIASES`."""
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
    model_type: str = "gpt2"
    """Its family in transformers: what it is written as. Nothing is computed by it."""
    carried: str = field(default="", repr=False)
    """JSON text: what a Hugging Face folder says beside these fields, for its export. By the name of the file, the
    fields of `config.json` that compute nothing here, and all of `generation_config.json`."""

    def __post_init__(self):
        if isinstance(ends := self.eos_token_id, (list, tuple)):  # a list where it comes from JSON
            object.__setattr__(self, "eos_token_id", tuple(ends) if len(ends) > 1 else ends[0] if ends else None)
        if isinstance(self.lora, dict):  # where it comes from JSON
            object.__setattr__(self, "lora", _from_json(LoRA, "lora", self.lora))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", _from_json(RopeScaling, "rope_scaling", self.rope_scaling))
        object.__setattr__(self, "windows", _windows(self.windows))
        object.__setattr__(self, "bias", _biases(self.bias))
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            self._require(name, _is_int, "an integer from 1 to 2^31", lambda v: 1 <= v <= 2**31)
        for name in ("n_kv_head", "head_dim", "rotary_dim"):
            given = f"null or {'an even integer' if name == 'rotary_dim' else 'an integer'} from 1 to 2^16"
            self._require(name, lambda v: v is None or _is_int(v), given, lambda v: v is None or 1 <= v <= 2**16)
        self._require("position_offset", _is_int, "an integer from 0 to 2^16", lambda v: 0 <= v <= 2**16)
        self._require("rope_theta", _is_number, "a number from 1 to 10^12", lambda v: 1 <= v <= 1e12)
        self._require("norm", lambda v: v in NORMS, f"one of {', '.join(NORMS)}")
        self._require("positions", lambda v: v in POSITIONS, f"one of {', '.join(POSITIONS)}")
        self._require("model_type", lambda v: isinstance(v, str) and v.isidentifier(), "the name of a family")
        self._require("n_padding", _is_int, "an integer from 0 to vocab_size - 1", lambda v: 0 <= v < self.vocab_size)
        self._require(
            "n_new_tokens", _is_int, "an integer from 0 to vocab_size - n_padding - 1", lambda v: 0 <= v < self.n_tokens
        )
        self._require("layer_norm_epsilon", _is_number, "a number in [0, 1)", lambda v: 0 <= v < 1)
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            self._require(name, _is_number, "a probability in [0, 1)", lambda v: 0 <= v < 1)
        for name in (
            "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings",
            "head_bias", "split_qkv", "qk_norm", "gated_mlp", "parallel_residual",
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
                raise InputError(f"config: lora: the model has no layer {module}, or it is tied to another")
        if self.head_bias and self.tie_word_embeddings:
            raise InputError("config: head_bias needs a head of its own, tie_word_embeddings false")
        self._settle_heads()
        dims = self.dims
        n_attention = 2 * (dims["N"] + dims["K"]) * dims["H"]
        n_block = self.n_embd * (n_attention + (2 + self.gated_mlp) * self.n_inner)  # parameters of its matrices
        n_tables = (self.vocab_size + (dims["P"] if self.positions == "learned" else 0)) * self.n_embd
        if self.n_layer * n_block + n_tables > MAX_PARAMETERS:
            raise InputError(f"config: describes more than {MAX_PARAMETERS:,} parameters; that is no GPT")

    def _settle_heads(self) -> None:
        """Refuse heads that do not fit together, and say in one way what may be said in two."""
        if self.head_dim is None and self.n_embd % self.n_head:
            raise InputError(f"config: n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        dims = self.dims
        if dims["N"] % dims["K"]:
            raise InputError(f"config: n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}")
        if dims["K"] != dims["N"] and not self.split_qkv:
            raise InputError("config: n_kv_head other than n_head needs split_qkv")
        rotated = self.rotary_dim if self.rotary_dim is not None else dims["H"]
        if self.positions == "rotary" and (rotated % 2 or rotated > dims["H"]):
            raise InputError(f"config: rotary_dim {rotated} must be even, and at most the head's size {dims['H']}")
        usual = {"n_kv_head": self.n_head, "rotary_dim": dims["H"], "head_dim": self.n_embd / self.n_head}
        for name, size in usual.items():
            if getattr(self, name) == size:
                object.__setattr__(self, name, None)
        if self.windows and len(self.windows) != self.n_layer:
            raise InputError(f"config: windows has {len(self.windows)} entries, for {self.n_layer} blocks")

    def _require(self, name: str, is_type: Callable, expected: str, in_range: Callable = lambda v: True):
        value = getattr(self, name)
        if not (is_type(value) and in_range(value)):
            raise InputError(f"config: {name} must be {expected}, not {value!r}")

    def has_bias(self, layer: str) -> bool:
        """Tell whether a linear layer or norm, by its name or the last part of it, has a bias."""
        kind = KIND_OF_LAYER.get(layer.rpartition(".")[2])
        if kind is None or (kind == "norm" and self.norm == "rms"):
            return False
        return self.bias if isinstance(self.bias, bool) else kind in self.bias

    def window(self, layer: int) -> int:
        """Return the number of positions that one sees in a block, 0 for all."""
        return self.windows[layer] if self.windows else 0

    @property
    def usual_context(self) -> int:
        """Tokens of a row in training and evaluation, unless told otherwise."""
        return min(self.n_positions, USUAL_CONTEXT)

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
            "K": self.n_head if self.n_kv_head is None else self.n_kv_head,
            "H": self._head_size,
            "F": self.n_inner,
            "C": 3,
            "P": self.n_positions + self.position_offset,
            "J": (self._head_size if self.rotary_dim is None else self.rotary_dim) // 2,
            "R": self.lora.r if self.lora else 0,
            "S": self.n_new_tokens,
        }

    @property
    def _head_size(self) -> int:
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim


def _from_json(kind: Any, name: str, fields: dict) -> Any:
    try:
        return kind(**fields)
    except TypeError as error:
        raise InputError(f"config: {name}: {error}") from None


def _windows(windows: Any) -> tuple[int, ...]:
    """Return the windows as a tuple, which they are not where they come from JSON; an empty one if all see all."""
    is_right = isinstance(windows, (list, tuple)) and all(_is_int(n) and 0 <= n <= 2**31 for n in windows)
    if not is_right or len(windows) > MAX_LAYERS:
        raise InputError(f"config: windows must be a list of numbers of positions, not {str(windows)[:100]}")
    return tuple(windows) if any(windows) else ()


def _biases(bias: Any) -> bool | tuple[str, ...]:
    """Return which layers have biases in one way: true for all, false for none, or some kinds in their order."""
    if isinstance(bias, bool):
        return bias
    if not isinstance(bias, (list, tuple)) or not all(kind in BIASES for kind in bias):
        raise InputError(f"config: bias must be true, false, or a list of {', '.join(BIASES)}, not {str(bias)[:100]}")
    kinds = tuple(kind for kind in BIASES if kind in bias)
    return len(kinds) == len(BIASES) if len(kinds) in (0, len(BIASES)) else kinds


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
