"""Where parameters lie, and that each device is given its own slice of the file and no more."""

import itertools
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec as P
from meshes import GRADUAL, MESHES, RUNS

from jaxgpt.convert import GPTConfig, InputError
from jaxgpt.loading import _aligned
from jaxgpt.mesh import RULES, make_mesh, shardings, usual_dtype
from jaxgpt.model.attention import einsum_attention
from jaxgpt.model.gpt import abstract
from jaxgpt.model.splash import fits_splash, splash_attention
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


@pytest.mark.parametrize(
    "shape", [(5,), (3, 4), (130, 7), (7, 130), (3, 4, 5), (65, 3, 2, 64), (1, 1), (0, 3), (100, 3, 1, 4)]
)
def test_an_array_is_copied_as_it_is_however_it_lies_in_memory(shape):
    stored = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
    for axes in itertools.permutations(range(len(shape))):
        whole = stored.transpose(axes)
        for source in (whole, whole[1:], whole[..., ::2]):
            for more in (0, 2):
                sizes = tuple(size + more for size in source.shape)
                copy = _aligned(source, np.dtype(np.float32), sizes)
                assert copy.flags.c_contiguous
                assert copy.shape == sizes
                assert (copy[tuple(map(slice, source.shape))] == source).all()


def test_each_device_is_given_its_own_slice_of_the_file():
    done = forked.run(SLICES, XLA_FLAGS=forked.simulated(8))
    assert done.stdout.strip() == "sliced", done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Ten steps on each mesh."""
    folder = tmp_path_factory.mktemp("meshes")
    done = forked.run("from meshes import main; main()", folder, XLA_FLAGS=forked.simulated(8))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("strategy", "mesh"), [run for run in RUNS if run[1] != "one"])
def test_eight_devices_train_as_one_does(trained, strategy, mesh):
    found = json.loads((trained / "losses.json").read_text())
    i, one = RUNS.index((strategy, mesh)), RUNS.index((strategy, "one"))
    here, alone = found[str(i)], found[str(one)]
    np.testing.assert_allclose(here["losses"], alone["losses"], rtol=0, atol=1e-5)
    ours, theirs = np.load(trained / f"{i}.npz"), np.load(trained / f"{one}.npz")
    differences = {name: np.abs(ours[name] - theirs[name]) for name in theirs}
    assert max(difference.max() for difference in differences.values()) < 1e-5
    # they are a hundred times closer still, but for what has no gradient: the keys' bias, and at most one number of
    # each parameter, since Adam divides by the root of a second moment, and makes steps of rounding where that is tiny
    rest = [x[[0, 2]] if name.endswith("c_attn.bias") else x for name, x in differences.items()]
    assert max(np.sort(difference, axis=None)[-2] for difference in rest) < 1e-7
    # and ten steps at rates of up to 1.2e-5 have moved what trains by far more
    assert here["moved"] > 5e-5


@pytest.mark.parametrize("mesh", MESHES)
def test_what_is_frozen_keeps_its_bits_on_every_mesh(trained, mesh):
    found = json.loads((trained / "losses.json").read_text())
    changed = found[str(RUNS.index((GRADUAL, mesh)))]["changed"]
    assert changed
    assert all(name.startswith(("blocks.0.mlp.", "ln_f.")) for name in changed)


PADDED = """
import jax, numpy as np
import jaxgpt
from jaxgpt.mesh import make_mesh
mesh = make_mesh("fsdp=2,tensor=3", devices=jax.devices()[:6])
one = jaxgpt.from_pretrained("HF")
split = jaxgpt.from_pretrained("HF", mesh=mesh)
assert split.config.vocab_size == 384 and split.config.n_tokens == one.config.n_tokens == 97, split.config
table = jaxgpt.named_params(split)["tok_emb.embedding"]
assert {shard.data.shape for shard in table.addressable_shards} == {(128, 18)}
tokens = np.arange(24, dtype=np.int32).reshape(4, 6)
with jax.set_mesh(mesh):
    loss = jax.jit(jaxgpt.next_token_loss)(split, tokens)
