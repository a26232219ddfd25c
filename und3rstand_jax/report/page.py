"""One HTML file with the whole report: it opens from disk in any modern browser and loads nothing from the network.

Style, scripts (web/), images, arrays and values are all inside. The scripts are ES modules: browsers refuse to import modules from
files beside a page that was opened from disk, so an import map contains each as a data: URL. A content security policy forbids
everything else.
"""

import base64
import html
import io
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from und3rstand_jax.analysis.head_use import HeadUse
from und3rstand_jax.analysis.view_set import SetAnalysis
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.report.page_arrays import packed_size
from und3rstand_jax.report.page_attention import PackedAttention, pack_attention
from und3rstand_jax.report.page_geometry import PackedGeometry, pack_geometry
from und3rstand_jax.report.page_values import page_values
from und3rstand_jax.report.view_colours import view_style
from und3rstand_jax.support.errors import OptionError
from und3rstand_jax.support.text import to_json

LARGEST_PAGE = 9_800_000
"""Maximum size of a page in characters, which are bytes, since it is ASCII."""

_REST_OF_PAGE = 300_000  # a generous bound on the template and a pair's values, in characters
_MATCHES = 2_500  # the most that a layer's matches with one more view, and its pose, add to the values
_GEOMETRY_SHARE = 0.55  # of what is left for arrays
_PEAKS = 100_000  # a generous bound on what a view's attention takes besides its weights, on the finest grids that fit
_WORTH_REPACKING = 500_000
_SELF_SHARE = 0.25  # of what is left for attention, if both kinds are shown
_LARGEST_PNGS = 400_000  # bytes of all photos together
_JPEG_QUALITY, _QUALITY_OF_MANY = 92, 85  # for two views, and for more
_LONGEST_SIDE = 1024  # pixels of a photo on the page


def script_json(value: object) -> str:
    """Strict JSON in ASCII, safe inside a <script> element of any type."""
    return to_json(value, indent=None).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: Path, analysis: SetAnalysis, use: HeadUse | None = None, lens: Mapping[str, tuple[float, ...]] | None = None) -> None:
    """Writes the page.

    Points and attention are as fine as `LARGEST_PAGE` allows; the page says where it shows fewer pixels or tokens than there are.

    Args:
        path: the HTML file; its folder must exist.
        analysis: what to show.
        use: what attention heads are used for on the same pair.
        lens: errors by layer on the same views, from `und3rstand_jax.analysis.own_head.lens_of_set`.

    Raises:
        OptionError: the page would be larger than `LARGEST_PAGE`.
        OSError: the file cannot be written.
    """
    path.write_text(page_text(analysis, use, lens), encoding="ascii")


def page_text(analysis: SetAnalysis, use: HeadUse | None = None, lens: Mapping[str, tuple[float, ...]] | None = None) -> str:
    """The page's HTML, in ASCII; see `write_page`.

    Raises:
        OptionError: the page would be larger than `LARGEST_PAGE`.
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
        "photos": _photos(analysis.images),
        "many": " many" if len(analysis.images) > 2 else "",
        "style": view_style(len(analysis.images)) + web.joinpath("style.css").read_text("utf-8"),
        "licence": web.joinpath("vendor", "LICENSE").read_text("utf-8"),
        "imports": script_json({"imports": modules}),
    }
    geometry, attention, self_attention = _packed(analysis, use, LARGEST_PAGE - sum(map(len, fixed.values())) - _REST_OF_PAGE)
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
            f"layers and {_counted(analysis)} of {sizes} pixels; choose fewer --layers or a smaller --size"
        )
    return page


def _packed(analysis: SetAnalysis, use: HeadUse | None, left: int) -> tuple[PackedGeometry, PackedAttention | None, PackedAttention | None]:
    """Points, cross-attention and self-attention, as fine as the characters left for them and for the values of more views allow."""
    more_views = len(analysis.images) - 2
    left -= _MATCHES * len(analysis.layers) * more_views
    # Attention gets no more than it could use.
    maps = [*analysis.attention, *(() if use is None else use.self_attention)]
    most = sum(weights.size for block in maps for weights in block.weights) * 4 // 3 + _PEAKS * len(analysis.images)
    geometry = pack_geometry(analysis, left - min(int(left * (1 - _GEOMETRY_SHARE)), most), () if use is None else use.without)
    left -= packed_size(geometry.arrays)
    self_attention = None if use is None else pack_attention(use.self_attention, analysis.grids, int(left * _SELF_SHARE), prefix="self_")
    left -= packed_size(self_attention.arrays) if self_attention else 0
    attention = pack_attention(analysis.attention, analysis.grids, left, pooled=analysis.pool)
    left -= packed_size(attention.arrays) if attention else 0
    if more_views and left > _WORTH_REPACKING:
        # The attention of many views comes in coarse steps, of which the next may be much smaller: points get what it leaves.
        geometry = pack_geometry(analysis, packed_size(geometry.arrays) + left)
    return geometry, attention, self_attention


def _introduction(analysis: SetAnalysis, sizes: str) -> tuple[str, str]:
    """The summary below the page's title, and the first sentences of the section on geometry."""
    layers = sum(layer.layer_id != HEAD for layer in analysis.layers)
    shown = [f"{layers} {'layer' if layers == 1 else 'layers'}"] if layers else []
    shown += ["the model’s own head"] if layers < len(analysis.layers) else []
    # A single layer is its own reference and has no errors.
    errors = "" if len(analysis.layers) == 1 and analysis.truth is None else f"; errors are measured against {analysis.reference}"
    summary = f"{' and '.join(shown)}, {_counted(analysis, 'two ')} of {sizes} pixels{errors}."
    summary = summary[0].upper() + summary[1:]
    every = "both" if len(analysis.images) == 2 else "all"
    if not layers:
        return summary, (
            f"The model’s own head predicts a 3D point for every pixel of {every} views, in view 1’s camera frame. "
            "Here they are divided by their mean distance to that camera."
        )
    return summary, (
        f"Each layer is read out by its own probe, which predicts a 3D point for every pixel of {every} views, in view 1’s camera frame. "
        "Every layer has its own unit; here all are divided by their mean distance to that camera."
    )


def _counted(analysis: SetAnalysis, two: str = "") -> str:
    """The number of views in words; for a pair, `two` comes first."""
    count = len(analysis.images)
    return f"{two}views" if count == 2 else f"{count} views"


def _photos(images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]) -> str:
    """A figure for each view, as HTML."""
    quality = _JPEG_QUALITY if len(images) == 2 else _QUALITY_OF_MANY
    urls = [_data_url(image, _LARGEST_PNGS // len(images), quality) for image in images]
    return "\n    ".join(
        f'<figure><img id="photo{view}" src="{url}" alt="View {view}"><figcaption class="of-view{view}">View {view}</figcaption></figure>'
        for view, url in enumerate(urls, start=1)
    )


def _data_url(image: UInt8[np.ndarray, "H W 3"], largest_png: int, quality: int) -> str:
    """A PNG, or a JPEG of this quality if the PNG would be too large, of at most `_LONGEST_SIDE` pixels per side."""
    photo = Image.fromarray(image)
    photo.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    kind, file = "png", io.BytesIO()
    photo.save(file, "png", optimize=True)
    if file.tell() > largest_png:
        kind, file = "jpeg", io.BytesIO()
        photo.save(file, "jpeg", quality=quality, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
