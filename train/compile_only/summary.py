"""What `--compile-only` says, as text."""

from jaxgpt.params import count_params
from jaxgpt.train.compile_only.batch_limit import MemoryModel
from jaxgpt.train.compile_only.chips import GIB
from jaxgpt.train.compile_only.compile_step import Compiled
from jaxgpt.train.compile_only.step_time import (
    ASSUMED_COMPUTE_UTILISATION,
    ASSUMED_LINK_UTILISATION,
    ASSUMED_MEMORY_UTILISATION,
    StepTime,
    flops_of,
    traffic_of,
)
from jaxgpt.train.compile_only.topology import Topology
from jaxgpt.train.step.spec import StepSpec


def summarise(
    spec: StepSpec,
    topology: Topology,
    compiled: Compiled,
    step_time: StepTime | None,
    memory_model: MemoryModel | None,
    *,
    fits: bool,
) -> str:
    """All of it."""
    effort = ", with the least effort" * (spec.mesh.devices.flat[0].platform == "tpu")
    parts = [
        ("program", program_lines(spec)),
        ("slice", [topology_line(spec, topology)]),
        ("compiled", [f"in {compiled.seconds:.0f} s{effort}"]),
        ("memory", memory_lines(topology, compiled, fits)),
        ("FLOPs", flops_lines(spec)),
    ]
    if compiled.program:
        parts.append(("sent", collective_lines(spec, compiled)))
    if step_time:
        parts.append(("time", time_lines(spec, topology, step_time)))
    if memory_model and topology.usable_bytes:
        parts.append(("largest", batch_lines(topology, memory_model)))
    lines = []
    for title, said in parts:
        lines += [f"{title if i == 0 else '':<12}{line}" for i, line in enumerate(said)]
    return "\n".join(lines)


def program_lines(spec: StepSpec) -> list[str]:
    """The model, what trains, and a step."""
    config, settings, plan = spec.model.config, spec.settings, spec.plan
    trainable = spec.state(plan.phases[-1].start).trainable
    phases = f"; the last of {len(plan.phases)} phases" * (len(plan.phases) > 1)
    how = [settings.dtype, *["remat"] * settings.remat]
    how += [f"in {settings.accumulate} parts"] * (settings.accumulate > 1)
    how += [f"dropout {config.attn_pdrop:g}"] * (config.attn_pdrop > 0)
    return [
        f"{settings.model}: {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, vocabulary "
        f"{config.vocab_size:,}; {count_params(spec.params):,} parameters",
        f"--freeze={plan.text}: {count_params(trainable):,} train{phases}",
        f"{settings.batch_size:,} sequences of {spec.context:,} tokens a step, {', '.join(how)}",
    ]


def topology_line(spec: StepSpec, topology: Topology) -> str:
    """The devices and the mesh over them."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in spec.mesh.shape.items())
    cores = f" of {topology.chip.cores} devices each" if topology.chip and topology.chip.cores > 1 else ""
    return f"{topology.name}: {topology.n_chips:,} chip{'s' * (topology.n_chips > 1)}{cores}; mesh {mesh}"


def memory_lines(topology: Topology, compiled: Compiled, fits: bool) -> list[str]:
    """On each device."""
    limit = f" of {gib(topology.usable_bytes)} that a program is given" if topology.usable_bytes else ""
    if compiled.memory is None:
        return [f"does not fit: {compiled.refusal}"]
    m = compiled.memory
    return [
        f"{'fits' if fits else 'does not fit'}: at its peak it needs {gib(compiled.peak_bytes)}{limit}, on each device",
        f"arguments {gib(m.argument_size_in_bytes)}, temporaries {gib(m.temp_size_in_bytes)} (never all at once), code "
        f"{gib(m.generated_code_size_in_bytes)}, output {gib(m.output_size_in_bytes)}, of which "
        f"{gib(m.alias_size_in_bytes)} where the arguments were",
    ]


def flops_lines(spec: StepSpec) -> list[str]:
    """Of a step, over all chips."""
    found = flops_of(spec)
    again = (
        f"; {tera(found.hardware)} hardware: blocks computed again {tera(found.recomputed)}" if found.recomputed else ""
    )
    return [f"{tera(found.model)} model a step: forward {tera(found.forward)}, backward {tera(found.backward)}{again}"]


def collective_lines(spec: StepSpec, compiled: Compiled) -> list[str]:
    """By each device in a step."""
    assert compiled.program is not None
    found = traffic_of(spec, compiled.program)
    lines = [
        f"{kind:<20}{traffic.n_runs:>6,} x  {traffic.bytes_sent / 1e6:>10,.1f} MB"
        for kind, traffic in found.items()
        if traffic.n_runs
    ]
    return [
        *lines,
        f"{'in all':<29}{sum(t.bytes_sent for t in found.values()) / 1e6:>10,.1f} MB a step from each device",
    ]


def time_lines(spec: StepSpec, topology: Topology, step_time: StepTime) -> list[str]:
    """An estimate, and what it assumes."""
    tokens = spec.settings.batch_size * spec.context / step_time.seconds
    chip = topology.chip
    assert chip is not None
    mfu = flops_of(spec).model / topology.n_chips / chip.flops / step_time.seconds
    return [
        f"about {ms(step_time.seconds)} a step, {tokens:,.0f} tokens/s, {mfu:.0%} of the peak (MFU): an "
        f"estimate, bound by {step_time.bound}",
        f"compute {ms(step_time.compute_seconds)} at {ASSUMED_COMPUTE_UTILISATION:.0%} of {chip.flops / 1e12:,.0f} TFLOP/s; memory "
        f"{ms(step_time.memory_seconds)} at {ASSUMED_MEMORY_UTILISATION:.0%} of {chip.bandwidth / 1e9:,.0f} GB/s; interconnect "
        f"{ms(step_time.interconnect_seconds)} at {ASSUMED_LINK_UTILISATION:.0%} of {chip.links / 1e9:,.0f} GB/s; all at the same time",
    ]


def batch_lines(topology: Topology, memory_model: MemoryModel) -> list[str]:
    """The largest batch."""
    assert topology.usable_bytes is not None
    batch = memory_model.batch_limit(topology.usable_bytes)
    if not batch:
        return [
            f"batch: none fits; {memory_model.unit_rows} sequences, the least, need about {gib(memory_model.bytes_needed(memory_model.unit_rows))}"
        ]
    needs = gib(memory_model.bytes_needed(batch))
    return [f"batch: about {batch:,} sequences, with {needs}: an estimate from models of 1 and 2 blocks"]


def gib(n: float | None) -> str:
    """Bytes for a person."""
    return f"{(n or 0) / GIB:.2f} GiB"


def tera(n: float) -> str:
    """FLOPs for a person."""
    return f"{n / 1e12:,.2f} TFLOP"


def ms(seconds: float) -> str:
    """A time for a person, with two digits where it is short."""
    return f"{seconds * 1000:,.0f} ms" if seconds > 0.0995 else f"{seconds * 1000:.2g} ms"
