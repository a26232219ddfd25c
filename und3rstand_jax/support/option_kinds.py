"""Kinds of options that several commands share, as tyro reads them. Nothing here imports JAX, so that --help is quick."""

from typing import Annotated

import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
"""A switch that is off by default and has no `--no-` form."""

Several = tyro.conf.UseAppendAction[tuple[str, ...]]
"""An option that may be repeated."""

Whole = Annotated[int, tyro.conf.arg(metavar="N")]
"""A whole number."""

Real = Annotated[float, tyro.conf.arg(metavar="NUMBER")]
"""A number."""
