"""What --compile-only says: FLOPs against XLA's count, collectives whose bytes are known, slices that are not here."""

import json
import math
import os
import platform
import re
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import forked
import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, call, random_hf

import jaxgpt
from jaxgpt import make_mesh
from jaxgpt.convert.dialects.jaxgpt import JAXGPT
from jaxgpt.convert.layout import shape_of
from jaxgpt.convert.published import PUBLISHED, config_of_published
from jaxgpt.freeze.strategies import lora_of
from jaxgpt.loss import ROWS_AT_ONCE
from jaxgpt.model.gpt import abstract
from jaxgpt.training.compile_only import topology
from jaxgpt.training.compile_only.batch_limit import (
    fit_memory_model,
    n_differentiated_blocks,
    rows_of_shallow_models,
    with_blocks,
)
from jaxgpt.training.compile_only.chips import CHIPS, GIB, chip_of
from jaxgpt.training.compile_only.collectives import collectives, group_size
from jaxgpt.training.compile_only.command import compile_only as compile_only_here
from jaxgpt.training.compile_only.compile_step import compile_step
from jaxgpt.training.compile_only.flops import step_flops
from jaxgpt.training.compile_only.hlo import elements, parse, size_in_bytes
from jaxgpt.training.compile_only.step_time import bytes_per_device, trainable_shapes
from jaxgpt.training.settings import Settings
from jaxgpt.training.step.spec import StepSpec, make_step_spec

CONFIG = jaxgpt.GPTConfig(n_embd=256, n_layer=3, n_head=4, n_inner=1024, vocab_size=2048, n_positions=128)


def recipe_of(config=CONFIG, **flags) -> StepSpec:
    settings = Settings(**{"batch_size": 4, **flags})
    return make_step_spec(settings, make_mesh(), abstract(config, dtype=jnp.float32), steps=150, packed=False)


def sizes_of(config) -> dict[str, int]:
    return {row.ours: math.prod(shape_of(row.right, config.dims)) for row in JAXGPT.expand(config)}


# floating-point operations


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "remat"])
@pytest.mark.parametrize(
    ("freeze", "untied"),
    [
        ("full", False), ("full", True), ("first2", False), ("last1", False), ("head", False), ("head", True),
        ("embeddings", True), (r"regex:blocks\.1\.mlp\.fc1\.kernel", False),
        (r"regex:blocks\.1\.attn\.c_attn\.bias", False),
        (r"regex:blocks\.1\.ln_2\.scale", True), (r"regex:ln_f\.bias", False),
    ],
)  # fmt: skip
def test_flops_are_what_xla_counts_in_products(freeze, untied, remat, monkeypatch):
    """Its count of the program before it optimises it; the 1 % above ours is softmax, GELU, LayerNorm and AdamW."""
    monkeypatch.setattr("jaxgpt.model.gpt.fits_scan", lambda x, ctx: False)  # XLA counts the body of a loop once
    spec = recipe_of(replace(CONFIG, tie_word_embeddings=not untied), freeze=freeze, remat=remat)
    with jax.numpy_dtype_promotion("standard"):  # Optax is not strict
        theirs = spec.lower(spec.plan.phases[-1]).cost_analysis()["flops"]
    ours = step_flops(spec.model.config, trainable_shapes(spec), (4, 128), remat=remat)
    assert 1 < theirs / ours.hardware < 1.03
    assert ours.model == ours.hardware or remat


def test_flops_of_published_models_are_those_of_the_papers_formula():
    """6 N + 12 L D T for each token, where N are the parameters that multiply (PaLM, appendix B)."""
    for model in PUBLISHED:
        config, L, D, T = model.config, model.n_layer, model.n_embd, model.n_positions
        params = sizes_of(config)
        N = sum(size for name, size in params.items() if name.endswith("kernel") or name == "tok_emb.embedding")
        assert step_flops(config, params, (2, T)).model == 2 * T * (6 * N + 12 * L * D * T)


def test_published_shapes_have_the_parameters_that_are_published():
    counts = {
        "distilgpt2": 81_912_576, "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200, "openai-community/gpt2@main": 124_439_808, "microsoft/DialoGPT-small": 124_439_808,
    }  # fmt: skip
    assert {name: sum(sizes_of(config_of_published(name)).values()) for name in counts} == counts
    assert config_of_published("someone/gpt2") is None
    assert config_of_published("tiny") == replace(jaxgpt.convert.read("tiny").config, carried="")


# collectives

