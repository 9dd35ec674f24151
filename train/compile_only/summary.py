"""The text that `--compile-only` prints."""

from jaxgpt.params import count_params
from jaxgpt.training.compile_only.batch_limit import MemoryModel
from jaxgpt.training.compile_only.chips import GIB
from jaxgpt.training.compile_only.compile_step import Compiled
from jaxgpt.training.compile_only.step_time import (
    ASSUMED_COMPUTE_UTILISATION,
    ASSUMED_LINK_UTILISATION,
    ASSUMED_MEMORY_UTILISATION,
    StepTime,
    flops_of,
    traffic_of,
)
from jaxgpt.training.compile_only.topology import Topology
from jaxgpt.training.step.spec import StepSpec


def summarise(
    spec: StepSpec,
    topology: Topology,
    compiled: Compiled,
    step_time: StepTime | None,
    memory_model: MemoryModel | None,
) -> str:
    """Describe the compiled step, a titled paragraph for each subject."""
    is_for_tpu = spec.mesh.devices.flat[0].platform == "tpu"
    effort = ", with XLA's least optimisation effort" if is_for_tpu else ""
    parts = [
        ("program", program_lines(spec)),
        ("slice", [topology_line(spec, topology)]),
        ("compiled", [f"in {compiled.seconds:.0f} s{effort}"]),
        ("memory", memory_lines(topology, compiled)),
        ("FLOPs", flops_lines(spec)),
    ]
    if compiled.program:
        parts.append(("sent", collective_lines(spec, compiled)))
    if step_time:
        parts.append(("time", time_lines(spec, topology, step_time)))
    if memory_model and topology.usable_bytes:
        parts.append(("batch", batch_lines(topology.usable_bytes, memory_model)))
    lines = []
    for title, paragraph in parts:
        lines += [f"{title if i == 0 else '':<12}{line}" for i, line in enumerate(paragraph)]
    return "\n".join(lines)


def program_lines(spec: StepSpec) -> list[str]:
    """Describe the model, what trains, and the batch."""
    config, settings, plan = spec.model.config, spec.settings, spec.plan
    n_trainable = count_params(spec.state(plan.phases[-1].start).trainable)
    trains = f"--freeze={plan.text}: {n_trainable:,} parameters train"
    if len(plan.phases) > 1:
        trains = (
            f"--freeze={plan.text} has {len(plan.phases)} phases; the lines below are for the last one, in which "
            f"{n_trainable:,} parameters train"
        )
    options: list[str] = [settings.dtype or "float32"]
    if settings.remat:
        options.append("remat")
    if settings.accumulate > 1:
        options.append(f"in {settings.accumulate} micro-batches")
    if config.attn_pdrop > 0:
        options.append(f"dropout {config.attn_pdrop:g}")
    return [
        f"{settings.model}: {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, vocabulary "
        f"{config.vocab_size:,}; {count_params(spec.params):,} parameters",
        trains,
        f"{settings.batch_size:,} sequences of {spec.context:,} tokens a step, {', '.join(options)}",
    ]


