"""--frozen-dtype: kernels that never train take half or a quarter of the memory; nothing that is written is rounded."""

import json
import shutil

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import call
from runs import QUICK, arrays, assert_same_run, held, metrics

import jaxgpt
from jaxgpt import convert
from jaxgpt.convert.mapping import same
from jaxgpt.freeze.strategies import with_lora
from jaxgpt.int8 import Int8Kernel, quantise
from jaxgpt.mesh import make_mesh
from jaxgpt.model.gpt import abstract
from jaxgpt.model.layers import int8_product
from jaxgpt.training.compile_only.compile_step import compile_step
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import make_step_spec


@pytest.fixture(scope="module", params=["lora:r=2", "gradual:lora:r=2@0,last1@50%"])
def runs(request, small, tmp_path_factory):
    """A run whose products are in bfloat16, and the same with frozen kernels in bfloat16."""
    folder = tmp_path_factory.mktemp("frozen")
    for dtype in ("float32", "bfloat16"):
        said = call(
            "train", f"--model={small}", f"--freeze={request.param}", "--dtype=bfloat16", f"--frozen-dtype={dtype}",
            f"--out={folder}/{dtype}", *QUICK, samples=(request.param, dtype) == ("lora:r=2", "bfloat16"),
        ).stdout  # fmt: skip
        assert ("rounded " in said) == (dtype == "bfloat16")
    return folder


def test_with_products_in_bfloat16_no_number_changes(runs):
    assert_same_run(runs / "bfloat16", runs / "float32", 9)
    assert {str(array.dtype) for array in held(runs / "bfloat16", 9, "params").values()} == {"float32"}


def test_it_resumes_and_exports_the_base_s_own_bits(runs, small, tmp_path):
    out = shutil.copytree(runs / "bfloat16", tmp_path / "run")
    for step in (8, 9):
        shutil.rmtree(out / "checkpoints" / str(step))
    call("train", "--resume", out, samples=False)
    assert_same_run(out, runs / "float32", 9)
    call("convert", out, tmp_path / "peft-or-merged", "--to=orbax")
    written, base = convert.read(tmp_path / "peft-or-merged").params, convert.read(small).params
    trained = held(out, 9, "params").keys()
    assert len(base.keys() - trained) > 8
    assert all(same(np.asarray(written[name]), np.asarray(base[name])) for name in base.keys() - trained)


def test_in_float32_it_rounds_kernels_and_nothing_else(small, tmp_path):
    flags = (f"--model={small}", "--freeze=last1", "--frozen-dtype=bfloat16", "--dropout=0", *QUICK)
    said = call("train", *flags, f"--out={tmp_path}/run", samples=False).stdout
    params = jaxgpt.named_params(jaxgpt.from_pretrained(small))
    n = sum(p.size for name, p in params.items() if name.startswith("blocks.0") and name.endswith("kernel"))
    assert f"rounded     {n:,} frozen parameters, to bfloat16: " in said
    call("train", *(flag for flag in flags if "frozen" not in flag), f"--out={tmp_path}/plain", samples=False)
    losses = [[line["loss"] for line in metrics(tmp_path / name)[1:]] for name in ("run", "plain")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, atol=2e-3)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["frozen_dtype"] == "bfloat16"
    rest = arrays(tmp_path / "run", 9)
    assert all(str(array.dtype) == "float32" for name, array in rest.items() if name.startswith("params/"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--freeze=full"],
            "there is nothing to round, so leave the flag out. Only kernels that never train are rounded",
        ),
        (["--freeze=last1", "--standalone"], "--standalone would write that"),
        (["--freeze=last1", "--frozen-dtype=int4"], "--frozen-dtype"),
    ],
)
def test_what_can_t_be_is_refused(small, tmp_path, flags, says):
    flags = [f"--model={small}", "--frozen-dtype=bfloat16", *flags, *QUICK, f"--out={tmp_path}/run"]
    done = call("train", *flags, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


KERNELS = pytest.mark.parametrize(("shape", "n_in"), [((24, 3, 4, 6), 1), ((4, 6, 24), 2), ((24, 40), 1)])


def kernel_of(shape: tuple[int, ...]) -> np.ndarray:
    """A kernel whose outputs differ in size, one of them all zeros."""
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=shape) * draw.lognormal(-1, 1, size=shape[-1])
    kernel[..., 3] = 0
    return kernel.astype(np.float32)


def floats(kernel: Int8Kernel) -> jax.Array:
    return kernel.values.astype(jnp.float32) * jnp.expand_dims(kernel.scale, range(kernel.n_in))


