"""One step on more and more chips that are not here: python benchmarks/scale.py [--topology v5e:2x2 v5e:4x4]

Compiles the training step for each slice, with as many sequences on each chip (weak scaling), and prints what a chip
holds and sends as a table in Markdown. Needs libtpu (pip install 'jaxgpt[tpu]'), and no TPU.
"""

import argparse
import os
from importlib.metadata import PackageNotFoundError, version

from jaxgpt.training.compile_only.chips import GIB
from jaxgpt.training.compile_only.collectives import KINDS
from jaxgpt.training.compile_only.command import make_spec_of_shapes
from jaxgpt.training.compile_only.compile_step import compile_step
from jaxgpt.training.compile_only.step_time import bytes_per_device, estimate_step_time, traffic_of
from jaxgpt.training.compile_only.topology import find_topology
from jaxgpt.training.settings import Settings

SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")


def main() -> None:
    """Print a row for each slice as soon as it is compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2", help="a checkpoint, or the name of a published model")
    parser.add_argument("--topology", nargs="+", default=SLICES, help="slices, as in v5e:4x4")
    parser.add_argument("--rows", type=int, default=8, help="sequences on each chip")
    parser.add_argument("--remat", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--mesh", help="as in python -m train; the default is the same")
    arguments = parser.parse_args()
    print("| chips | mesh | state | peak | temporaries | " + " | ".join(KINDS) + " | step, estimated | compiled in |")
    print("|---:|---|" + "---:|" * (len(KINDS) + 5))
    for name in arguments.topology:
        topology = find_topology(name)
        settings = Settings(
            model=arguments.model, topology=name, mesh=arguments.mesh, dtype="bfloat16", dropout=0.0,
            remat=arguments.remat, batch_size=arguments.rows * topology.n_chips,
        )  # fmt: skip
        spec = make_spec_of_shapes(settings, topology)
        compiled = compile_step(spec)
        mesh = " x ".join(str(size) for size in spec.mesh.shape.values())
        state = bytes_per_device(spec.state(spec.plan.phases[-1].start)) / GIB
        if compiled.program is None:
            print(f"| {topology.n_chips} | {mesh} | {state:.2f} GiB | {compiled.refusal} |", flush=True)
            continue
        sent = traffic_of(spec, compiled.program)
        columns = [
            str(topology.n_chips), mesh, f"{state:.2f} GiB", f"{compiled.peak_bytes / GIB:.2f} GiB",
            f"{compiled.memory.temp_size_in_bytes / GIB:.2f} GiB",
            *(f"{sent[kind].bytes_sent / 1e6:,.0f} MB" if sent[kind].n_runs else "" for kind in KINDS),
            f"{estimate_step_time(spec, topology, compiled.program).seconds * 1000:,.0f} ms",
            f"{compiled.seconds:.0f} s",
        ]  # fmt: skip
        print(f"| {' | '.join(columns)} |", flush=True)
    remat = ", remat" if arguments.remat else ""
    print(f"\n{arguments.model}, {arguments.rows} sequences of {spec.context} tokens on each chip, bfloat16{remat}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; jax {version('jax')}, libtpu {libtpu()}")


def libtpu() -> str:
    """Return the version of libtpu, or its path where TPU_LIBRARY_PATH names one that is not installed."""
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return os.environ.get("TPU_LIBRARY_PATH", "unknown")


if __name__ == "__main__":
    main()
