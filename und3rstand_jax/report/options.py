"""The options of `python -m und3rstand_jax` and of its `report`, `edit` and `match`. Nothing here imports JAX, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.model.preprocessing import WAYS, Preprocessing

PointClouds = Literal["both", "ply", "glb"]
"""Which files of a layer's points are written."""

_SIZES = f"{WAYS['probe'].size}; for vggt and vggt-pad {WAYS['vggt'].size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What all of these commands need to know: which model to run, how, and where its results go."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Checkpoint written by `python -m convert`. A Hugging Face id, or a PyTorch folder or file, is converted on first use and cached."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; it appears complete or not at all."""
    preprocessing: Annotated[Preprocessing | None, tyro.conf.arg(help_behavior_hint="(default: probe, or vggt for a VGGT)")] = None
    """How photos are brought to the model's size. probe: central square, as in the probes' published example. dust3r: aspect ratio kept, \
as by DUSt3R's loader. vggt: aspect ratio kept, but no higher than wide, as by VGGT's. vggt-pad: padded to a square with white. With \
the last two, photos that then differ in size are padded to one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of encoder and decoder; heads and probes always compute in float32."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an earlier result of this command in --out. A folder that holds other files is refused."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the traceback of an error and the warnings of the libraries underneath."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which layers to decode."""

    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: all)")] = None
    """Probed layers to decode, as comma-separated ids or shell-style patterns: 'decoder.*.mlp,decoder.0.*'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudOptions:
    """Which files of point clouds to write."""

    point_clouds: PointClouds = "both"
    """Write point clouds as .ply (x right, y down, z forward, as all points here), as .glb for viewers and slides (in glTF's axes: x \
right, y up, z backward), or as both."""


@dataclasses.dataclass(frozen=True)
class PointmapOptions(CloudOptions, LayerOptions, ModelOptions):
    """Runs a DUSt3R, MASt3R or VGGT and its layer probes on photos of one scene and saves every pointmap.

    Writes into one folder the pointmap and confidence of every probed layer and of
    the model's own head: as arrays (.npz), as coloured point clouds (.ply and .glb) and
    together in a contact sheet (contact_sheet.png). A DUSt3R or MASt3R takes two photos, and more where it was trained on
    more views; a VGGT takes one or more. All points of all photos are in the camera frame of the first photo: x right, y down, z forward.
    At 512×512 a layer takes about 15 MB a photo.

    `python -m und3rstand_jax report` writes an interactive page and figures, `python -m und3rstand_jax edit`
    the pointmaps of an edited run: see their own --help.
    """

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 [IMG2 …]", help_behavior_hint="")]]
    """Photos of one scene, as many as the model takes (a DUSt3R or MASt3R two, a VGGT one or more), JPEG, PNG, TIFF, WebP or the like; \
all points are in the first one's camera frame."""
    size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint=f"(default: {_SIZES})")] = None
    """Side to resize photos to: the short side for probe, the long side for dust3r (except at 224: the short side) and vggt-pad, the \
width for vggt."""