@KERNELS
def test_int8_rounds_by_half_a_step_of_each_output(shape, n_in):
    kernel = kernel_of(shape)
    made = quantise(kernel, n_in)
    inputs = tuple(range(n_in))
    assert (made.values.dtype, made.scale.dtype, made.scale.shape) == (jnp.int8, jnp.float32, shape[n_in:])
    assert made.n_in == n_in
    np.testing.assert_allclose(made.scale, np.abs(kernel).max(inputs) / 127, rtol=1e-6)
    assert (np.abs(np.asarray(made.values).astype(int)).max(inputs) == np.where(made.scale > 0, 127, 0)).all()
    assert (np.abs(np.asarray(floats(made)) - kernel) <= np.asarray(made.scale) * 0.5001).all()


@KERNELS
def test_the_product_and_its_gradient_are_those_of_the_dequantised_kernel(shape, n_in):
    made = quantise(kernel_of(shape), n_in)
    draw = np.random.default_rng(1)
    x = jnp.asarray(draw.normal(size=(5, *shape[:n_in])), jnp.float32)
    weights = jnp.asarray(draw.normal(size=(5, *shape[n_in:])), jnp.float32)

    def plain(x):
        return jnp.tensordot(x, floats(made), n_in)

    found, expected = (jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)) * weights)) for f in (ours(made), plain))
    np.testing.assert_allclose(ours(made)(x), plain(x), rtol=1e-5, atol=1e-5)
    for a, b in zip(found(x), expected(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    half = x.astype(jnp.bfloat16)
    assert jax.grad(lambda x: jnp.sum(ours(made)(x)))(half).dtype == jnp.bfloat16


def ours(kernel: Int8Kernel):
    return lambda x: int8_product(x, kernel)


def test_a_loss_that_is_no_number_stays_one():
    kernel = np.ones((4, 6), np.float32)
    x = jnp.full((2, 4), jnp.nan)
    assert jnp.isnan(int8_product(x, quantise(kernel, 1))).all()
    kernel[2, 5] = np.nan
    assert jnp.isnan(int8_product(jnp.ones((2, 4)), quantise(kernel, 1))[:, 5]).all()


def step_spec(frozen_dtype: str, freeze: str, dtype: str = "float32", **more):
    """Return the step of a model whose kernels are most of it."""
    config = jaxgpt.GPTConfig(
        n_layer=3, vocab_size=64, n_positions=16, n_embd=128, n_head=4, n_inner=512,
        embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, **more,
    )  # fmt: skip
    settings = Settings(freeze=freeze, frozen_dtype=frozen_dtype, dtype=dtype, batch_size=1)
    model = abstract(with_lora(freeze, config), dtype=jnp.dtype(dtype))
    return make_step_spec(settings, make_mesh(devices=jax.devices()[:1]), model, steps=10, packed=False)


def compiled(*how):
    """Return such a step, and the same compiled."""
    spec = step_spec(*how)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax is not strict
        return spec, compile_step(spec)


@pytest.mark.parametrize(
    ("freeze", "dtype"), [("lora:r=2", "bfloat16"), ("lora:r=2,dora,on=all,dropout=0.1", "float32")]
)
def test_int8_takes_a_quarter_of_the_memory_and_no_copy_in_floats_is_kept(freeze, dtype):
    spec, plain = compiled("float32", freeze, dtype)
    n_bytes = sum(4 * p.size for name, p in spec.params.items() if name.endswith(".kernel"))
    spec, small = compiled("int8", freeze, dtype)
    scales = sum(4 * p.scale.size for p in spec.params.values() if isinstance(p, Int8Kernel))
    saved = plain.memory.argument_size_in_bytes - small.memory.argument_size_in_bytes
    assert saved == pytest.approx(n_bytes * 3 / 4 - scales, abs=4096)
    assert small.memory.temp_size_in_bytes < plain.memory.temp_size_in_bytes + n_bytes / 4
    assert small.peak_bytes < plain.peak_bytes - n_bytes / 2


def test_scales_are_no_parameters():
    for freeze in ("lora", "last1"):
        spec, other = step_spec("int8", freeze), step_spec("float32", freeze)
        assert spec.params.keys() == other.params.keys()
        assert jaxgpt.count_params(spec.params) == jaxgpt.count_params(other.params)
        assert jaxgpt.count_params(spec.model) == jaxgpt.count_params(other.model)
        assert spec.plan.describe(spec.params, spec.model.config) == other.plan.describe(
            other.params, other.model.config
        )


INT8 = ("--freeze=gradual:lora:r=2,dora,on=all@0,last1@50%", "--untie-head", "--frozen-dtype=int8")
"""What trains in both phases: adapters, on the head too, whose lengths are those of kernels in 8 bits."""


@pytest.fixture(scope="module")
def in_int8(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    said = call("train", f"--model={small}", *INT8, *QUICK, f"--out={folder}/run").stdout
    call("train", f"--model={small}", *INT8, "--frozen-dtype=float32", *QUICK, f"--out={folder}/float32", samples=False)
    return folder, said


def test_a_run_in_int8_learns_as_one_in_float32(in_int8):
    folder, said = in_int8
    assert "as its config implies" in said
    n = 32 * (3 * 32 + 32 + 2 * 64)
    assert f"rounded     {n:,} frozen parameters, to int8: 0.0 MB instead of 0.0" in said
    losses = [[line["loss"] for line in metrics(folder / name)[1:]] for name in ("run", "float32")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, atol=5e-3)
    assert {str(array.dtype) for array in held(folder / "run", 9, "params").values()} == {"float32"}


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_in_int8_resumes_bitwise(in_int8, tmp_path, step):
    out = shutil.copytree(in_int8[0] / "run", tmp_path / "run")
    for later in out.glob("checkpoints/*"):
        if later.name.isdecimal() and int(later.name) > step:
            shutil.rmtree(later)
    call("train", "--resume", out, samples=False)
    assert_same_run(out, in_int8[0] / "run", 9)


def test_what_a_run_in_int8_writes_has_the_base_s_own_bits(in_int8, small):
    out = in_int8[0] / "run"
    trained, base = held(out, 9, "params").keys(), jaxgpt.named_params(jaxgpt.from_pretrained(small))
    read = jaxgpt.named_params(jaxgpt.from_pretrained(out))
    left = {name for name in base if name not in trained}
    assert sum(name.endswith("kernel") for name in left) == 4
    assert all(same(np.asarray(read[name]), np.asarray(base[name])) for name in left)
    words = [
        call("jaxgpt", "generate", model, "--prompt=The", "--max-new-tokens=4", "--temperature=0").stdout
        for model in (out, out / "checkpoints" / "9")
    ]
    assert words[0] == words[1]


def test_a_checkpoint_that_holds_a_kernel_is_not_gone_on_from_with_that_rounded(small, tmp_path):
    call("train", f"--model={small}", "--freeze=last1", "--standalone", *QUICK, f"--out={tmp_path}/run", samples=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "9")
    flags = ("--resume-anyway", f"--out={tmp_path}/run", "--no-standalone", "--frozen-dtype=int8")
    done = call("train", *flags, check=False)
    assert done.returncode == 2
    assert "which --frozen-dtype would round" in done.stderr


ON_FOUR = """
import shutil, sys
from pathlib import Path
from conftest import call
import jax
assert jax.device_count() == 4
folder, *flags = sys.argv[1:]
for mesh in ("fsdp=2,tensor=2", "data=4"):
    call("train", *flags, f"--out={folder}/{mesh}", f"--mesh={mesh}", samples=False)
copy = Path(folder, "resumed")
shutil.copytree(Path(folder, "fsdp=2,tensor=2"), copy)
shutil.rmtree(copy / "checkpoints" / "9")
call("train", "--resume", copy, samples=False)
"""


def test_on_meshes_a_run_in_int8_has_the_same_losses_and_resumes_bitwise(in_int8, small, tmp_path):
    done = forked.run(
        ON_FOUR, tmp_path, f"--model={small}", *INT8, *QUICK, "--dropout=0", XLA_FLAGS=forked.simulated(4)
    )
    assert done.returncode == 0, done.stderr
    losses = [[line["loss"] for line in metrics(tmp_path / mesh)[1:]] for mesh in ("fsdp=2,tensor=2", "data=4")]
    np.testing.assert_allclose(*losses, atol=1e-4)
    assert_same_run(tmp_path / "resumed", tmp_path / "fsdp=2,tensor=2", 9)


def test_a_preference_is_learned_beside_kernels_in_int8_and_compiled_only(small):
    said = call(
        "train", "--compile-only", f"--model={small}", "--freeze=lora:r=2", "--frozen-dtype=int8",
        "--objective=dpo", "--context=16",
    ).stdout  # fmt: skip
    assert "memory" in said
