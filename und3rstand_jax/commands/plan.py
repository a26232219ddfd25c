"""`python -m train plan --topology v5e:2x4 [options of a run]`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from und3rstand_jax.commands.command_line import run_command
from und3rstand_jax.train.options import Flag, TrainOptions
from und3rstand_jax.train.plan.topology import Topology, parse_topology, prepare_environment


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Says what a training step takes on a device: memory by kind, the largest batch that fits, flops, bytes, an estimate of its time.

    Takes every option of python -m train beside its own (see its --help). The very step of that run is compiled for the device, which
    need not be there if it is a TPU; weights and data are not read. A full-size step compiles in one to three minutes.
    """

    topology: Annotated[str, tyro.conf.arg(metavar="v5e:2x4|cpu|gpu")]
    """A TPU slice, by generation (v4, v5e, v5p, v6e) and chips along each axis, or the devices that are here."""
    quick: Flag = False
    """Leave out the largest batch, whose search compiles up to three times more."""


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit status: 0, or 2 with one line on stderr."""
    from und3rstand_jax.commands.options import parse

    own, others = tyro.cli(PlanOptions, prog="python -m train plan", args=argv, return_unknown_args=True)
    training = parse(others, TrainOptions, "python -m train plan")
    return training if isinstance(training, int) else run_command(lambda: _run(own, training), training.debug)


def _run(own: PlanOptions, training: TrainOptions) -> None:
    topology = parse_topology(own.topology)
    prepare_environment(topology)
    print(_report(topology, training, own.quick))


def _report(topology: Topology, training: TrainOptions, quick: bool) -> str:
    # Imported here because it brings in JAX, which reads the environment when it is imported.
    from und3rstand_jax.train.plan.planning import make_plan
    from und3rstand_jax.train.plan.report import report

    return report(make_plan(training, topology, quick, lambda text: print(text, file=sys.stderr, flush=True)))
