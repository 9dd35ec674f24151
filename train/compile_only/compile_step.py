"""Compilation of a training step, to inspect it."""

import time
from dataclasses import dataclass
from typing import Any

import jax

from jaxgpt.convert.errors import InputError
from jaxgpt.training.compile_only.hlo import HloModule, parse
from jaxgpt.training.step.spec import StepSpec

LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
"""Options of XLA's TPU compiler. It then compiles the step of gpt2 in a sixth of the time, with 6 % more memory on
v5e:2x2 and the same collectives; it leaves out optimisations of speed."""


@dataclass(frozen=True)
class Compiled:
    """A compiled step, or the compiler's reason why it does not fit."""

    seconds: float
    """Time of the compilation."""
    memory: Any | None
    """JAX's `CompiledMemoryStats`, for one device; None where the step does not fit."""
    refusal: str | None
    """Why the step does not fit, in the compiler's words."""
    program: HloModule | None
    is_for_cpu: bool = False

    @property
    def peak_bytes(self) -> int | None:
        """Peak bytes in use on a device; None where the step does not fit.

        XLA's CPU backend leaves its temporaries out of the peak that it reports (jaxlib 0.10). It allocates all of them
        at once, so that its peak is the sum of the buffers.
        """
        if (m := self.memory) is None:
            return None
        if not self.is_for_cpu:
            return m.peak_memory_in_bytes
        new_output = m.output_size_in_bytes - m.alias_size_in_bytes
        return m.argument_size_in_bytes + m.temp_size_in_bytes + new_output


def compile_step(spec: StepSpec) -> Compiled:
    """Compile the step of the last phase.

    Raises:
        InputError: the compiler refuses the step for a reason other than memory.
    """
    began = time.perf_counter()
    lowered = spec.lower(spec.plan.phases[-1])
    platform = spec.mesh.devices.flat[0].platform
    options: Any = LEAST_EFFORT if platform == "tpu" else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise InputError(f"the compiler refuses the step: {str(error).splitlines()[0]}") from None
        refusal = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        return Compiled(time.perf_counter() - began, None, refusal, None)
    seconds = time.perf_counter() - began
    return Compiled(seconds, compiled.memory_analysis(), None, parse(compiled.as_text() or ""), platform == "cpu")
