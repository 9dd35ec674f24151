"""The commands `jaxgpt generate`, `jaxgpt eval` and `jaxgpt check`."""

MODEL = (
    "a Hugging Face folder, a .safetensors, .pt or .bin file, an Orbax checkpoint, a training run, a hub name such as "
    "gpt2, or tiny, the bundled model"
)
"""All that a MODEL may be."""

COMPILE_CACHE = "Keep compiled programs in ~/.cache/jaxgpt/xla, at most 2 GB, so that the next start is quicker."
"""Help of the flag that all commands with programs have."""