np.testing.assert_allclose(loss, jax.jit(jaxgpt.next_token_loss)(one, tokens), atol=1e-5)
print("padded")
"""


def test_a_vocabulary_that_tensor_does_not_divide_is_padded(hf_folder):
    folder, _ = hf_folder(n_inner=54)
    code = PADDED.replace("HF", str(folder))
    done = forked.run(code, XLA_FLAGS=forked.simulated(8))
    assert done.stdout.strip() == "padded", done.stderr


def test_by_default_devices_are_on_fsdp_if_they_divide_the_width_and_leave_each_enough():
    devices = np.asarray(jax.devices() * 256)[:256].tolist()
    with pytest.MonkeyPatch.context() as patch:  # one device many times over is no grid
        patch.setattr(mesh_utils, "create_device_mesh", lambda shape, devices, **_: np.asarray(devices).reshape(shape))
        assert dict(make_mesh(devices=devices, width=1600).shape) == {"data": 8, "fsdp": 32, "tensor": 1}
        assert dict(make_mesh(devices=devices, width=768).shape) == {"data": 16, "fsdp": 16, "tensor": 1}
        assert dict(make_mesh(devices=devices[:6], width=128).shape) == {"data": 3, "fsdp": 2, "tensor": 1}
        assert dict(make_mesh(devices=devices[:4], width=8).shape) == {"data": 4, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            ((".*kernel", P("fsdp", "fsdp")), (".*", P())),
            "invalid sharding .*: it names a mesh axis twice, or has more entries than the array has axes",
        ),
        (((".*bias", P()), (".*kernel", P())), "no pattern of the rules matches the parameter tok_emb.embedding"),
        (((".*", P("fsdp", None, None, None, None)),), "invalid sharding"),
    ],
)
def test_rules_that_collide_or_leave_something_out_are_refused(rules, message):
    params = named_params(abstract(GPTConfig(n_layer=1)))
    with pytest.raises(InputError, match=message):
        shardings(params, make_mesh(), rules)


@pytest.mark.parametrize(
    ("n_head", "n_kv_head", "window", "packed"),
    [(2, 2, 0, False), (4, 2, 0, True), (2, 1, 100, False), (2, 1, 100, True)],
)
def test_the_splash_kernel_gives_what_plain_attention_gives(n_head, n_kv_head, window, packed):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, 256, n, 64)) for key, n in zip(keys, (n_head, n_kv_head, n_kv_head), strict=True)
    )
    segments = jnp.repeat(jnp.asarray([[1, 2], [3, 3]]), 128, axis=1) if packed else None
    mesh = make_mesh(devices=jax.devices()[:1])

    def loss(attention, q, k, v):
        out = attention(q, k, v, scale=0.125, segments=segments, window=window)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype).reshape(out.shape))), out

    def jitted(attention):
        return jax.jit(jax.value_and_grad(partial(loss, attention), (0, 1, 2), has_aux=True))

    plain = jitted(einsum_attention)(q, k, v)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert fits_splash(q, k)
        splash = jitted(partial(splash_attention, interpret=True))(q, k, v)
    for ours, theirs in zip(jax.tree.leaves(splash), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


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
    with pytest.raises(InputError, match=r"^mesh '"):
        make_mesh(text)


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", None, "float32"), ("tpu", None, "bfloat16"), ("gpu", "9.0", "bfloat16"), ("cuda", "8.0", "bfloat16"),
        ("gpu", "12.0", "bfloat16"), ("gpu", "7.5", "float32"), ("rocm", "gfx90a", "bfloat16"),
    ],
)  # fmt: skip
def test_products_are_in_bfloat16_where_it_is_fast(platform, capability, expected):
    assert usual_dtype(SimpleNamespace(platform=platform, compute_capability=capability), 128) == expected
