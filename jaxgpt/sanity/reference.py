"""The model in PyTorch that another is compared with: transformers' own of its family, in float32 on the CPU."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.convert.config import GPTConfig
from jaxgpt.convert.dialect import Dialect
from jaxgpt.convert.errors import InputError, about
from jaxgpt.convert.families import FAMILIES
from jaxgpt.convert.families.hf_config import config_from_hf
from jaxgpt.convert.json_input import read_json
from jaxgpt.convert.mapping import to_ours
from jaxgpt.convert.source import resolve
from jaxgpt.params import module_of


@dataclass(frozen=True)
class Reference:
    """A model of transformers, and the same parameters under our names."""

    name: str
    module: Any
    """Such as GPT2LMHeadModel."""
    config: GPTConfig
    params: dict[str, np.ndarray]

    @property
    def dialect(self) -> Dialect:
        return FAMILIES[self.config.model_type].dialect

    def counts(self) -> dict[str, int]:
        """Count the parameters of each module as PyTorch does: a tied head counts once."""
        ours = {name: row.ours for row in self.dialect.expand(self.config) for name in row.names}
        counts: Counter[str] = Counter()
        for name, param in self.module.named_parameters():
            bare = self.dialect.bare(name)
            counts[module_of(ours[self.dialect.renamed.get(bare, bare)])] += param.numel()
        return dict(counts)


def load_reference(source: Any) -> Reference:
    """Load a folder or a hub name with transformers; a model of its own is used as it is.

    Raises:
        InputError: PyTorch is not installed, or it is no whole checkpoint of a family that we compute.
    """
    try:
        import torch
    except ImportError:
        raise InputError("a comparison with PyTorch needs PyTorch: pip install 'jaxgpt[torch]'") from None
    if isinstance(source, torch.nn.Module):
        if others := {str(param.dtype) for param in source.parameters()} - {"torch.float32"}:
            raise InputError(
                f"the comparison needs a float32 reference, not {', '.join(sorted(others))}, whose rounding would hide "
                "faults: from_pretrained(..., dtype=torch.float32)"
            )
        return _reference(type(source).__name__, source.eval())
    path = resolve(source)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{source} is not a Hugging Face folder (no config.json): jaxgpt convert {source} NEW --to=hf writes one"
        )
    with about(str(source)):
        config = config_from_hf(read_json(path / "config.json"))  # from_pretrained would take a BERT's for a GPT-2's
    return _reference(str(source), _from_folder(path, FAMILIES[config.model_type].architecture))


def _from_folder(path: Path, architecture: str) -> Any:
    import torch
    import transformers

    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    settings["output_loading_info"] = True
    try:
        with _quiet():
            loaded: Any = getattr(transformers, architecture).from_pretrained(path, **settings)
    except Exception as error:  # transformers, safetensors and torch raise whatever they like for a broken file
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(f"{path}: transformers can't load it ({type(error).__name__}: {cause})") from None
    module, info = loaded
    if missing := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise InputError(
            f"{path}: not a whole checkpoint; transformers would initialise these at random: "
            + ", ".join(missing[:4])
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        )
    return module.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bar, and its table of what is missing, which is one line here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _reference(name: str, module: Any) -> Reference:
    with about(name):
        config = config_from_hf(module.config.to_dict())
        tensors = {key: value.detach().float().numpy() for key, value in module.state_dict().items()}
        params, config = to_ours(FAMILIES[config.model_type].dialect, tensors, config)
    return Reference(name, module, config, params)


def module_names(reference: Reference) -> dict[str, str]:
    """Return the name in PyTorch of each module whose output is compared, by our name, from the dialect's table."""
    dialect, config = reference.dialect, reference.config
    stems = {row.ours.rpartition(".")[0]: row.names[0].rpartition(".")[0] for row in dialect.rows}
    names: dict[str, str] = {name: stems[name] for name in ("tok_emb", "pos_emb", "ln_f") if name in stems}
    norm, out, last = (stems[f"blocks.{{i}}.{part}"] for part in ("ln_1", "attn.c_proj", "mlp.fc2"))
    block = norm[: norm.index("{i}") + 3]
    mlp = last.rpartition(".")[0]
    inner = {"ln_1": norm, "attn": out.rpartition(".")[0], "ln_2": stems["blocks.{i}.ln_2"]}
    inner["mlp"] = last if mlp == block else mlp  # OPT has no module around its MLP
    for i in range(config.n_layer):
        names |= {f"blocks.{i}.{part}": name.replace("{i}", str(i)) for part, name in inner.items()}
        names[f"blocks.{i}"] = block.replace("{i}", str(i))
    return {name: f"{dialect.prefix}{theirs}" for name, theirs in names.items()}


def torch_outputs(
    reference: Reference,
    tokens: np.ndarray,
    see: Callable[[str, np.ndarray], None],
    *,
    pattern: str | None = None,
    double: bool = False,
) -> None:
    """Run the reference, and show each module's output, under our name for it, as soon as it is there.

    Args:
        tokens: ids, (1, T).
        see: is given name and output; nothing is kept here.
        pattern: show the attention weights of this name alone, and none where the attention returns none.
        double: compute in float64.
    """
    import torch

    def hook(name: str) -> Callable:
        def show(_module, _inputs, output) -> None:
            output = output[pattern is not None] if isinstance(output, tuple) else output
            if output is not None:
                see(name, (output if output.ndim > 2 else output[None]).numpy())  # OPT's MLP has no axis of rows

        return show

    def show_embeddings(_module, inputs, named) -> None:
        see("embeddings", (inputs[0] if inputs else named["hidden_states"]).numpy())

    module: Any = reference.module
    places = {name: module.get_submodule(theirs) for name, theirs in module_names(reference).items()}
    if pattern is None:
        handles = [places["blocks.0"].register_forward_pre_hook(show_embeddings, with_kwargs=True)]
        places["logits"] = module.get_output_embeddings()
    else:
        handles, places = [], {pattern: places[pattern.removesuffix(".pattern")]}
    handles += [theirs.register_forward_hook(hook(name)) for name, theirs in places.items()]
    kind = next(reference.module.parameters()).dtype
    try:
        with torch.no_grad():
            reference.module.to(torch.float64 if double else kind)
            reference.module(torch.tensor(tokens, dtype=torch.long), use_cache=False)
    finally:
        reference.module.to(kind)  # there and back changes no bit
        for handle in handles:
            handle.remove()
