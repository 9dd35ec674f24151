"""Attention on NVIDIA GPUs, without one: which kernel is asked for, and that what surrounds it changes no number.

Programs are lowered for CUDA and read; what they compute is looked at with XLA's attention in the kernel's place.
"""

import re

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt.mesh
import jaxgpt.model.attention
import jaxgpt.model.cudnn
from jaxgpt import GPTConfig
from jaxgpt.mesh import make_mesh
from jaxgpt.model.attention import attention
from jaxgpt.model.cache import empty_cache
from jaxgpt.model.gpt import abstract
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.phases import PhaseCompiler
from jaxgpt.training.step.spec import make_step_spec
from jaxgpt.training.step.step import Rates, make_train_step

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
MASKED_FORWARD, MASKED_BACKWARD = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of that compute capability to lower for."""

    def pretend(capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
        for module in (jaxgpt.model.attention, jaxgpt.mesh):
            monkeypatch.setattr(module, "platform", lambda: "gpu")
        monkeypatch.setattr(jaxgpt.model.cudnn, "compute_capability", lambda: capability)

    return pretend


def lowered(function, *arguments) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def kernels(text: str) -> list[str]:
    return re.findall(r"__cudnn\$\w+", text)


def gradient(T=96, H=64, dtype=jnp.bfloat16, packed=False, N=2, window=0) -> list[str]:
    """The kernels of attention and its gradient."""
    q, segments = jax.ShapeDtypeStruct((4, T, N, H), dtype), jax.ShapeDtypeStruct((4, T), jnp.int32)
    k = jax.ShapeDtypeStruct((4, T, 2, H), dtype)

    def loss(q, k, v, segments):
        return attention(q, k, v, scale=0.3, segments=segments, window=window).astype(jnp.float32).sum()

    text = lowered(jax.grad(loss, (0, 1, 2)), q, k, k, segments if packed else None)
    found = kernels(text)
    if found:
        assert set(re.findall(r"fmha_scale\\22: ([\d.]+)", text)) == {"0.3"}
        assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {"NO_MASK" if packed or window else "CAUSAL"}
    return found


@pytest.mark.parametrize("T", [2, 96, 100, 1024])
def test_half_precision_takes_cudnn_whether_or_not_64_divides_the_context(gpu, T):
    gpu()
    assert gradient(T) == [FORWARD, BACKWARD]
    assert gradient(T, dtype=jnp.float16) == [FORWARD, BACKWARD]
    assert gradient(T, packed=True) == [MASKED_FORWARD, MASKED_BACKWARD]


def test_shared_heads_and_windows_take_it_too(gpu):
    gpu()
    assert gradient(N=6) == [FORWARD, BACKWARD]
    assert gradient(window=40) == gradient(N=6, window=40, packed=True) == [MASKED_FORWARD, MASKED_BACKWARD]
    gpu((8, 0))
    assert gradient(N=6) == [FORWARD, BACKWARD]
    assert gradient(window=40) == []


def test_what_cudnn_can_not_do_is_written_out(gpu):
    gpu()
    for case in ({"dtype": jnp.float32}, {"T": 97}, {"T": 1}, {"T": 97, "packed": True}, {"H": 12}, {"H": 136}):
        assert gradient(**case) == [], case
    gpu((8, 0))  # A100, L4 and their like: the gradient takes no such mask
    assert gradient() == [FORWARD, BACKWARD]
    assert gradient(packed=True) == []
    for older in ((7, 5), (0, 0)):  # T4; AMD
        gpu(older)
        assert gradient() == gradient(packed=True) == []


def test_the_capability_is_read_off_the_device_that_is_here(monkeypatch):
    class Device:
        compute_capability = "8.9"

    assert jaxgpt.model.cudnn.compute_capability() > (12, 0)  # none is here
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    assert jaxgpt.model.cudnn.compute_capability() == (8, 9)
    Device.compute_capability = "gfx90a"
    assert jaxgpt.model.cudnn.compute_capability() == (0, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_training_step_on_one_gpu_has_one_kernel_forward_and_one_backward_for_each_block(gpu, packed):
    gpu()
    config = GPTConfig(
        n_layer=3, n_embd=32, n_head=4, n_inner=64, n_positions=24, vocab_size=96,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    mesh = make_mesh(devices=jax.devices()[:1])
    model, settings = abstract(config, dtype=jnp.bfloat16), Settings(freeze="first1", batch_size=4, dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        spec = make_step_spec(settings, mesh, model, steps=10, packed=packed)
        params = {name: jnp.zeros(p.shape, p.dtype) for name, p in spec.params.items()}
        state = PhaseCompiler(spec).init(params)
        step = make_train_step(spec.model, spec.optimizer(state.trainable, 0), spec.schedule, 0)
        rates = Rates(jnp.float32(1), {name: jnp.float32(1) for name in state.trainable})
        with jax.set_mesh(mesh):
            text = step.trace(state, spec.batch, rates).lower(lowering_platforms=("cuda",)).as_text()
    found = kernels(text)
    # of the frozen block only the forward pass is left
    assert found.count(MASKED_FORWARD if packed else FORWARD) == 3
    assert found.count(MASKED_BACKWARD if packed else BACKWARD) == 2


def test_decoding_over_a_cache_needs_no_kernel(gpu):
    gpu()
    config = GPTConfig(n_layer=2, n_embd=32, n_head=4, n_inner=64, n_positions=24, vocab_size=96)
    model = abstract(config, dtype=jnp.bfloat16)
    cache = jax.eval_shape(lambda: empty_cache(config, jnp.zeros(2, jnp.int32), 24, jnp.bfloat16))
    for T in (1, 8):
        step = lowered(lambda model, tokens, cache: model.step(tokens, cache), model, np.zeros((2, T), np.int32), cache)
        assert kernels(step) == []


MESHES = """
import jax, jax.numpy as jnp, numpy as np, re
import jax._src.cudnn.fused_attention_stablehlo as fused
import jaxgpt.model.attention, jaxgpt.model.cudnn
from jaxgpt.model.attention import attention
from jaxgpt.mesh import make_mesh
fused.check_cudnn_version = lambda: 91000
cpu, gpu = jaxgpt.model.attention.platform, lambda: "gpu"
kernel = jax.nn.dot_product_attention

