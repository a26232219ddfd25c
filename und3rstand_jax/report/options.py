"""The options of `python -m und3rstand_jax` and of its `report`, `edit` and `match`. Nothing here imports JAX, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from und3rstand_jax.model.preprocessing import WAYS, Preprocessing
from und3rstand_jax.support.option_kinds import Flag

PointClouds = Literal["both", "ply", "glb"]
"""Which point-cloud files of a layer are written."""

_SIZES = f"{WAYS['probe'].size}; for vggt and vggt-pad {WAYS['vggt'].size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options that all of these commands share: which model to run, how, and where its results go."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; it appears complete or not at all."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: the pocket model of a clone)")] = ""
    """Checkpoint written by python -m convert. A Hugging Face id or a PyTorch folder or file is converted on first use and cached."""
    preprocessing: Annotated[
        Preprocessing | None,
        tyro.conf.arg(metavar=f"{{{','.join(WAYS)}}}", help_behavior_hint="(default: probe, or vggt for a VGGT)"),
    ] = None
    """How photos are brought to the model's size. probe: the central square, as in the probes' published example. dust3r: keeps the \
aspect ratio, as DUSt3R's loader does. vggt: keeps it too, but crops a photo that is taller than wide, as VGGT's loader does. vggt-pad: \
pads to a square with white. With the last two, photos that still differ in size are padded to the same size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of encoder and decoder; heads and probes always compute in float32."""
    overwrite: Flag = False
    """Replace an earlier result of this command in --out. A folder with other files in it is refused."""
    quiet: Flag = False
    """Print results only: no messages and no progress bars. Warnings and errors stay on stderr."""
    json: Flag = False
    """Print the record that is written (run.json, report.json or matches.json) on stdout in place of text."""
    debug: Flag = False
    """Print the traceback of an error and the warnings of the libraries underneath."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which layers to decode."""

    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: all)")] = None
    """Probed layers to decode, as comma-separated ids or shell-style patterns, such as 'decoder.*.mlp,decoder.0.*'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudOptions:
    """Which files of point clouds to write."""

    point_clouds: PointClouds = "both"
    """Write point clouds as .ply (x right, y down, z forward, as all points here), as .glb for viewers and slides (in glTF's axes: x \
right, y up, z backward), or as both."""


@dataclasses.dataclass(frozen=True)
class PointmapOptions(CloudOptions, LayerOptions, ModelOptions):
    """Runs a DUSt3R, MASt3R or VGGT and its layer probes on photos of one scene and saves every pointmap.

    Writes the pointmap and confidence of every probed layer and of the model's own head to one folder: as arrays (.npz), as coloured
    point clouds (.ply and .glb) and together in a contact sheet (contact_sheet.png). A DUSt3R or MASt3R takes two photos, or more if it
    was trained on more views; a VGGT takes one or more. All points are in the camera frame of the first photo: x right, y down, z
    forward. At 512×512 a layer takes about 15 MB a photo.

    This is what python -m und3rstand_jax does with photos and no command. Other commands: report | edit | match | sweep | study (each
    has its own --help; without any argument, an overview is printed). Also: --version, and --completion bash|zsh|fish, which prints a
    script of completions for that shell.
    """

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 [IMG2 …]", help_behavior_hint="")]]
    """Photos of one scene, as many as the model takes (two for a DUSt3R or MASt3R, one or more for a VGGT): JPEG, PNG, TIFF, WebP or the \
like. All points are in the first photo's camera frame."""
    size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint=f"(default: {_SIZES})")] = None
    """Side to resize photos to: the short side for probe, the long side for dust3r (except at 224: the short side) and vggt-pad, the \
width for vggt."""


