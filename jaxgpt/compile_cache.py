"""XLA's persistent compilation cache, beside the cache of tokens: a program that was compiled once is loaded."""

import os
import warnings
from pathlib import Path

import jax

from jaxgpt.convert.disk import local_path
from jaxgpt.convert.errors import InputError

MOST_BYTES = 2 * 10**9
"""Bytes of the cache: programs that were not used for longest are removed first."""


def use_compile_cache(is_wanted: bool = True) -> None:
    """Keep compiled programs on disk, and look for them there; safe between processes. A full disk keeps none.

    Nothing is changed where JAX_COMPILATION_CACHE_DIR names a cache already, or the folder can't be written.
    """
    if getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009  JAX makes its options at run time
        if not is_wanted:
            jax.config.update("jax_enable_compilation_cache", False)
        return
    if not is_wanted:
        return
    try:
        folder = default_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            return
    except (OSError, InputError):
        return
    warnings.filterwarnings("ignore", "Error (writing|reading) persistent compilation cache", UserWarning)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def default_folder() -> Path:
    """Return the folder of the cache."""
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxgpt" / "xla"
