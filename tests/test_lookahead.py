"""Devices never wait for the host: what the loop asks of them, in which order."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import call

import jaxgpt.training.loop
import jaxgpt.training.step.phases

STEPS = 9


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, int]]:
    """`("batch", k)`: the batch of step k is on its way to the devices; `("step", k)`: step k was dispatched;
    `("value", k)`: the host waited for a number that step k computes; `("compile", i)`: the program of a phase began.
    """
    found, made = [], {"batch": 0, "step": 0}
    of_step: dict[int, int] = {}
    array = type(jnp.zeros(()))
    batches, value = jaxgpt.training.loop.device_train_batches, array._value
    compile_program = jaxgpt.training.step.phases.PhaseCompiler._compile

    def counted(name: str) -> int:
        made[name] += 1
        found.append((name, made[name]))
        return made[name]

    def watched_batches(*args, **how):
        for batch in batches(*args, **how):
            counted("batch")
            yield batch

    def watched_compile(self, index):
        found.append(("compile", index))
        program = compile_program(self, index)

        def step(state, batch, rates):
            out = program.step(state, batch, rates)
            k = counted("step")
            of_step.update((id(leaf), k) for leaf in jax.tree.leaves(out))
            kept.append(out)  # so that no later array has the same id
            return out

        return dataclasses.replace(program, step=step)

    def watched_value(self):
        if id(self) in of_step:
            found.append(("value", of_step[id(self)]))
        return value.fget(self)

    kept: list = []
    monkeypatch.setattr(jaxgpt.training.loop, "device_train_batches", watched_batches)
    monkeypatch.setattr(jaxgpt.training.step.phases.PhaseCompiler, "_compile", watched_compile)
    monkeypatch.setattr(array, "_value", property(watched_value))
    return found


@pytest.fixture
def run(small, tmp_path):
    def start(*flags: str) -> None:
        call(
            "train", f"--model={small}", f"--out={tmp_path}/r", f"--steps={STEPS}", "--batch-size=8",
            "--log-every=1", f"--eval-every={STEPS}", f"--checkpoint-every={STEPS}", *flags,
        )  # fmt: skip

    return start


GRADUAL = "--freeze=gradual:head@0,last1@3,full@6"

IN_TURN = [(name, k) for k in range(1, STEPS + 1) for name in ("batch", "step")]
"""Batches and steps of a run, each once."""


def test_the_device_has_its_next_step_and_batch_before_the_host_waits_for_a_number(events, run):
    run("--freeze=first1")
    assert [event for event in events if event[0] in ("batch", "step")] == IN_TURN
    first = {event: i for i, event in reversed(list(enumerate(events)))}
    for k in range(1, STEPS):
        # the batch right after the step, whatever is waited for next
        assert events[first["step", k] + 1] == ("batch", k + 1)
        assert k == STEPS - 1 or first["step", k + 1] < first["value", k]
    assert ("value", STEPS) in first


def test_phases_that_begin_leave_out_no_batch_and_take_none_twice(events, run):
    run(GRADUAL)
    assert [event for event in events if event[0] in ("batch", "step")] == IN_TURN
    # on a CPU a program is compiled while the one before it runs
    assert events.index(("compile", 2)) > events.index(("step", 3))


@pytest.mark.parametrize("where", ["gpu", "tpu"])
def test_for_an_accelerator_all_phases_are_compiled_at_once(where, events, run, monkeypatch):
    monkeypatch.setattr(jaxgpt.training.step.phases, "platform", lambda: where)
    monkeypatch.setattr(jaxgpt.training.step.phases.os, "cpu_count", lambda: 6)
    run(GRADUAL)
    assert [event for event in events if event[0] in ("batch", "step")] == IN_TURN
    assert sorted(event for event in events if event[0] == "compile") == [("compile", i) for i in range(3)]
    assert events.index(("compile", 2)) < events.index(("step", 1))