HLO = """
HloModule made_up, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %piece = bf16[16,8]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,8}
}

%part.1 (p: f32[2,8]) -> f32[8,8] {
  ROOT %all-gather.1 = f32[8,8]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}

%part.2 (p: f32[2,8]) -> f32[8,8] {
  ROOT %all-gather.2 = f32[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}

%below (s: (s32[], f32[10])) -> pred[] {
  %bound = s32[] constant(10)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %one = s32[] constant(1)
  %before = s32[] get-tuple-element(%s), index=0
  %copy = s32[] copy(%before)
  %between = s32[] add(%copy, %one)
  %after = s32[] add(%one, %between)
  %all-reduce.2 = (f32[10]{0}, f32[]) all-reduce(%x, %y), channel_id=4, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %both = (s32[], f32[10]) tuple(%after, %z)
}

ENTRY %main (p: f32[2,8]) -> f32[8,8] {
  %f1 = f32[8,8]{1,0} fusion(%p), kind=kOutput, calls=%part.1, backend_config={"x":"all-reduce("}
  %f2 = f32[8,8]{1,0} fusion(%f1), kind=kOutput, calls=%part.2
  %rs = bf16[16,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%r), replica_groups={}, dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %permute-start = (f32[6]{0}, f32[6]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%t), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %permute-done = f32[6]{0} collective-permute-done(%permute-start)
  %scatter = f32[5]{0} reduce-scatter(%u), channel_id=8, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %loop = (s32[], f32[10]) while(%s), condition=%below, body=%body
  %known = (s32[], f32[10]) while(%s), condition=%below, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[8,8]{1,0} copy(%f2)
}
"""  # noqa: E501


