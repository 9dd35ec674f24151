"""The compilation cache: a program that one process compiled is loaded by the next, and nothing else changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from jaxgpt.convert.command_line.flags import flags_of
from jaxgpt.training.settings import Settings

SCRIPT = """
import sys
from jaxgpt.compile_cache import use_compile_cache
import jax
use_compile_cache(sys.argv[1] == "on")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))).block_until_ready()
print(sum(name == "/jax/compilation_cache/cache_hits" for name in events))
"""


def hits(home: Path, how: str = "on", **env: str) -> int:
    """Programs that a new process loads instead of compiling them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = kept | {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | env
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert hits(home) == 0
    return home


def test_the_second_process_loads_what_the_first_compiled(warm):
    folder = warm / "jaxgpt" / "xla"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("*-cache"))
    assert hits(warm) > 0


def test_it_can_be_switched_off_and_another_cache_counts_first(warm, tmp_path):
    assert hits(tmp_path / "home", "off") == 0
    assert not (tmp_path / "home").exists()
    assert hits(warm, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == 0
    assert list((tmp_path / "other").iterdir())
    assert flags_of(Settings)["compile_cache"].may_change


def test_damaged_entries_and_a_folder_that_can_not_be_made_stop_nobody(warm, tmp_path):
    for file in (warm / "jaxgpt" / "xla").glob("*-cache"):
        file.write_bytes(b"damaged")
    assert hits(warm) == 0
    (tmp_path / "file").touch()
    assert hits(tmp_path / "file") == 0
