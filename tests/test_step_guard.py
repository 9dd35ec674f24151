"""What a training step holds, against a committed table: no clock is read, so that it can't flake.

`python -m pytest tests/test_step_guard.py --step-guard` writes the table anew, for a change that is meant: read the
difference before it is committed.
"""

import json
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import call
from runs import QUICK

import jaxgpt.model.attention
import jaxgpt.model.cudnn
from jaxgpt import GPTConfig
from jaxgpt.freeze.strategies import with_lora
from jaxgpt.loss import next_token_loss
from jaxgpt.mesh import make_mesh
from jaxgpt.model.cache import empty_cache
from jaxgpt.model.gpt import GPT, abstract
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import make_step_spec
from jaxgpt.training.step.step import Rates, make_train_step

TABLE = Path(__file__).parent / "step_guard.json"

SMALL = {"vocab_size": 4099, "n_positions": 256, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_inner": 512}
LLAMA = {
    "split_qkv": True, "n_kv_head": 2, "gated_mlp": True, "norm": "rms", "positions": "rotary", "bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
CASES = {
    "gpt2 full": ({}, "full"),
    "gpt2 first2": ({}, "first2"),
    "gpt2 head": ({}, "head"),
    "gpt2 lora": ({}, "lora"),
    "llama full": (LLAMA, "full"),
    "llama last1": (LLAMA, "last1"),
}
B, T = 16, 256


def lower(case: str, platform: str | None = None):
    """Lower the step of a case, for this machine's CPU or for a GPU that need not be there."""
    fields, strategy = CASES[case]
    config = with_lora(strategy, GPTConfig(**SMALL, **fields))
    dtype = "float32" if platform is None else "bfloat16"
    settings = Settings(freeze=strategy, batch_size=B, dtype=dtype)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        spec = make_step_spec(settings, mesh, abstract(config, dtype=jnp.dtype(dtype)), steps=10, packed=False)
        return spec.lower(spec.plan.phases[-1]) if platform is None else lowered_for(platform, spec)


def lowered_for(platform: str, spec) -> str:
    """Return the text of the step for another platform."""
    state = spec.state(0)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    step = make_train_step(spec.model, spec.optimizer(state.trainable, 0), spec.schedule, 0, None, spec.objective, None)
    with jax.set_mesh(spec.mesh):
        traced = step.trace(state, spec.batch, Rates(rate, dict.fromkeys(state.trainable, rate)))
        return traced.lower(lowering_platforms=(platform,)).as_text()


def measured(case: str) -> dict[str, int]:
    """Count what the compiled step of a case needs on a CPU."""
    compiled = lower(case).compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    return {
        "flops": int(compiled.cost_analysis()["flops"]),
        "temporary bytes": memory.temp_size_in_bytes,
        "argument bytes": memory.argument_size_in_bytes,
        "aliased bytes": memory.alias_size_in_bytes,
        "products": len(re.findall(r" = \S+ dot\(|__onednn\$matmul|__eigen_matmul", text)),
        "host transfers": len(re.findall(r"infeed|outfeed|send\(|recv\(|callback", text)),
    }


def planned(case: str, monkeypatch) -> dict[str, int]:
    """Count what the step of a case asks of a GPU: kernels of attention, products by dtype, and its largest floats."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jaxgpt.model.attention, "platform", lambda: "gpu")
    for module in (
        "mesh", "loss", "model.norm", "model.gpt", "training.step.step", "training.step.optimizer",
    ):  # fmt: skip
        monkeypatch.setattr(f"jaxgpt.{module}.platform", lambda: "gpu")
    for module in ("cudnn", "norm"):
        monkeypatch.setattr(f"jaxgpt.model.{module}.compute_capability", lambda: (9, 0))
    text = lower(case, "cuda")
    bodies = re.split(r"\n  func\.func ", text)
    calls = Counter(re.findall(r"call @(\w+)", text))
    found: Counter[str] = Counter()
    for body in bodies[1:]:
        name = re.search(r"@(\w+)", body)[1]
        times = calls.get(name, 1)
        found["products"] += times * body.count("stablehlo.dot_general")
        found["attention kernels"] += times * len(re.findall(r"__cudnn\$\w+", body))
        found["kernels of norms"] += times * body.count("gpu$xla.gpu.triton")
        for rows, columns in re.findall(r"tensor<(?:\d+x)*?(\d+)x(\d+)xf32>", body):
            if int(columns) >= SMALL["vocab_size"]:
                found["rows of float32 logits"] = max(found["rows of float32 logits"], int(rows))
        odd = [n for n in re.findall(r"dot_general.*?-> tensor<(?:\d+x)*?(\d+)x(?:bf16|f32)>", body) if int(n) % 2]
        found["products of odd width"] += times * len(odd)
    return dict(found)


@pytest.fixture
def table() -> dict[str, dict[str, int]]:
    return json.loads(TABLE.read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_cpu_holds_what_the_table_says(case, table):
    expected, found = table[f"cpu, {case}"], measured(case)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        room = 0.02 if name == "temporary bytes" else 0.001  # padding between buffers moves a little
        assert abs(value - expected[name]) <= room * expected[name], (name, value, expected[name])


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_gpu_asks_for_what_the_table_says(case, table, monkeypatch):
    assert planned(case, monkeypatch) == table[f"gpu, {case}"]


def test_a_run_compiles_one_program_for_each_thing_that_it_does(small, tmp_path):
    """One step for each phase, one evaluation, and a prompt and its continuation: no step is compiled twice."""
    compiled: Counter[str] = Counter()

    def count(event, seconds, fun_name="", **_):
        if event.endswith("/backend_compile_duration"):
            compiled[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        call("train", f"--model={small}", f"--out={tmp_path}/run", "--freeze=gradual:last1@0,full@3", *QUICK)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    times = {name: compiled[f"jit({name})"] for name in ("train_step", "thaw", "eval_step", "prefill", "decode")}
    assert times | {"prefill": 1, "decode": 1} == {
        "train_step": 2, "thaw": 1, "eval_step": 1, "prefill": 1, "decode": 1,
    }  # fmt: skip
    assert max(times["prefill"], times["decode"]) <= 1  # or none, where a run before it wrote with such a model


@pytest.mark.parametrize(("where", "is_shared"), [("cpu", True), ("gpu", True), ("tpu", False)])
def test_blocks_are_one_function_but_on_a_tpu(where, is_shared, monkeypatch):
    monkeypatch.setattr("jaxgpt.model.gpt.platform", lambda: where)
    monkeypatch.setattr("jaxgpt.model.gpt.is_for_one_cpu", lambda: False)
    model = abstract(GPTConfig(**SMALL))
    text = jax.jit(lambda model, tokens: model(tokens)).lower(model, jnp.zeros((1, 8), jnp.int32)).as_text()
    assert ("call @run_block" in text) == is_shared


@pytest.mark.parametrize("n_layer", [2, 5])
def test_on_a_cpu_the_program_calls_a_block_and_its_gradient_and_nothing_else(n_layer):
    """What a block itself calls is inlined: XLA ends the process where such a call lies within a fusion."""
    model = abstract(GPTConfig(**SMALL | {"n_layer": n_layer}))
    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)

    def loss(params, model, tokens):
        return next_token_loss(jaxgpt.with_params(model, params), tokens).mean()

    lowered = jax.jit(jax.grad(loss)).lower(jaxgpt.named_params(model), model, tokens)
    calls = [line for line in lowered.compile().as_text().splitlines() if " call(" in line]
    assert sum("to_apply=%run_whole" in line for line in calls) == 2 * n_layer
    assert all("to_apply=%run_whole" in line or "xla_cpu_small_call" in line for line in calls)  # of XLA's own
    cache = empty_cache(model.config, jnp.zeros(1, jnp.int32), 16)
    step = jax.jit(GPT.step).lower(model, jax.ShapeDtypeStruct((1, 4), jnp.int32), cache)
    assert " call(" not in step.compile().as_text()  # or the cache would be copied for each block


def test_the_table_is_written_if_asked(request, monkeypatch):
    if request.config.getoption("--step-guard"):
        found = {f"cpu, {case}": measured(case) for case in CASES}
        found |= {f"gpu, {case}": planned(case, monkeypatch) for case in CASES}
        TABLE.write_text(json.dumps(found, indent=2) + "\n")
    assert json.loads(TABLE.read_text()).keys() == {f"{where}, {case}" for where in ("cpu", "gpu") for case in CASES}
