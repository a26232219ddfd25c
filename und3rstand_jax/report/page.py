"""One HTML file with the whole report: it opens from disk in any modern browser and loads nothing from the network.

Style, scripts (web/), images, arrays and values are all inside. The scripts are ES modules: browsers refuse to import modules from
files beside a page that was opened from disk, so an import map holds each as a data: URL. A content security policy forbids
everything else.
"""

import base64
import html
import io
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from und3rstand_jax.analysis.head_use import HeadUse, SelfAttention, places_of
from und3rstand_jax.analysis.pair import Attention, Layer, PairAnalysis
from und3rstand_jax.geometry.cameras import centred_intrinsics
from und3rstand_jax.geometry.matching import drawn_matches
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.report.page_arrays import packed_size
from und3rstand_jax.report.page_attention import PackedAttention, pack_attention, pooled_marks
from und3rstand_jax.report.page_geometry import PackedGeometry, pack_geometry
from und3rstand_jax.report.page_use import lens_values, use_values
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.text import to_json

LARGEST_PAGE = 9_800_000
"""Characters of a page, which are bytes: it is ASCII."""

_REST_OF_PAGE = 300_000  # a generous bound of the template and the values, in characters
_GEOMETRY_SHARE = 0.55  # of what is left for arrays
_PEAKS = 200_000  # a generous bound of what attention takes besides its weights, on the finest grids that fit
_SELF_SHARE = 0.25  # of what is left for attention, where that of both kinds is shown
_LARGEST_PNG = 200_000  # bytes
_LONGEST_SIDE = 1024  # pixels of a photo on the page
_COLORMAPS = {"depth": "turbo", "confidence": "viridis", "error": "magma", "attention": "inferno", "mass": "viridis", "sink": "cividis"}
_COST_COLORMAPS = {"error": "RdBu_r", "displacement": "magma"}


def page_values(
    analysis: PairAnalysis,
    geometry: PackedGeometry,
    attention: PackedAttention | None,
    use: HeadUse | None = None,
    self_attention: PackedAttention | None = None,
    lens: Mapping[str, tuple[float, ...]] | None = None,
) -> dict[str, object]:
    """Everything the page's scripts read besides the packed arrays and the images, as JSON values.

    Translations of cameras are divided by the same scale as the points beside them.
    """
    # Where no focal length is known, only view 1 has a camera: it is drawn with a focal length of one image width.
    unknown = (centred_intrinsics(float(image.shape[1]), (image.shape[0], image.shape[1])) for image in analysis.images)
    intrinsics = analysis.intrinsics or tuple(unknown)
    errors = [error for layer in analysis.layers for error in layer.errors if math.isfinite(error)]
    # 256 colours as hexadecimal digits.
    maps = _COLORMAPS | ({} if use is None else {"cost": _COST_COLORMAPS[use.measure]})
    colors = {name: matplotlib.colormaps[of](np.linspace(0, 1, 256))[:, :3] for name, of in maps.items()}
    places = places_of(analysis)
    marked = {name: packed for name, packed in (("attention", attention), ("self_attention", self_attention)) if packed is not None}
    marks = {name: pooled_marks(places, analysis.grids, packed.pool) for name, packed in marked.items()} if places is not None else {}
    return {
        "title": analysis.title,
        "reference": analysis.reference,
        "match_threshold": round(analysis.match_threshold, 6),  # shown as it is
        "shapes": [list(image.shape[:2]) for image in analysis.images],
        "grids": analysis.grids,
        "intrinsics": [camera.tolist() for camera in intrinsics],
        "error_range": max([*errors, 1e-3]),  # the colour scale of point errors ends at the worst layer's mean
        "layers": [_layer(layer, scale) for layer, scale in zip(analysis.layers, geometry.scales, strict=True)],
        "true_pose": _camera(analysis.true_pose, geometry.truth_scale or 1.0),
        "geometry": geometry.info,
        "attention": None if attention is None else {**attention.info, "marks": marks.get("attention")},
        "use": None if use is None else _use(use, self_attention, marks.get("self_attention"), geometry),
        "lens": lens_values(lens or {}),
        "colormaps": {name: np.rint(table * 255).astype(np.uint8).tobytes().hex() for name, table in colors.items()},
        "facts": analysis.record,
    }


def _use(use: HeadUse, packed: PackedAttention | None, marks: object, geometry: PackedGeometry) -> dict[str, object]:
    cameras = [_camera(one.camera2_to_1, scale) for one, scale in zip(use.without, geometry.without_scales, strict=True)]
    return {**use_values(use, cameras), "attention": None if packed is None else {**packed.info, "marks": marks}}


def _layer(layer: Layer, scale: float) -> dict[str, object]:
    found = layer.correspondences
    shown = drawn_matches(found)
    matches: dict[str, object] = {
        "count": len(found.pixels1),
        "known": 0,
        "median_offset": None,
        "pixels1": found.pixels1[shown].tolist(),
        "pixels2": found.pixels2[shown].tolist(),
        "offsets": None,
    }
    if found.offsets is not None:
        known = found.offsets[np.isfinite(found.offsets)].astype(np.float64)
        matches["known"] = len(known)
        matches["median_offset"] = float(np.median(known)) if len(known) else None
        matches["offsets"] = [round(offset, 2) for offset in found.offsets[shown].tolist()]
    pose = layer.pose
    return {
        "id": layer.layer_id,
        "scale": scale,
        "errors": [error if math.isfinite(error) else None for error in layer.errors],
        "accuracy": layer.accuracy,
        "pose": {"camera": _camera(pose.camera2_to_1, scale), "rotation": pose.rotation_degrees, "translation": pose.translation_degrees},
        "matches": matches,
    }


