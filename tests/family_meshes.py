"""Loss and gradient of every family on eight simulated devices, beside those on one."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from families import FIRST, MODELS, TWO_BLOCKS

import jaxgpt
from jaxgpt import named_params, with_params
from jaxgpt.convert.families.hf_config import config_from_hf
from jaxgpt.mesh import batch_sharding, make_mesh, shardings
from jaxgpt.model.gpt import abstract

MESHES = ("data=2,fsdp=2,tensor=2", "fsdp=2,tensor=4")
"""The last has more devices on `tensor` than there are heads of keys, in families that group heads."""

SIZES = {
    "hidden_size": 64, "num_attention_heads": 8, "num_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128,
    "ffn_dim": 128, "head_dim": None, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def config_of(name: str) -> jaxgpt.GPTConfig:
    """Return the config of a family's small model: sizes that eight divides, and one block of each kind."""
    import transformers

    kind, fields = MODELS[name]
    fields = fields | (TWO_BLOCKS[name] if name == "gpt_neo" else {"num_hidden_layers": 1})
    changed = {field: SIZES.get(field, value) for field, value in fields.items() if SIZES.get(field, value) is not None}
    return config_from_hf(getattr(transformers, f"{kind}Config")(**changed).to_dict())


def main() -> None:
    found = {}
    for name in FIRST:
        config = config_of(name)
        shapes, draw = abstract(config), np.random.default_rng(0)
        start = {
            n: draw.normal(float(n.endswith("scale")), 0.1, p.shape).astype(np.float32)
            for n, p in named_params(shapes).items()
        }
        tokens = draw.integers(0, 96, (8, 25)).astype(np.int32)

        def loss(params, tokens, shapes=shapes):
            return jaxgpt.next_token_loss(with_params(shapes, params), tokens).mean()

        both = jax.jit(jax.value_and_grad(loss))
        plain, expected = both(start, tokens)
        for text in MESHES if config.n_kv_head else MESHES[:1]:
            mesh = make_mesh(text)
            places = shardings(named_params(shapes), mesh)
            params, rows = jax.device_put(start, places), jax.device_put(tokens, batch_sharding(mesh))
            with jax.set_mesh(mesh):
                value, grads = jax.jit(jax.value_and_grad(loss), out_shardings=(None, places))(params, rows)
            sizes = {n: max(1e-3, np.abs(g).max()) for n, g in expected.items()}  # a bias of keys has none but rounding
            off = [np.abs(np.asarray(g) - expected[n]).max() / sizes[n] for n, g in grads.items()]
            keys = [places[n].spec for n in places if n.endswith("k_proj.kernel")]
            found[f"{name} on {text}"] = {
                "loss": abs(float(value) / float(plain) - 1), "gradient": float(max(off)),
                "keys are split": any("tensor" in spec for spec in keys),
            }  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
