"""Options of `python -m und3rstand_jax study`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.support.option_values import Dtype

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Several = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Runs experiments on what a checkpoint's layers and heads do: one by name, or all.

    Writes NAME.json (every number, unrounded), NAME.csv and figures (PNG, SVG), with controls
    and standard errors over pairs, and a page, index.html.
    If interrupted, give the same command again to continue.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """layers, heads, knock-out, patching, lens, similarity, epipolar, inputs; or all."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Checkpoint: a converted one, or any source of python -m convert."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; it appears complete or not at all."""
    data: Annotated[Several, tyro.conf.arg(metavar="[WEIGHT*]SOURCE", help_behavior_hint="(default: synthetic; repeatable)")] = ()
    """Data to take held-out pairs from, as in training; with depth and cameras."""
    pairs: int = 64
    """Number of held-out pairs, or of sets of more views; all are held in memory."""
    views: int = 2
    """Views in a set: 2 studies pairs; more, for layers and lens, needs a model that takes as many."""
    seed: int = 0
    """Seed of the scenes and of everything that is drawn."""
    alignment: Literal["none", "scale", "median", "similarity"] = "scale"
    """How predicted points are aligned with the true ones before errors are measured."""
    batch_size: int = 16
    """Most pairs in one pass."""
    control_steps: int = 100
    """Training steps of the probes in layers' control, on the model and on random weights; 0 for no control."""
    epipolar_steps: int = 300
    """Training steps of epipolar's probes, on the model and on random weights."""
    epipolar_pairs: int = 1024
    """Training pairs of epipolar, through which the model runs once."""
    resolution: Annotated[str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="(default: the backbone's)")] = None
    """Size of all views in pixels, multiples of the patch size."""
    dtype: Dtype = "float32"
    """Arithmetic of the backbone."""
    workers: int = 2
    """Processes that read files."""
    overwrite: Flag = False
    """Replace earlier studies in --out. A folder that holds other files is refused."""
    debug: Flag = False
    """Show the traceback of an error."""