@dataclasses.dataclass(frozen=True)
class ViewOptions(ModelOptions):
    """Which views to run the model on: photos, or a rendered scene."""

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 IMG2 [IMG3 …]", help_behavior_hint="")]] = ()
    """Photos of one scene, two or as many as the model takes; all points are in the first one's camera frame. Alternatively, give \
--scene."""
    scene: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Instead of photos, render this held-out synthetic scene, which has ground truth: 0, 1, 2, …"""
    views: Annotated[int | None, tyro.conf.arg(metavar="COUNT", help_behavior_hint="(default: 2)")] = None
    """With --scene, how many views of it are rendered, for a model that takes so many."""
    data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: as in training)")] = None
    """Camera placement for --scene, such as synthetic:overlap=0.5-0.9,baseline=0.1-1."""
    size: Annotated[str | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the checkpoint's)")] = None
    """Side to resize photos to; for --scene, the side or WIDTHxHEIGHT of the rendered views."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(LayerOptions, ViewOptions):
    """Reports what every layer of a DUSt3R, MASt3R or VGGT knows about two photos or more, or about a rendered scene with ground truth.

    Writes into one folder an interactive page (report.html), figures for papers (figures/, PNG and SVG) and
    all numbers (report.json, arrays.npz). For every probed layer and for the model's own head: the points, their error,
    the other cameras' poses and the matches between the first view and the others. For every block in which views meet: their attention.
    With all layers of a DUSt3R, arrays.npz of two views takes 0.6 GB at 512×384 and 0.9 GB at 512×512, mostly attention.
    """

    uses: Literal["auto", "yes", "no"] = "auto"
    """Add the panel 'What the model uses': a pass without each attention head of the decoders, and every probed decoder layer read by the \
model's own head. It needs that head, and a pair of views of a DUSt3R or MASt3R; yes is refused without. auto shows of more views, and of \
a VGGT, only the layers read by the head, and leaves the panel out where it would take long on a CPU, as for a published DUSt3R."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditOptions(CloudOptions, ViewOptions):
    """Runs a DUSt3R, MASt3R or VGGT and its layer probes with edits, and shows what they change.

    Writes into one folder the pointmap and confidence of every probed layer and of the model's own head, as they are with the
    edits: as arrays (.npz), as coloured point clouds (.ply and .glb), and beside those of the unedited run in a contact sheet
    (contact_sheet.png). run.json has the edits and how far each layer's points moved; of a scene, also the points' errors with
    and without the edits.

    A site is a layer id (decoder.3.mlp), or what is inside a step: .update, what it adds to the stream, and of an attention
    .heads and .scores. Patterns are allowed (decoder.*.cross_attn.heads:0-3); @1, @2, … at the end means one view alone.
    All edits that are given act together: first those of --edits, then --knock-out, then --skip.
    """

    edits: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """JSON file with edits of any kind: a list such as [{"site": "decoder.3.mlp", "view": 2, "scale": 0.5}]. An earlier result's run.json \
is one too."""
    edit_arrays: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: beside --edits)")] = None
    """The .npz file with the arrays that --edits names; by default the one of the same name beside it."""
    knock_out: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SITE[:HEADS][@VIEW]", help_behavior_hint="(repeatable)")
    ] = ()
    """Site to set to zero: decoder.4.cross_attn.heads:0@2."""
    skip: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="STEP[@VIEW]", help_behavior_hint="(repeatable)")
    ] = ()
    """Step to leave out, so that it adds nothing to the stream: decoder.3.cross_attn."""
    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 [IMG2 …]", help_behavior_hint="")]] = ()
    """Photos of one scene, as many as the model takes (a DUSt3R or MASt3R two, a VGGT one or more); all points are in the first one's \
camera frame. Alternatively, give --scene."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: from the first edited layer on)")] = None
    """Probed layers to decode, as comma-separated ids or shell-style patterns. Layers before the first edited one cannot change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchOptions(ViewOptions):
    """Matches the pixels of two views, no more, by the descriptors of a MASt3R.

    Writes into one folder the matches and their confidences (matches.npz), a picture of them (matches.png, matches.svg) and what was
    done (matches.json); of a scene, also how far each match is from the true place.

    From every seed in view 1 the most similar pixel of view 2 is found, from there the most similar one of view 1, and so on, until
    two pixels are each other's. Pixels are those of the views as the model sees them, (x, y) from the top left.
    """

    seeds: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 8
    """Distance between seeds. 1 finds all mutual pairs, and takes long."""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: mutual pairs only)")] = None
    """Take each seed with the pixel most similar to it, where the way back ends nearer to the seed than this."""
    both_ways: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Walk from seeds in view 2 too."""
    both_orders: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run the model on the views in the other order as well, and unite the matches of both, both ways each, as MASt3R-SfM does."""
    border: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 3
    """Leave out matches nearer to an edge of either view than this."""
