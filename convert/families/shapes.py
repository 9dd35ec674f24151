"""Shapes of published models of the families beside GPT-2, in the words of their `config.json`, by their hub names.

What is not said here is the family's default. For a compilation without weights; a checkpoint has a config of its own.
"""

from typing import Any

Shape = tuple[str, dict[str, Any]]
"""The model type, and the fields."""


def _pythia(L: int, D: int, N: int, V: int = 50304) -> Shape:
    return "gpt_neox", {
        "num_hidden_layers": L, "hidden_size": D, "num_attention_heads": N, "intermediate_size": 4 * D, "vocab_size": V,
        "rotary_pct": 0.25, "eos_token_id": 0,
    }  # fmt: skip


def _neo(L: int, D: int, N: int) -> Shape:
    kinds = (["global", "local"] * L)[:L]
    return "gpt_neo", {"num_layers": L, "hidden_size": D, "num_heads": N, "attention_types": [[kinds, 1]]}


def _opt(L: int, D: int, N: int) -> Shape:
    return "opt", {"num_hidden_layers": L, "hidden_size": D, "num_attention_heads": N, "ffn_dim": 4 * D}


def _llama(
    L: int, D: int, F: int, N: int, K: int, V: int, T: int, theta: float, *, tied: bool = False, kind: str = "llama",
    **more: Any,
) -> Shape:  # fmt: skip
    return kind, {
        "num_hidden_layers": L, "hidden_size": D, "intermediate_size": F, "num_attention_heads": N,
        "num_key_value_heads": K, "vocab_size": V, "max_position_embeddings": T, "rope_theta": theta,
        "tie_word_embeddings": tied, "rms_norm_eps": 1e-5 if kind in ("llama", "mistral") else 1e-6, **more,
    }  # fmt: skip


def _long(factor: float) -> dict[str, Any]:
    """Return how Llama 3.1 and 3.2 rotate beyond their pretraining's 8,192 positions."""
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_scaling": scaling | {"original_max_position_embeddings": 8192}}


SHAPES: dict[str, Shape] = {
    "EleutherAI/pythia-14m": _pythia(6, 128, 4),
    "EleutherAI/pythia-31m": _pythia(6, 256, 8),
    "EleutherAI/pythia-70m": _pythia(6, 512, 8),
    "EleutherAI/pythia-160m": _pythia(12, 768, 12),
    "EleutherAI/pythia-410m": _pythia(24, 1024, 16),
    "EleutherAI/pythia-1b": _pythia(16, 2048, 8),
    "EleutherAI/pythia-1.4b": _pythia(24, 2048, 16),
    "EleutherAI/pythia-2.8b": _pythia(32, 2560, 32),
    "EleutherAI/pythia-6.9b": _pythia(32, 4096, 32, 50432),
    "EleutherAI/pythia-12b": _pythia(36, 5120, 40, 50688),
    "roneneldan/TinyStories-1M": _neo(8, 64, 16),
    "roneneldan/TinyStories-3M": _neo(8, 128, 16),
    "roneneldan/TinyStories-8M": _neo(8, 256, 16),
    "roneneldan/TinyStories-28M": _neo(8, 512, 16),
    "roneneldan/TinyStories-33M": _neo(4, 768, 16),
    "EleutherAI/gpt-neo-125m": _neo(12, 768, 12),
    "EleutherAI/gpt-neo-1.3B": _neo(24, 2048, 16),
    "EleutherAI/gpt-neo-2.7B": _neo(32, 2560, 20),
    "facebook/opt-125m": _opt(12, 768, 12),
    "facebook/opt-1.3b": _opt(24, 2048, 32),
    "facebook/opt-2.7b": _opt(32, 2560, 32),
    "facebook/opt-6.7b": _opt(32, 4096, 32),
    "HuggingFaceTB/SmolLM2-135M": _llama(30, 576, 1536, 9, 3, 49152, 8192, 1e5, tied=True),
    "HuggingFaceTB/SmolLM2-360M": _llama(32, 960, 2560, 15, 5, 49152, 8192, 1e5, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(24, 2048, 8192, 32, 32, 49152, 8192, 130000, tied=True),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama(22, 2048, 5632, 32, 4, 32000, 2048, 1e4),
    "meta-llama/Llama-2-7b-hf": _llama(32, 4096, 11008, 32, 32, 32000, 4096, 1e4),
    "meta-llama/Llama-3.2-1B": _llama(16, 2048, 8192, 32, 8, 128256, 131072, 5e5, tied=True, **_long(32)),
    "meta-llama/Llama-3.2-3B": _llama(28, 3072, 8192, 24, 8, 128256, 131072, 5e5, tied=True, **_long(32)),
    "meta-llama/Llama-3.1-8B": _llama(32, 4096, 14336, 32, 8, 128256, 131072, 5e5, **_long(8)),
    "mistralai/Mistral-7B-v0.1": _llama(
        32, 4096, 14336, 32, 8, 32000, 32768, 1e4, kind="mistral", sliding_window=4096
    ),
    "mistralai/Mistral-7B-v0.3": _llama(
        32, 4096, 14336, 32, 8, 32768, 32768, 1e6, kind="mistral", sliding_window=None
    ),
    "Qwen/Qwen2.5-0.5B": _llama(24, 896, 4864, 14, 2, 151936, 32768, 1e6, tied=True, kind="qwen2"),
    "Qwen/Qwen2.5-1.5B": _llama(28, 1536, 8960, 12, 2, 151936, 131072, 1e6, tied=True, kind="qwen2"),
    "Qwen/Qwen2.5-3B": _llama(36, 2048, 11008, 16, 2, 151936, 32768, 1e6, tied=True, kind="qwen2"),
    "Qwen/Qwen3-0.6B": _llama(28, 1024, 3072, 16, 8, 151936, 40960, 1e6, tied=True, kind="qwen3"),
    "Qwen/Qwen3-1.7B": _llama(28, 2048, 6144, 16, 8, 151936, 40960, 1e6, tied=True, kind="qwen3"),
    "Qwen/Qwen3-4B": _llama(36, 2560, 9728, 32, 8, 151936, 40960, 1e6, tied=True, kind="qwen3"),
    "Qwen/Qwen3-8B": _llama(36, 4096, 12288, 32, 8, 151936, 40960, 1e6, kind="qwen3"),
    "Qwen/Qwen2.5-7B": _llama(28, 3584, 18944, 28, 4, 152064, 131072, 1e6, kind="qwen2"),
}  # fmt: skip


def fields_of_shape(name: str) -> dict[str, Any] | None:
    """Return the fields of a published model's `config.json`, by its hub name with or without the owner."""
    bare = name.partition("@")[0]
    found = next((shape for known, shape in SHAPES.items() if bare in (known, known.rpartition("/")[2])), None)
    return None if found is None else {"model_type": found[0], **found[1]}