def like_cudnn(*args, implementation, **flags):
    return kernel(*args, implementation="xla", **flags)

draw = np.random.default_rng(0)
q, k, v = (jnp.asarray(draw.normal(size=(8, 16, 4, 8)), jnp.bfloat16) for _ in range(3))
marks = jnp.asarray(np.repeat([[1, 2, 0]], 8, 0).repeat([5, 8, 3], 1), jnp.int32)
for text in ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2"):
    for segments in (None, marks):
        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, scale=0.3, segments=segments).astype(jnp.float32) ** 2)
        def both():
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))  # its own, to be traced anew
        jaxgpt.model.attention.platform = cpu
        expected = both()(q, k, v)
        jaxgpt.model.attention.platform = gpu
        with jax.set_mesh(make_mesh(text)):
            code = both().trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
            assert len(re.findall("__cudnn.fmha", code)) == 2, code
            assert "CustomSPMDPartitioning" not in code
            # each device's own rows and heads: BTNH with 8 rows over 8, or over 4 with 4 heads over 2
            shape = "2x16x2x8" if "tensor" in text else "1x16x4x8"
            assert re.search(rf"__cudnn.*tensor<{shape}xbf16>", code), code
            jax.nn.dot_product_attention = like_cudnn
            found = both()(q, k, v)
            jax.nn.dot_product_attention = kernel
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            a, b = (np.asarray(x, np.float32) for x in (a, b))
            assert np.abs(a - b).max() <= 0.03 * np.abs(a).max(), (text, segments is None)
    with jax.set_mesh(make_mesh("tensor=8")):  # 4 heads
        code = both().trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
        assert "__cudnn" not in code
print("same")
"""


def test_on_several_gpus_each_has_whole_rows_and_heads_and_the_numbers_are_the_same():
    done = forked.run(MESHES, XLA_FLAGS=forked.simulated(8))
    assert done.stdout.strip() == "same", done.stderr
