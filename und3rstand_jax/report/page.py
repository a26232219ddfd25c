"""One HTML file with the whole report: it opens from disk in any modern browser and asks no network for anything.

Style, scripts (web/), images and arrays are all inside. The scripts are ES modules: an import map gives each its text as a data: URL,
since modules cannot be imported from files beside a page that was opened from disk. A content security policy forbids all else.
"""

import base64
import html
import io
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from und3rstand_jax.analysis.pair import Report
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.report.page_attention import PackedArray, pack_attention, size
from und3rstand_jax.report.page_geometry import pack_geometry
from und3rstand_jax.report.page_values import page_values, to_json
from und3rstand_jax.support.errors import UserError

LARGEST_PAGE = 9_800_000
"""Characters of a page, which are bytes: it is ASCII."""


_SHARE_OF_GEOMETRY = 0.55


_LARGEST_PNG = 200_000


_LONGEST_SIDE = 1024  # pixels of a photo on the page


def write_page(path: Path, report: Report) -> None:
    """Writes the report's page.

    Points and attention are as fine as fits into `LARGEST_PAGE`; the page says where it shows fewer pixels or tokens than there are.

    Args:
        path: of the HTML file; its folder must exist.
        report: what to show.

    Raises:
        UserError: the page would be larger than `LARGEST_PAGE`.
        OSError: the file cannot be written.
    """
    path.write_text(page_text(report), encoding="ascii")


def page_text(report: Report) -> str:
    """The page's HTML, in ASCII.

    Raises:
        UserError: it would be larger than `LARGEST_PAGE`.
    """
    pictures = [_data_url(image) for image in report.images]
    modules = {f"report/{name}": text for name, text in _scripts().items()} | {"three": _web("vendor", "three.min.js")}
    fixed = {
        "title": html.escape(report.title),
        "summary": html.escape(_summary(report)),
        "seen": _seen(report),
        "image1": pictures[0],
        "image2": pictures[1],
        "style": _web("style.css"),
        "licence": _web("vendor", "LICENSE"),
        "imports": to_json({"imports": {name: _module_url(text) for name, text in modules.items()}}),
    }
    left = LARGEST_PAGE - sum(map(len, fixed.values())) - 300_000  # the rest of the page, amply
    geometry = pack_geometry(report, int(left * _SHARE_OF_GEOMETRY))
    attention = pack_attention(report.attention, report.grids, left - size(geometry.arrays))
    values = to_json(page_values(report, geometry, attention))
    arrays = geometry.arrays + (attention.arrays if attention else ())
    page = _fill(_web("template.html"), fixed | {"values": values, "arrays": "\n".join(map(_array_script, arrays))})
    if len(page) > LARGEST_PAGE:
        raise UserError(
            f"the report's page would take {len(page) / 1e6:.1f} MB, more than {LARGEST_PAGE / 1e6:.1f}, with {len(report.layers)} layers "
            f"and views of {_sizes(report)} pixels; choose fewer --layers or a smaller --size"
        )
    return page


def _fill(template: str, texts: dict[str, str]) -> str:
    """Puts texts in place of {{name}}, in one pass, so that a text may contain braces; beyond ASCII, as character references."""
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: texts[match[1]], template)
    return filled.encode("ascii", "xmlcharrefreplace").decode()


def _summary(report: Report) -> str:
    head = any(layer.layer_id == HEAD for layer in report.layers)
    layers = len(report.layers) - head
    shown = [f"{layers} {'layer' if layers == 1 else 'layers'}"] if layers else []
    shown += ["the model’s own head"] if head else []
    # One layer that is its own reference has no errors.
    errors = "" if len(report.layers) == 1 and report.truth is None else f"; errors are measured against {report.reference}"
    summary = f"{' and '.join(shown)}, two views of {_sizes(report)} pixels{errors}."
    return summary[0].upper() + summary[1:]


def _sizes(report: Report) -> str:
    return " and ".join(dict.fromkeys(f"{image.shape[1]}×{image.shape[0]}" for image in report.images))


def _seen(report: Report) -> str:
    """Who sees the points that the page shows, and in which unit."""
    if all(layer.layer_id == HEAD for layer in report.layers):
        return (
            "The model’s own head sees a 3D point for every pixel of both views, in the frame of view 1’s camera. "
            "Here they are divided by their mean distance to that camera."
        )
    return (
        "Each layer, read out by its own probe, sees a 3D point for every pixel of both views, in the frame of view 1’s camera. "
        "Every layer has its own unit; here all are divided by their mean distance to that camera."
    )


def _array_script(array: PackedArray) -> str:
    spec = html.escape(to_json(array.spec), quote=True)
    return f'<script type="application/octet-stream;base64" data-array="{spec}">{array.text}</script>'


def _module_url(text: str) -> str:
    return f"data:text/javascript;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _data_url(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """PNG, or JPEG where that would be large; of at most `_LONGEST_SIDE` pixels a side."""
    photo = Image.fromarray(image)
    photo.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 92, "subsampling": 0})):
        file = io.BytesIO()
        photo.save(file, kind, **options)
        if kind == "jpeg" or file.tell() <= _LARGEST_PNG:
            return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    raise AssertionError("JPEG is always taken")


def _scripts() -> dict[str, str]:
    folder = _folder().joinpath("js")
    return {entry.name.removesuffix(".js"): entry.read_text("utf-8") for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)}


def _web(*parts: str) -> str:
    return _folder().joinpath(*parts).read_text("utf-8")


def _folder() -> Traversable:
    return files("und3rstand_jax.report").joinpath("web")
