"""Every option of a layer report. No JAX here: the command line reads this before a device is chosen."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Reports on what every layer of a DUSt3R knows of two photos, or of a rendered scene whose geometry is known.

    Writes into one folder a page to look at (report.html), figures for papers (figures/, PNG and SVG) and
    all numbers (report.json, arrays.npz): of every probed layer and of the model's own head the points, their error,
    the second camera's pose and the matches between the views, and the cross-attention of every decoder block.
    arrays.npz takes 0.6 GB for all layers of a DUSt3R at 512×384, mostly attention, and 0.9 GB at 512×512.
    """

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 IMG2")]] = ()
    """Two photos of one scene; the first one's camera is the frame of all points. Or else --scene."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")] = tyro.MISSING
    """A converted checkpoint (`python -m convert`), best with probes; a hub id or a PyTorch folder or file is converted on first use."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = tyro.MISSING
    """Folder to write; it appears complete or not at all."""
    scene: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Instead of photos, a synthetic scene that was not trained on, with ground truth: 0, 1, 2, …"""
    data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """With --scene, how far apart the views are: synthetic:overlap=0.5-0.9,baseline=0.1-1. By default as for training."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS")] = None
    """Which probed layers, as comma-separated ids or shell-style patterns: 'decoder.*.mlp,decoder.0.*'. By default all."""
    preprocessing: Literal["probe", "dust3r"] = "probe"
    """Of photos. probe: central square, as the probes' own example does. dust3r: keeps the photo's shape, as DUSt3R's loader does."""
    size: Annotated[str | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Side that photos are brought to; side, or WIDTHxHEIGHT, of a scene's views. By default the checkpoint's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the trunk computes in; heads and probes give float32 always."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an earlier report in --out, and whatever else is in that folder."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the traceback of an error."""
