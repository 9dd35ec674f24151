"""What `--compile-only` says, as text."""

from jaxgpt.params import count_params
from jaxgpt.train.compile_only.batch_limit import MemoryModel
from jaxgpt.train.compile_only.chips import GIB
from jaxgpt.train.compile_only.compile_step import Compiled
from jaxgpt.train.compile_only.step_time import LINKS, MATRIX_UNITS, MEMORY, StepTime, flops_of, traffic_of
from jaxgpt.train.compile_only.topology import Topology
from jaxgpt.train.step.spec import StepSpec


def statement(
    spec: StepSpec, slice: Topology, compiled: Compiled, guess: StepTime | None, room: MemoryModel | None, *, fits: bool
) -> str:
    """All of it."""
    least = ", with the least effort" * (spec.mesh.devices.flat[0].platform == "tpu")
    parts = [
        ("program", program(spec)),
        ("slice", [where(spec, slice)]),
        ("compiled", [f"in {compiled.seconds:.0f} s{least}"]),
        ("memory", memory(slice, compiled, fits)),
        ("FLOPs", flops(spec)),
    ]
    if compiled.program:
        parts.append(("sent", collectives(spec, compiled)))
    if guess:
        parts.append(("time", time(spec, slice, guess)))
    if room and slice.usable:
        parts.append(("largest", largest(slice, room)))
    lines = []
    for title, said in parts:
        lines += [f"{title if i == 0 else '':<12}{line}" for i, line in enumerate(said)]
    return "\n".join(lines)


def program(spec: StepSpec) -> list[str]:
    """The model, what trains, and a step."""
    config, settings, plan = spec.model.config, spec.settings, spec.plan
    trains = spec.state(plan.phases[-1].start).trainable
    phases = f"; the last of {len(plan.phases)} phases" * (len(plan.phases) > 1)
    how = [settings.dtype, *["remat"] * settings.remat]
    how += [f"in {settings.accumulate} parts"] * (settings.accumulate > 1)
    how += [f"dropout {config.attn_pdrop:g}"] * (config.attn_pdrop > 0)
    return [
        f"{settings.model}: {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, vocabulary "
        f"{config.vocab_size:,}; {count_params(spec.params):,} parameters",
        f"--freeze={plan.text}: {count_params(trains):,} train{phases}",
        f"{settings.batch_size:,} sequences of {spec.context:,} tokens a step, {', '.join(how)}",
    ]


def where(spec: StepSpec, slice: Topology) -> str:
    """The devices and the mesh over them."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in spec.mesh.shape.items())
    cores = f" of {slice.chip.cores} devices each" if slice.chip and slice.chip.cores > 1 else ""
    return f"{slice.name}: {slice.n_chips:,} chip{'s' * (slice.n_chips > 1)}{cores}; mesh {mesh}"


def memory(slice: Topology, compiled: Compiled, fits: bool) -> list[str]:
    """On each device."""
    room = f" of {gib(slice.usable)} that a program is given" if slice.usable else ""
    if compiled.memory is None:
        return [f"does not fit: {compiled.refusal}"]
    m = compiled.memory
    return [
        f"{'fits' if fits else 'does not fit'}: at its peak it needs {gib(compiled.peak)}{room}, on each device",
        f"arguments {gib(m.argument_size_in_bytes)}, temporaries {gib(m.temp_size_in_bytes)} (never all at once), code "
        f"{gib(m.generated_code_size_in_bytes)}, output {gib(m.output_size_in_bytes)}, of which "
        f"{gib(m.alias_size_in_bytes)} where the arguments were",
    ]


def flops(spec: StepSpec) -> list[str]:
    """Of a step, over all chips."""
    found = flops_of(spec)
    again = f"; {tera(found.hardware)} hardware: blocks computed again {tera(found.again)}" if found.again else ""
    return [f"{tera(found.model)} model a step: forward {tera(found.forward)}, backward {tera(found.backward)}{again}"]


def collectives(spec: StepSpec, compiled: Compiled) -> list[str]:
    """By each device in a step."""
    assert compiled.program is not None
    found = traffic_of(spec, compiled.program)
    lines = [
        f"{kind:<20}{traffic.count:>6,} x  {traffic.bytes / 1e6:>10,.1f} MB"
        for kind, traffic in found.items()
        if traffic.count
    ]
    return [*lines, f"{'in all':<29}{sum(t.bytes for t in found.values()) / 1e6:>10,.1f} MB a step from each device"]


def time(spec: StepSpec, slice: Topology, guess: StepTime) -> list[str]:
    """An estimate, and what it assumes."""
    tokens = spec.settings.batch_size * spec.context / guess.seconds
    chip = slice.chip
    assert chip is not None
    mfu = flops_of(spec).model / slice.n_chips / chip.flops / guess.seconds
    return [
        f"about {ms(guess.seconds)} a step, {tokens:,.0f} tokens/s, {mfu:.0%} of the peak (MFU): an "
        f"estimate, bound by {guess.bound}",
        f"compute {ms(guess.compute)} at {MATRIX_UNITS:.0%} of {chip.flops / 1e12:,.0f} TFLOP/s; memory "
        f"{ms(guess.memory)} at {MEMORY:.0%} of {chip.bandwidth / 1e9:,.0f} GB/s; interconnect "
        f"{ms(guess.interconnect)} at {LINKS:.0%} of {chip.links / 1e9:,.0f} GB/s; all at the same time",
    ]


def largest(slice: Topology, room: MemoryModel) -> list[str]:
    """The largest batch."""
    assert slice.usable is not None
    batch = room.largest(slice.usable)
    if not batch:
        return [f"batch: none fits; {room.unit} sequences, the least, need about {gib(room.needs(room.unit))}"]
    needs = gib(room.needs(batch))
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