def test_collectives_are_found_in_all_their_forms():
    found = {kind: (t.n_runs, t.bytes_sent) for kind, t in collectives(parse(HLO), 8).items()}
    assert found == {
        "all-gather": (2, 8 * 8 * 4 * 3 // 4 + 32 * 4 * 7 // 8),  # one spread over two fusions, one that starts
        # two loops share a body, as calls of blocks that are alike do: one counts to 10 in steps of 1 + 1, one to 3
        "all-reduce": (5 + 3, (5 + 3) * (44 * 1 // 2 * 2)),
        "reduce-scatter": (2, 64 * 8 * 2 * 3 // 4 + 5 * 4 * 2 // 2),
        "all-to-all": (0, 0),
        "collective-permute": (1, 24),
    }


def test_groups_and_shapes_are_read_as_xla_writes_them():
    groups = {
        "replica_groups={{0,2},{1,3}}, x": 2, "replica_groups=[2,4]<=[4,2]T(1,0)": 4, "replica_groups={}": 16, "": 16,
        "replica_groups=mesh['a'=2,'b'=8] {'a','b'}": 16, "replica_groups=mesh['a'=2,'b'=8] {'b':(1)4}": 4,
    }  # fmt: skip
    assert {text: group_size(text, 16) for text in groups} == groups
    sizes = {"f32[2,3]{1,0}": 24, "bf16[7]": 14, "pred[]": 1, "s4[8]": 4, "f8e4m3fn[6]": 6, "(f32[2], s32[])": 12}
    assert {text: size_in_bytes(text) for text in sizes} == sizes
    assert elements("((f32[2]{0:T(8,128)}, s32[]), u8[1,2])") == ["(f32[2]{0:T(8,128)}, s32[])", " u8[1,2]"]


MESH_PROGRAMS = """
import json, jax, jax.numpy as jnp
from functools import partial
from jax.sharding import PartitionSpec as P, NamedSharding
from jaxgpt.training.compile_only.collectives import collectives
from jaxgpt.training.compile_only.hlo import parse

mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P("b")))

def scanned(x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(jax.lax.psum(c, "b")), None), x, length=6)[0]

programs = {
    "all-gather": lambda x: jax.lax.all_gather(x, "b", tiled=True),
    "all-reduce": lambda x: jax.lax.psum(x, ("a", "b")),
    "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
    "all-to-all": lambda x: jax.lax.all_to_all(x, "b", 1, 1, tiled=True),
    "collective-permute": lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
    "scanned": scanned,
}
for name, program in programs.items():
    run = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=P("b"), out_specs=P("b"), check_vma=False))
    found = collectives(parse(run.lower(x).compile().as_text()), 8)
    print(json.dumps([name, {k: [t.n_runs, t.bytes_sent] for k, t in found.items() if t.n_runs}]))
"""


def test_bytes_of_real_programs_of_eight_devices_are_those_known_by_hand():
    done = forked.run(MESH_PROGRAMS, XLA_FLAGS=forked.simulated(8))
    assert done.returncode == 0, done.stderr
    found = dict(map(json.loads, done.stdout.splitlines()))
    piece = 16 * 32 * 4  # bytes that each device holds
    assert found == {
        "all-gather": {"all-gather": [1, 3 * piece]},
        "all-reduce": {"all-reduce": [1, 2 * piece * 7 // 8]},
        "reduce-scatter": {"reduce-scatter": [1, piece * 3 // 4]},
        "all-to-all": {"all-to-all": [1, piece * 3 // 4]},
        "collective-permute": {"collective-permute": [1, piece]},
        "scanned": {"all-reduce": [6, 6 * 2 * piece * 3 // 4]},
    }


# chips


def test_every_chip_has_numbers_and_a_source():
    assert len({chip.name for chip in CHIPS}) == len(CHIPS)
    for chip in CHIPS:
        assert chip.source.startswith("https://")
        assert 1e14 < chip.flops < 1e16
        assert chip.usable_bytes <= chip.hbm < 2**38
        assert 1e11 < chip.bandwidth < 1e13
        assert 1e10 < chip.links < chip.bandwidth


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v4", "v4"),
        ("TPU7x", "tpu7x"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None), ("NVIDIA H100 PCIe", None), ("cpu", None),
    ],
)  # fmt: skip
def test_a_device_is_known_by_its_kind(kind, name):
    chip = chip_of(SimpleNamespace(device_kind=kind))
    assert (chip and chip.name) == name


# the largest batch


def test_the_largest_batch_follows_from_shallow_models():
    spec = recipe_of(replace(CONFIG, n_layer=7), freeze="first2", batch_size=8, accumulate=2)
    asked, (few, many) = [], rows_of_shallow_models(spec.context)
    assert few * spec.context >= 4 * ROWS_AT_ONCE

    def peak(shallow):
        n, B = shallow.model.config.n_layer, shallow.settings.batch_size
        asked.append((n, B))
        return bytes_per_device(shallow.state(0)) + 1000 + 200 * n + 30 * B + 4 * n * B

    memory_model = fit_memory_model(spec, peak)
    assert asked == [(3, 2 * few), (3, 2 * many), (4, 2 * few), (4, 2 * many)]
    beside_state = 1000 + 200 * 5 + 30 * 60 + 4 * 5 * 60
    assert memory_model.bytes_needed(60) == pytest.approx(bytes_per_device(spec.state(0)) + beside_state)
    assert memory_model.batch_limit(memory_model.bytes_needed(60)) == 60
    assert memory_model.batch_limit(memory_model.bytes_needed(60) - 1) == 58
    assert memory_model.batch_limit(0) == 0
    assert fit_memory_model(spec, lambda shallow: None) is None


@pytest.mark.parametrize(
    ("freeze", "blocks"), [("full", 3), ("first2", 1), ("last3", 3), ("embeddings", 3), ("gradual", 3)]
)
def test_a_shallow_model_trains_what_the_whole_one_does(freeze, blocks):
    spec = recipe_of(freeze=freeze)
    assert n_differentiated_blocks(spec) == blocks
    shallow = trainable_shapes(with_blocks(spec, 1, 8))
    whole = trainable_shapes(spec)
    assert {name for name in shallow if not name.startswith("blocks.")} == {
        name for name in whole if not name.startswith("blocks.")
    }
    assert {name.removeprefix("blocks.0.") for name in shallow} == {
        name.removeprefix("blocks.2.") for name in whole if not re.match(r"blocks\.[01]\.", name)
    }


@pytest.mark.parametrize(
    "freeze", ["lora", "lora+last1", "lora:dora,on=all", "lora+new-tokens", r"norms+lora:r=2,on=blocks\.0\..*"]
)
def test_a_shallow_model_has_the_adapters_of_its_blocks(freeze):
    config = replace(CONFIG, tie_word_embeddings=False, n_new_tokens=2 if "new" in freeze else 0)
    spec = recipe_of(replace(config, lora=lora_of(freeze, config)), freeze=freeze)
    shallow = set(trainable_shapes(with_blocks(spec, 1, 8)))
    below = {name for name in trainable_shapes(spec) if re.match(r"blocks\.[01]\.", name)}
    assert shallow == {name.replace("blocks.2.", "blocks.0.") for name in set(trainable_shapes(spec)) - below}


# the program


def test_a_topology_is_for_compiling_only():
    done = call("train", "--topology=v5e:2x2", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--compile-only" in done.stderr


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v9:2x2", "v5p:2x2", "h100:9", "h100", "../v5e:2x2", ""])
def test_an_unknown_topology_is_one_line_with_those_that_are_known(name):
    done = call("train", "--compile-only", f"--topology={name}", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "v5e:{1x1,2x2" in done.stderr


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    if find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    done = call("train", "--compile-only", "--topology=v5e:2x2", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'jaxgpt[tpu]'" in done.stderr


def test_without_the_plugin_of_cuda_too():
    if find_spec("jax_cuda12_plugin") is not None or find_spec("jax_cuda13_plugin") is not None:
        pytest.skip("it is installed")
    done = call("train", "--compile-only", "--topology=h100:2x8", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'jaxgpt[gpu]'" in done.stderr


def test_this_machines_own_devices_are_compiled_for_and_nothing_is_read_or_written(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(
        "train", "--compile-only", f"--model={small}", "--data=not-there.txt", "--freeze=first1", "--batch-size=8"
    )
    said = re.search(r"memory +fits: peak (\S+) GiB per device, of (\S+) GiB that this machine has\n", done.stdout)
    temporaries = re.search(r"temporaries (\S+) GiB, code", done.stdout)
    assert 0 < float(temporaries[1]) <= float(said[1]) < float(said[2]), done.stdout
    assert re.search(r"FLOPs +per step: model \d+\.\d+ TFLOP \(forward", done.stdout)
    assert "8 sequences of 32 tokens" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_step_that_needs_more_than_this_machine_has_does_not_fit(monkeypatch, capsys, small):
    settings = Settings(model=str(small), compile_only=True, batch_size=64)
    monkeypatch.setattr(topology, "machine_memory", lambda: 2**20)
    with jax.numpy_dtype_promotion("standard"):  # Optax is not strict
        assert compile_only_here(settings) == 1
    assert re.search(
        r"does not fit: peak \S+ GiB per device, of 0\.00 GiB that this machine has", capsys.readouterr().out
    )
    monkeypatch.setattr(topology, "machine_memory", lambda: None)
    with jax.numpy_dtype_promotion("standard"):
        assert compile_only_here(settings) == 0
    assert re.search(r"memory +peak \S+ GiB per device; .* is unknown", capsys.readouterr().out)


def test_the_memory_of_a_step_on_a_cpu_includes_its_temporaries():
    with jax.numpy_dtype_promotion("standard"):
        compiled = compile_step(recipe_of(batch_size=8))
    m = compiled.memory
    assert compiled.peak_bytes >= m.argument_size_in_bytes + m.temp_size_in_bytes > m.peak_memory_in_bytes


LIBTPU = os.environ.get("TPU_LIBRARY_PATH", ROOT / ".venv" / "tpu" / "libtpu" / "libtpu.so")


SLICES = """
import sys
import jaxgpt.loss
import jaxgpt.training.compile_only.batch_limit as batch_limit
import jaxgpt.training.compile_only.command as command
from jaxgpt.training.__main__ import main
# the shallow models are compiled once, and have few rows: for the batch that does not fit, in an odd context without a
# kernel, whose step takes no time to compile
jaxgpt.loss.ROWS_AT_ONCE = batch_limit.ROWS_AT_ONCE = 64
for flags in (["--batch-size=8"], ["--batch-size=4000000", "--freeze=head", "--context=127"]):
    command.fit_memory_model = batch_limit.fit_memory_model if "--context=127" in flags else lambda spec, peak: None
    sys.argv = ["train", "--compile-only", "--topology=v5e:2x2", f"--model={MODEL}", *flags]
    try:
        main()
    except SystemExit as ended:
        print("exit code", ended.code or 0)
"""


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """What is said of a batch that fits, and of one that does not."""
    if not os.path.exists(LIBTPU):
        assert (platform.system(), platform.machine()) != ("Linux", "x86_64"), "make test puts libtpu into .venv/tpu"
        pytest.skip("there is no libtpu for this machine")
    model = tmp_path_factory.mktemp("one")
    random_hf(n_embd=128, n_head=1, n_layer=1, n_inner=128, n_positions=128, vocab_size=128).save_pretrained(model)
    done = forked.run(f"MODEL = {str(model)!r}\n" + SLICES, TPU_LIBRARY_PATH=str(LIBTPU), XLA_FLAGS="")
    assert (done.returncode, done.stderr) == (0, "")
    return re.split(r"(?<=exit code \d)\n", done.stdout)


def test_a_slice_that_is_not_here_is_compiled_for(slices):
    said = slices[0]
    assert said.endswith("exit code 0")
    for line in (
        r"slice +v5e:2x2: 4 chips; mesh data=1, fsdp=4, tensor=1",
        r"memory +fits: peak 0\.\d\d GiB per device, of 15\.75 GiB that a program can use",
        r"sent +all-gather +\d+ x +\d+\.\d MB",
        r"time +about [\d.e-]+ ms a step, [\d,]+ tokens/s, .* an estimate, bound by \w+",
    ):
        assert re.search(line, said), said


def test_what_does_not_fit_is_an_answer_and_exit_code_1(slices):
    said = slices[1]
    assert said.endswith("exit code 1")
    assert re.search(r"memory +does not fit: .*exceed", said, re.I), said
    assert re.search(r"batch +about [1-9][\d,]+ sequences at most", said), said
    assert GIB == 2**30
