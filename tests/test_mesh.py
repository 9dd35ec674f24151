"""Where parameters lie, and that each device is given its own slice of the file and no more."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from convert import GPTConfig, InputError
from jaxgpt.mesh import RULES, make_mesh
from jaxgpt.model import abstract
from jaxgpt.params import match, named_params

SLICES = """
import jax, numpy as np
import jaxgpt
from jaxgpt import loading
original = loading._aligned

def counted(source, dtype, shape):
    sizes.append(source.size)
    return original(source, dtype, shape)

loading._aligned = counted
put = loading._put

def named(array, sharding, dtype, over=None):
    global sizes
    sizes = []
    out = put(array, sharding, dtype)
    full = int(np.prod(array.shape))
    split = 1 if sharding.is_fully_replicated else 8
    assert set(sizes) == {full // split}, (array.shape, sizes)
    return out

loading._put = named
import concurrent.futures
loading.ThreadPoolExecutor = lambda n: concurrent.futures.ThreadPoolExecutor(1)
model = jaxgpt.from_pretrained("tiny", mesh=jaxgpt.make_mesh("fsdp=8"))
kernel = jaxgpt.named_params(model)["blocks.3.mlp.fc1.kernel"]
assert [shard.data.shape for shard in kernel.addressable_shards] == [(16, 512)] * 8
print("sliced")
"""


def test_each_device_is_given_its_own_slice_of_the_file():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", SLICES], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "sliced", done.stderr


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_place(tied):
    params = named_params(abstract(GPTConfig(n_layer=2, tie_word_embeddings=tied)))
    specs = match(RULES, params)
    for name, spec in specs.items():
        axes = [axis for axis in spec if axis is not None]
        assert len(axes) == len(set(axes)), name
        assert len(spec) <= len(params[name].shape), name


@pytest.mark.parametrize("text", ["fsdp", "fsdp=0", "fsdp=-1", "rows=1", "fsdp=1;data=1", "data=2", "fsdp=1e3", ""])
def test_what_is_no_mesh(text):
    with pytest.raises(InputError, match="--mesh"):
        make_mesh(text)
