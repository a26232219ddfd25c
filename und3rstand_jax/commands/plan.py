"""`python -m train plan`: what a training step takes on a device, whether or not this machine has it."""

import dataclasses
from typing import Annotated

import tyro

from und3rstand_jax.commands.streams import show
from und3rstand_jax.train.options import Flag, TrainOptions
from und3rstand_jax.train.plan.topology import parse_topology, prepare_environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(TrainOptions):
    """Plan a training step for a device: memory by kind, largest batch that fits, flops, bytes, and an estimate of its time.

    Takes every option of python -m train in addition to its own. The step of exactly that run is compiled for the device; for a TPU,
    no TPU is needed. Weights and data are not read. A full-size step compiles in one to three minutes.
    """

    topology: Annotated[str, tyro.conf.arg(metavar="v5e:2x4|cpu|gpu")]
    """TPU slice to plan for, by generation (v4, v5e, v5p, v6e) and chips along each axis, or the devices of this machine (cpu, gpu)."""
    quick: Flag = False
    """Skip the search for the largest batch, which compiles up to three more times."""


def plan(options: PlanOptions) -> None:
    """Plans the step of a run and prints the plan.

    Raises:
        UserError: there is no such topology or no compiler for it, or the run's options cannot be met.
    """
    topology = parse_topology(options.topology)
    prepare_environment(topology)
    # Imported here because they bring in JAX, which reads the environment when it is imported.
    from und3rstand_jax.train.plan.planning import make_plan
    from und3rstand_jax.train.plan.text import plan_text

    show(plan_text(make_plan(options, topology, options.quick)))
