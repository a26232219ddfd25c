"""Options of `python -m und3rstand_jax study`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.support.option_kinds import Flag, Several, Whole
from und3rstand_jax.support.option_values import Dtype


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Runs experiments on what a checkpoint's layers and heads do: one by name, or all.

    Writes NAME.json (every number, unrounded), NAME.csv and figures (PNG, SVG), with controls and standard errors over pairs, and one page,
    index.html. If interrupted, it continues when the same command is given again.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """layers, heads, knock-out, patching, lens, similarity, epipolar, inputs; or all."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; it appears complete or not at all."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: the pocket model of a clone)")] = ""
    """Checkpoint: a converted one, or any source of python -m convert."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: synthetic; repeatable)")] = ()
    """Data to take held-out pairs from, given as in training; it needs depth and cameras."""
    pairs: Whole = 64
    """Number of held-out pairs, or of sets of more views; all are held in memory."""
    views: Whole = 2
    """Views in a set: 2 for pairs; more, for the studies layers and lens only, needs a model that takes that many."""
    seed: Whole = 0
    """Seed of the scenes and of all random draws."""
    alignment: Literal["none", "scale", "median", "similarity"] = "scale"
    """How predicted points are aligned with the true ones before errors are measured."""
    batch_size: Whole = 16
    """Maximum number of pairs in one pass."""
    control_steps: Whole = 100
    """Training steps of the probes for the control of the study layers, on the model and on random weights; 0 for no control."""
    epipolar_steps: Whole = 300
    """Training steps of the probes of the study epipolar, on the model and on random weights."""
    epipolar_pairs: Whole = 1024
    """Training pairs of the study epipolar; the model runs once on each."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: the backbone's)")] = None
    """Size of all views in pixels, multiples of the patch size."""
    dtype: Dtype = "float32"
    """Data type of the backbone's computation."""
    workers: Whole = 2
    """Processes that read files."""
    overwrite: Flag = False
    """Replace earlier studies in --out. A folder with other files in it is refused."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print all studies as one JSON document on stdout in place of findings and tables."""
    debug: Flag = False
    """Show the traceback of an error."""