def topology_line(spec: StepSpec, topology: Topology) -> str:
    """Describe the devices and the mesh over them."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in spec.mesh.shape.items())
    chips = "1 chip" if topology.n_chips == 1 else f"{topology.n_chips:,} chips"
    cores = f" of {topology.chip.cores} devices each" if topology.chip and topology.chip.cores > 1 else ""
    return f"{topology.name}: {chips}{cores}; mesh {mesh}"


def memory_lines(topology: Topology, compiled: Compiled) -> list[str]:
    """Describe the memory of a step on each device."""
    if compiled.memory is None:
        return [f"does not fit: {compiled.refusal}"]
    m = compiled.memory
    needed = f"peak {gib(compiled.peak_bytes)} per device"
    overlap = "; these are not all in use at the same moment, so that the peak is less than their sum"
    owner = "a program can use"
    if topology.is_cpu:
        overlap, owner = "", "this machine has" + (" for each" if len(topology.devices) > 1 else "")
    if (fits := does_fit(topology, compiled)) is None:
        verdict = f"{needed}; how much a device has is unknown"
    else:
        verdict = f"{'fits' if fits else 'does not fit'}: {needed}, of {gib(topology.usable_bytes)} that {owner}"
    return [
        verdict,
        f"arguments {gib(m.argument_size_in_bytes)}, temporaries {gib(m.temp_size_in_bytes)}, code "
        f"{gib(m.generated_code_size_in_bytes)}, output {gib(m.output_size_in_bytes)} ("
        f"{gib(m.alias_size_in_bytes)} of it reuse the memory of the arguments){overlap}",
    ]


def does_fit(topology: Topology, compiled: Compiled) -> bool | None:
    """Compare the peak with the memory of a device; return None where that is unknown."""
    if compiled.peak_bytes is None:
        return False
    return None if topology.usable_bytes is None else compiled.peak_bytes <= topology.usable_bytes


def flops_lines(spec: StepSpec) -> list[str]:
    """Describe the FLOPs of a step, over all chips."""
    found = flops_of(spec)
    line = f"per step: model {tera(found.model)} TFLOP (forward {tera(found.forward)}, backward {tera(found.backward)})"
    if found.recomputed:
        line += f"; hardware {tera(found.hardware)} TFLOP: {tera(found.recomputed)} more, to recompute blocks"
    return [line]


def collective_lines(spec: StepSpec, compiled: Compiled) -> list[str]:
    """Describe what each device sends in a step."""
    assert compiled.program is not None
    found = traffic_of(spec, compiled.program)
    lines = [
        f"{kind:<20}{traffic.n_runs:>6,} x  {traffic.bytes_sent / 1e6:>10,.1f} MB"
        for kind, traffic in found.items()
        if traffic.n_runs
    ]
    if not lines:
        return ["nothing"]
    total = sum(traffic.bytes_sent for traffic in found.values())
    return [*lines, f"{'in all':<29}{total / 1e6:>10,.1f} MB a step from each device"]


def time_lines(spec: StepSpec, topology: Topology, step_time: StepTime) -> list[str]:
    """Describe the estimated time of a step and its assumptions."""
    tokens_per_s = spec.settings.batch_size * spec.context / step_time.seconds
    chip = topology.chip
    assert chip is not None
    mfu = flops_of(spec).model / topology.n_chips / chip.flops / step_time.seconds
    parts = (
        ("compute", step_time.compute_seconds, ASSUMED_COMPUTE_UTILISATION, f"{chip.flops / 1e12:,.0f} TFLOP/s"),
        ("memory", step_time.memory_seconds, ASSUMED_MEMORY_UTILISATION, f"{chip.bandwidth / 1e9:,.0f} GB/s"),
        ("interconnect", step_time.interconnect_seconds, ASSUMED_LINK_UTILISATION, f"{chip.links / 1e9:,.0f} GB/s"),
    )
    return [
        f"about {ms(step_time.seconds)} a step, {tokens_per_s:,.0f} tokens/s, {mfu:.0%} of the peak (MFU): an "
        f"estimate, bound by {step_time.bound}",
        "; ".join(f"{name} {ms(seconds)} at {used:.0%} of {peak}" for name, seconds, used, peak in parts)
        + "; all at the same time",
    ]


def batch_lines(usable_bytes: float, memory_model: MemoryModel) -> list[str]:
    """Describe the largest batch that fits."""
    batch = memory_model.batch_limit(usable_bytes)
    if not batch:
        least = memory_model.unit_rows
        return [f"none fits; the smallest, {least} sequences, needs about {gib(memory_model.bytes_needed(least))}"]
    needed = gib(memory_model.bytes_needed(batch))
    return [
        f"about {batch:,} sequences at most, with {needed}: extrapolated from this model cut down to 3 and to 4 blocks"
    ]


def gib(n_bytes: float | None) -> str:
    """Format bytes as GiB."""
    return f"{(n_bytes or 0) / GIB:.2f} GiB"


def tera(flops: float) -> str:
    """Format FLOPs in TFLOP."""
    return f"{flops / 1e12:,.2f}"


def ms(seconds: float) -> str:
    """Format seconds as milliseconds, with two digits if they are few."""
    return f"{seconds * 1000:,.0f} ms" if seconds > 0.0995 else f"{seconds * 1000:.2g} ms"
