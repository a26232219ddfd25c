"""The options of `python -m und3rstand_jax` and of its `report`. Nothing here imports JAX, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What both commands need to know: which model to run, how, and where its results go."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Checkpoint written by `python -m convert`. A Hugging Face id, or a PyTorch folder or file, is converted on first use and cached."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; it appears complete or not at all."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: all)")] = None
    """Probed layers to decode, as comma-separated ids or shell-style patterns: 'decoder.*.mlp,decoder.0.*'."""
    preprocessing: Literal["probe", "dust3r"] = "probe"
    """How photos are cropped. probe: central square, as in the probes' published example. dust3r: aspect ratio kept, as by DUSt3R."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of encoder and decoder; heads and probes always compute in float32."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an earlier result of this command in --out. A folder that holds other files is refused."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the traceback of an error and the warnings of the libraries underneath."""


@dataclasses.dataclass(frozen=True)
class PointmapOptions(ModelOptions):
    """Runs DUSt3R and its layer probes on two photos of one scene and saves every pointmap.

    Writes into one folder the pointmap and confidence of every probed layer and of
    the model's own head: as arrays (.npz), as a coloured point cloud (.ply) and
    together in a contact sheet (contact_sheet.png). All points of both photos are in
    the camera frame of the first photo: x right, y down, z forward.
    At 512×512 a layer takes about 16 MB.

    `python -m und3rstand_jax report` writes an interactive page and figures: see its own --help.
    """

    image1: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IMG1")]]
    """First photo, a JPEG, PNG, TIFF, WebP or the like; all points are in its camera frame."""
    image2: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IMG2")]]
    """Second photo of the same scene."""
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 512
    """Side to resize photos to: the short side for probe, the long side for dust3r (except at 224: the short side)."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(ModelOptions):
    """Reports what every layer of a DUSt3R knows about two photos, or about a rendered scene with ground truth.

    Writes into one folder an interactive page (report.html), figures for papers (figures/, PNG and SVG) and
    all numbers (report.json, arrays.npz). For every probed layer and for the model's own head: the points, their error,
    the second camera's pose and the matches between the views. For every decoder block: the cross-attention.
    With all layers of a DUSt3R, arrays.npz takes 0.6 GB at 512×384 and 0.9 GB at 512×512, mostly attention.
    """

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 IMG2", help_behavior_hint="")]] = ()
    """Two photos of one scene; all points are in the first one's camera frame. Alternatively, give --scene."""
    scene: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Instead of photos, render this held-out synthetic scene, which has ground truth: 0, 1, 2, …"""
    data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: as in training)")] = None
    """Camera placement for --scene, such as synthetic:overlap=0.5-0.9,baseline=0.1-1."""
    size: Annotated[str | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the checkpoint's)")] = None
    """Side to resize photos to; for --scene, the side or WIDTHxHEIGHT of the rendered views."""
