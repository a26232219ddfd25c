"""`python -m train plan`: what a training step takes on a device, whether or not this machine has it."""

import dataclasses
from typing import Annotated

import tyro

from und3rstand_jax.commands.streams import show, show_json
from und3rstand_jax.support.option_kinds import Flag
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.plan.topology import parse_topology, prepare_environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(TrainOptions):
    """Plans a training step for a device: memory by kind, the largest batch that fits, flops, bytes, and an estimate of its time.

    Takes every option of python -m train besides its own. The step of exactly that run is compiled for the device; no TPU is needed to plan
    for one. Weights and data are not read. A full-size step compiles in one to three minutes.
    """

    topology: Annotated[str, tyro.conf.arg(metavar="v5e:2x4|cpu|gpu")]
    """TPU slice to plan for, as its generation (v4, v5e, v5p, v6e) and the chips along each axis; or this machine's devices (cpu, gpu)."""
    quick: Flag = False
    """Skip the search for the largest batch, which compiles up to three more times."""


def plan(options: PlanOptions) -> None:
    """Plans the step of a run and prints the plan.

    Raises:
        UserError: there is no such topology or no compiler for it, or an option cannot be satisfied.
    """
    topology = parse_topology(options.topology)
    prepare_environment(topology)
    # Imported here because they bring in JAX, which reads the environment when it is imported.
    from und3rstand_jax.train.plan.planning import make_plan
    from und3rstand_jax.train.plan.text import plan_json, plan_text

    made = make_plan(options, topology, options.quick)
    if options.json:
        show_json(plan_json(made))
    else:
        show(plan_text(made))