@dataclasses.dataclass(frozen=True)
class ViewOptions(ModelOptions):
    """Which views to run the model on: photos, or a rendered scene."""

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 IMG2 [IMG3 …]", help_behavior_hint="")]] = ()
    """Photos of one scene, two or as many as the model takes; all points are in the first photo's camera frame. Or give --scene."""
    scene: Annotated[int | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(optional)")] = None
    """Render this held-out synthetic scene instead of reading photos: 0, 1, 2, … Scenes have ground truth."""
    views: Annotated[int | None, tyro.conf.arg(metavar="COUNT", help_behavior_hint="(default: 2)")] = None
    """Number of views of --scene to render, for a model that takes that many."""
    data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: as in training)")] = None
    """Camera placement for --scene, such as synthetic:overlap=0.5-0.9,baseline=0.1-1."""
    size: Annotated[str | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the checkpoint's)")] = None
    """Side to resize photos to; for --scene, the side or WIDTHxHEIGHT of the rendered views."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(LayerOptions, ViewOptions):
    """Reports what every layer of a DUSt3R, MASt3R or VGGT knows about two or more photos, or about a rendered scene with ground truth.

    Writes an interactive page (report.html), figures for papers (figures/, PNG and SVG) and all numbers (report.json, arrays.npz) to one
    folder. For every probed layer and the model's own head, it shows the points, their errors, the poses of the other cameras, and the
    matches between the first view and the others; for every block in which views meet, their attention. With all layers of a DUSt3R,
    arrays.npz of two views takes 0.6 GB at 512×384 and 0.9 GB at 512×512, mostly for attention.
    """

    uses: Literal["auto", "yes", "no"] = "auto"
    """Add the panel "What the model uses": what changes without each attention head of the decoders, and every probed decoder layer as \
the model's own head reads it. The panel needs that head and two views of a DUSt3R or MASt3R; yes is an error without them. With more \
views, or a VGGT, auto shows only the layers as the head reads them. It skips the panel if it would take long on a CPU, as it does for a \
published DUSt3R."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditOptions(CloudOptions, ViewOptions):
    """Runs a DUSt3R, MASt3R or VGGT and its layer probes with edits, and shows what they change.

    Writes the edited pointmap and confidence of every probed layer and of the model's own head to one folder: as arrays (.npz), as
    coloured point clouds (.ply and .glb), and beside those of the unedited run in a contact sheet (contact_sheet.png). run.json has the
    edits and how far each layer's points moved; for a scene, also the errors of the points with and without the edits.

    A site is a layer id (decoder.3.mlp) or something inside a step: .update is what the step adds to the stream, and an attention also
    has .heads and .scores. Patterns are allowed (decoder.*.cross_attn.heads:0-3), and @1, @2, … at the end selects one view.
    All edits act together: first those of --edits, then --knock-out, then --skip.
    """

    edits: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """JSON file with edits of any kind: a list such as [{"site": "decoder.3.mlp", "view": 2, "scale": 0.5}]. An earlier result's run.json \
is one too."""
    edit_arrays: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: beside --edits)")] = None
    """The .npz file with the arrays that --edits names; by default the one with the same name beside it."""
    knock_out: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SITE[:HEADS][@VIEW]", help_behavior_hint="(repeatable)")
    ] = ()
    """Site to set to zero: decoder.4.cross_attn.heads:0@2."""
    skip: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="STEP[@VIEW]", help_behavior_hint="(repeatable)")
    ] = ()
    """Step to leave out, so that it adds nothing to the stream: decoder.3.cross_attn."""
    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 [IMG2 …]", help_behavior_hint="")]] = ()
    """Photos of one scene, as many as the model takes (two for a DUSt3R or MASt3R, one or more for a VGGT). All points are in the first \
photo's camera frame. Or give --scene."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS", help_behavior_hint="(default: from the first edited layer on)")] = None
    """Probed layers to decode, as comma-separated ids or shell-style patterns. Layers before the first edited one cannot change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchOptions(ViewOptions):
    """Matches the pixels of exactly two views by the descriptors of a MASt3R.

    Writes the matches and their confidences (matches.npz), a picture of them (matches.png, matches.svg) and what was done (matches.json)
    to one folder; for a scene, also how far each match is from its true place.

    From every seed in view 1, the most similar pixel of view 2 is found, from there the most similar one of view 1, and so on, until
    two pixels are each other's most similar. Pixels are those of the views as the model sees them, (x, y) from the top left.
    """

    images: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMG1 IMG2", help_behavior_hint="")]] = ()
    """Two photos of one scene. Or give --scene."""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(required)")] = ""
    """Checkpoint of a MASt3R, written by python -m convert. A Hugging Face id or a PyTorch folder or file is converted on first use and \
cached."""

    seeds: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 8
    """Distance between seeds. 1 finds all mutual pairs but takes long."""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: mutual pairs only)")] = None
    """Match each seed to its most similar pixel if the way back ends closer to the seed than this."""
    both_ways: Flag = False
    """Start from seeds in view 2 as well."""
    both_orders: Flag = False
    """Run the model on the views in both orders and merge the matches, both ways each, as MASt3R-SfM does."""
    border: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 3
    """Leave out matches closer than this to an edge of either view."""
