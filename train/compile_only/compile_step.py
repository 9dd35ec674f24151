"""A training step, compiled to be looked at."""

import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from jaxgpt.convert.errors import InputError
from jaxgpt.train.compile_only.hlo import HloModule, parse
from jaxgpt.train.step.spec import StepSpec

LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
"""Of XLA's TPU compiler. The step of gpt2 then takes it a sixth of the time, needs 6 % more memory on v5e:2x2, and has
the same collectives; what it does not do is what would make the step fast."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step."""

    seconds: float
    memory: Any | None
    """JAX's `CompiledMemoryStats`, of one device; None where the step does not fit."""
    refusal: str | None
    """Why it does not fit, in the compiler's words."""
    program: HloModule | None

    @property
    def peak_bytes(self) -> int | None:
        """Bytes in use on a device at the worst moment."""
        return self.memory and self.memory.peak_memory_in_bytes


def compile_step(spec: StepSpec) -> Compiled:
    """Compiles the step of the last phase.

    Raises:
        InputError: the compiler refuses it for another reason than its memory.
    """
    began, lowered = time.perf_counter(), spec.lower(spec.plan.phases[-1])
    options: Any = LEAST_EFFORT if spec.mesh.devices.flat[0].platform == "tpu" else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise InputError(f"the compiler refuses the step: {str(error).splitlines()[0]}") from None
        seconds = time.perf_counter() - began
        return Compiled(seconds, None, re.sub(r"^RESOURCE_EXHAUSTED: ", "", str(error).splitlines()[0]), None)
    seconds = time.perf_counter() - began
    return Compiled(seconds, compiled.memory_analysis(), None, parse(compiled.as_text() or ""))