def _camera(camera_to_1: Float[np.ndarray, "4 4"] | None, scale: float) -> list[list[float]] | None:
    if camera_to_1 is None or not np.isfinite(camera_to_1).all():
        return None
    normalised = np.array(camera_to_1, np.float64)
    normalised[:3, 3] /= scale
    return normalised.tolist()


def script_json(value: object) -> str:
    """Strict JSON in ASCII, safe inside a <script> element of any type."""
    return to_json(value, indent=None).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: Path, analysis: PairAnalysis, use: HeadUse | None = None, lens: Mapping[str, tuple[float, ...]] | None = None) -> None:
    """Writes the page.

    Points and attention are as fine as `LARGEST_PAGE` allows; the page says where it shows fewer pixels or tokens than there are.

    Args:
        path: of the HTML file; its folder must exist.
        analysis: what to show.
        use: of the same pair, what attention heads are used for.
        lens: of the same pair, errors by layer from `und3rstand_jax.analysis.own_head.lens_of_pair`.

    Raises:
        OptionError: the page would be larger than `LARGEST_PAGE`.
        OSError: the file cannot be written.
    """
    path.write_text(page_text(analysis, use, lens), encoding="ascii")


def page_text(analysis: PairAnalysis, use: HeadUse | None = None, lens: Mapping[str, tuple[float, ...]] | None = None) -> str:
    """The page's HTML, in ASCII; see `write_page`.

    Raises:
        OptionError: it would be larger than `LARGEST_PAGE`.
    """
    web = files("und3rstand_jax.report").joinpath("web")
    scripts = {f"report/{Path(entry.name).stem}": entry.read_text("utf-8") for entry in web.joinpath("js").iterdir()}
    scripts["three"] = web.joinpath("vendor", "three.min.js").read_text("utf-8")
    modules = {
        name: f"data:text/javascript;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
        for name, text in sorted(scripts.items())
    }
    sizes = " and ".join(dict.fromkeys(f"{image.shape[1]}×{image.shape[0]}" for image in analysis.images))
    summary, geometry_lead = _introduction(analysis, sizes)
    fixed = {
        "title": html.escape(analysis.title),
        "summary": html.escape(summary),
        "geometry_lead": geometry_lead,
        "image1": _data_url(analysis.images[0]),
        "image2": _data_url(analysis.images[1]),
        "style": web.joinpath("style.css").read_text("utf-8"),
        "licence": web.joinpath("vendor", "LICENSE").read_text("utf-8"),
        "imports": script_json({"imports": modules}),
    }
    left = LARGEST_PAGE - sum(map(len, fixed.values())) - _REST_OF_PAGE
    # Attention is not left more than it could take.
    maps: list[Attention | SelfAttention] = [*analysis.attention, *(() if use is None else use.self_attention)]
    most = sum(block.from_view1.size + block.from_view2.size for block in maps) * 4 // 3 + _PEAKS
    geometry = pack_geometry(analysis, left - min(int(left * (1 - _GEOMETRY_SHARE)), most), () if use is None else use.without)
    left -= packed_size(geometry.arrays)
    self_attention = None if use is None else pack_attention(use.self_attention, analysis.grids, int(left * _SELF_SHARE))
    left -= packed_size(self_attention.arrays) if self_attention else 0
    attention = pack_attention(analysis.attention, analysis.grids, left)
    packed = [array for part in (geometry, attention, self_attention) if part is not None for array in part.arrays]
    arrays = "\n".join(
        f'<script type="application/octet-stream;base64" data-array="{html.escape(script_json(array.spec))}">{array.text}</script>'
        for array in packed
    )
    texts = fixed | {"values": script_json(page_values(analysis, geometry, attention, use, self_attention, lens)), "arrays": arrays}
    # All in one pass, since a text may contain braces; characters beyond ASCII become character references.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: texts[match[1]], web.joinpath("template.html").read_text("utf-8"))
    page = page.encode("ascii", "xmlcharrefreplace").decode()
    if len(page) > LARGEST_PAGE:
        raise OptionError(
            f"the report's page would take {len(page) / 1e6:.1f} MB, more than {LARGEST_PAGE / 1e6:.1f}, with {len(analysis.layers)} "
            f"layers and views of {sizes} pixels; choose fewer --layers or a smaller --size"
        )
    return page


def _introduction(analysis: PairAnalysis, sizes: str) -> tuple[str, str]:
    """The summary below the page's title, and the first sentences of the section on geometry."""
    layers = sum(layer.layer_id != HEAD for layer in analysis.layers)
    shown = [f"{layers} {'layer' if layers == 1 else 'layers'}"] if layers else []
    shown += ["the model’s own head"] if layers < len(analysis.layers) else []
    # A single layer is its own reference and has no errors.
    errors = "" if len(analysis.layers) == 1 and analysis.truth is None else f"; errors are measured against {analysis.reference}"
    summary = f"{' and '.join(shown)}, two views of {sizes} pixels{errors}."
    summary = summary[0].upper() + summary[1:]
    if not layers:
        return summary, (
            "The model’s own head predicts a 3D point for every pixel of both views, in view 1’s camera frame. "
            "Here they are divided by their mean distance to that camera."
        )
    return summary, (
        "Each layer is read out by its own probe, which predicts a 3D point for every pixel of both views, in view 1’s camera frame. "
        "Every layer has its own unit; here all are divided by their mean distance to that camera."
    )


def _data_url(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """A PNG, or a JPEG where that would be large, of at most `_LONGEST_SIDE` pixels a side."""
    photo = Image.fromarray(image)
    photo.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    kind, file = "png", io.BytesIO()
    photo.save(file, "png", optimize=True)
    if file.tell() > _LARGEST_PNG:
        kind, file = "jpeg", io.BytesIO()
        photo.save(file, "jpeg", quality=92, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
