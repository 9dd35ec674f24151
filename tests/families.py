"""Small random models of every family, written by transformers: no two dimensions are equal, and all weights matter."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.families import FAMILIES

T, V, L = 41, 97, 3

BEGIN, END = "<!-- made by `python -m pytest tests --families-table` -->\n\n", "\n\n<!-- end -->"
"""What the table in FAMILIES.md stands between."""

SHARED: dict[str, Any] = {"vocab_size": V, "bos_token_id": 96, "eos_token_id": 96, "max_position_embeddings": T}
WIDE = SHARED | {"hidden_size": 40, "num_hidden_layers": L, "num_attention_heads": 4, "intermediate_size": 52}
GROUPED = WIDE | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}  # fmt: skip
NEO = SHARED | {
    "hidden_size": 40, "num_layers": L, "num_heads": 5, "intermediate_size": 52, "window_size": 7,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoX", WIDE | {"num_attention_heads": 5, "rotary_pct": 0.25}),
    "gpt_neox, one after the other, tied, without biases": (
        "GPTNeoX",
        WIDE | {"rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False, "rotary_emb_base": 500}
        | {"tie_word_embeddings": True, "hidden_act": "gelu_fast"},
    ),
    "gpt_neo": ("GPTNeo", NEO),
    "opt": ("OPT", WIDE | {"ffn_dim": 52, "pad_token_id": 1}),
    "opt without biases, with gelu": (
        "OPT", WIDE | {"ffn_dim": 52, "enable_bias": False, "activation_function": "gelu"}
    ),
    "llama": ("Llama", GROUPED | {"head_dim": 12, "rms_norm_eps": 1e-5}),
    "llama 3, tied, with biases": (
        "Llama",
        GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "llama of equal heads": ("Llama", WIDE | {"rope_theta": 1e6}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 9}),
    "mistral without a window": ("Mistral", GROUPED | {"sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": (
        "Qwen2",
        GROUPED
        | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 12}),
    "qwen3 with biases": (
        "Qwen3",
        GROUPED | {"head_dim": 8, "attention_bias": True, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5},
    ),
}  # fmt: skip
"""By a name of ours, the name of transformers' classes and what is given to the config."""

FIRST = ("gpt_neox", "gpt_neo", "opt", "llama", "mistral", "qwen2", "qwen3")
"""One model of each family."""


TWO_BLOCKS: dict[str, dict[str, Any]] = {name: {"num_hidden_layers": 2} for name in FIRST}
TWO_BLOCKS["gpt_neo"] = {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}
"""What makes a model of each family one of two blocks, for what takes long."""


def random_model(name: str, seed: int = 0, outliers: bool = False, **changes: Any) -> Any:
    """Make a model in which every parameter moves the logits; with outliers, one dimension of its stream is large."""
    import torch
    import transformers

    kind, fields = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**fields | changes)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for param_name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.15)
            elif param_name.endswith("weight"):
                p.normal_(1, 0.2)
            else:
                p.normal_(0, 0.2)
        if outliers:
            model.get_input_embeddings().weight[:, 3] += 100
    return model


def write_model(folder: Path, name: str, **how: Any) -> Any:
    """Write such a model as transformers does, and return it."""
    model = random_model(name, **how)
    model.save_pretrained(folder)
    return model


def capabilities() -> list[str]:
    """Return the names of all capabilities that tests are marked with, in their order."""
    files = sorted(Path(__file__).parent.glob("test_famil*.py"))
    found = [re.findall(r"mark\.capability\(\"(.+?)\"\)", file.read_text()) for file in files]
    return [name for names in found for name in names]


def table(shown: set[tuple[str, str]]) -> str:
    """Return the table of capabilities by family, in Markdown."""
    titles = [FAMILIES[family].title.partition(" (")[0] for family in FIRST]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + ":---:|" * len(FIRST)]
    for name in capabilities():
        cells = ["yes" if (name, family) in shown else "no" for family in FIRST]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(path: Path, shown: set[tuple[str, str]]) -> None:
    """Put a table in the place of the one in a document."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(before + BEGIN + table(shown) + END + rest.partition(END)[2])


def random_rows(n: int, length: int = T, seed: int = 1) -> np.ndarray:
    """Return random tokens without the one that ends a text."""
    return np.random.default_rng(seed).integers(2, V - 1, (n, length)).astype(np.int32)
