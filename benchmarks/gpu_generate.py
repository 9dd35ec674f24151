"""Texts written by one program, measured in its own process: python benchmarks/gpu_generate.py CASE; see gpu.py."""

import json
import sys
import time

import numpy as np
from gpu_windows import tell

REPEATS = 5


def ours(shape: dict[str, int], cpu: bool):
    """Return a function that continues prompts with jaxgpt."""
    import jax
    import jax.numpy as jnp
    from gpu_jaxgpt import initial_params

    import jaxgpt
    from jaxgpt.model.gpt import abstract
    from jaxgpt.params import with_params

    if jax.default_backend() != ("cpu" if cpu else "gpu"):
        raise RuntimeError(f"JAX is on {jax.default_backend()}")
    model = abstract(jaxgpt.GPTConfig(**shape), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    params = {name: jnp.asarray(p, jnp.bfloat16) for name, p in initial_params(model).items()}
    model = with_params(model, params)
    return lambda prompts, new: np.asarray(jaxgpt.generate(model, prompts, max_new_tokens=new))


def theirs(shape: dict[str, int], cpu: bool):
    """Return the same with transformers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    device = torch.device("cpu" if cpu else "cuda")
    model = GPT2LMHeadModel(GPT2Config(**shape)).to(device, torch.bfloat16).eval()
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def write(prompts, new):
        tokens = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, **settings)
        return out.cpu().numpy()

    return write


def main() -> None:
    """Write each number of texts a few times after a first one, and print the seconds."""
    case = json.loads(sys.argv[1])
    write = {"jaxgpt": ours, "hf": theirs}[case["program"]](case["shape"], case["cpu"])
    seconds = []
    for n, length, new in case["texts"]:
        prompts = np.random.default_rng(0).integers(0, case["shape"]["vocab_size"], (n, length))
        write(prompts, new)
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            write(prompts, new)
            times.append(time.perf_counter() - began)
        seconds.append(times)
    tell({"seconds": seconds})


if __name__ == "__main__":
    main()
