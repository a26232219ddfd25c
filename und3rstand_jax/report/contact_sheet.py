"""One picture of what every layer knows: depth and confidence of every view beside the photos, one row per layer.

Two runs are compared in three rows per layer: one for each run, and one for their differences.

Depth and confidence have one colour scale per view over all rows, so that rows can be compared. So do their differences, around 0.
A scale spans the 2nd to 98th percentile; confidence, which DUSt3R computes as 1 + exp(x), is coloured by its logarithm.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.geometry.metrics import mean_point_distance
from und3rstand_jax.report.map_colors import EXPLANATIONS, LOOKS, Scale, Shown, colored

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Column = tuple[str, int]
"""What a column shows ("photo", "depth", "confidence"), and its view."""

Views = tuple[ViewGeometry, ...]

_INK, _FAINT, _PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)
# All in pixels.
_MARGIN, _LABEL_WIDTH, _LEAST_COLUMN = 20, 182, 160
_COLUMN_GAP, _VIEW_GAP, _ROW_GAP, _GROUP_GAP = 12, 32, 8, 24
_TITLE_HEIGHT, _LINE_HEIGHT, _HEADING_HEIGHT, _NEXT_BAR = 48, 20, 74, 52
_HEADING_EVERY = 12  # rows


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row: its label and the text below it, what its maps show, and its distance from the row above in pixels."""

    label: str
    below_label: str
    shown: Shown
    gap: int
    maps: Mapping[Column, Float[np.ndarray, "h w"]]


class ContactSheet:
    """Collects rows of maps at thumbnail size, then draws them all with common scales."""

    def __init__(self, photos: Sequence[UInt8[np.ndarray, "_H _W 3"]], rows: int, title: str, notes: str = "") -> None:
        """A sheet without rows yet.

        Args:
            photos: the pixels of the views, which may differ in size.
            rows: number of rows to come; a short sheet gets larger pictures.
            title: printed at the top.
            notes: lines to print under it.
        """
        side = 320 if rows <= 6 else 208
        self._title, self._notes = title, notes
        self._photos = []
        for photo in photos:
            height, width = photo.shape[:2]
            size = tuple(max(1, round(length * side / max(height, width))) for length in (width, height))
            self._photos.append(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
        self._rows: list[_Row] = []

    def add_row(self, label: str, views: Views) -> None:
        """Adds one layer's geometry of all views."""
        self._rows.append(_Row(label, "", "values", 0, self._thumbnails(views)))

    def add_comparison(self, label: str, unedited: Views, edited: Views) -> None:
        """Adds three rows for one layer: all views' geometry in each run, and the differences, edited minus unedited.

        Layers differ in their unit. Differences of depth are therefore divided by the unedited points' mean distance to view 1's camera.
        """
        before, after = self._thumbnails(unedited), self._thumbnails(edited)
        self._rows += [
            _Row(label, "unedited", "values", _GROUP_GAP, before),
            _Row(label, "edited", "values", 0, after),
            _Row(label, "Δ edited − unedited", "differences", 0, _differences(before, after, mean_point_distance(unedited))),
        ]

    def _thumbnails(self, views: Views) -> dict[Column, Float[np.ndarray, "h w"]]:
        """Depth and confidence of every view at the sizes of the sheet's photos."""
        maps = {}
        for view, (geometry, photo) in enumerate(zip(views, self._photos, strict=True), start=1):
            depth = geometry.points[..., 2]
            confidence = np.full_like(depth, np.nan) if geometry.confidence is None else geometry.confidence
            # The value nearest to the centre of each thumbnail pixel: averages would mix in outliers and NaNs.
            sides = zip((photo.height, photo.width), depth.shape, strict=True)
            pixels = np.ix_(*(((np.arange(small) + 0.5) * large / small).astype(int) for small, large in sides))
            for kind, values in (("depth", depth), ("confidence", confidence)):
                maps[kind, view] = values[pixels].astype(np.float32)
        return maps

    def draw(self) -> Image.Image:
        """The sheet as an RGB picture."""
        scales: dict[Shown, dict[Column, Scale]] = {shown: self._scales(shown) for shown in self._shown()}
        lefts, width = self._column_lefts()
        text = "\n".join([*self._notes.splitlines(), *(EXPLANATIONS[shown] for shown in self._shown() or ["values"])])
        heading_tops, row_tops, bottom = self._tops(_TITLE_HEIGHT + _LINE_HEIGHT * len(text.splitlines()))
        sheet = Image.new("RGB", (width, bottom + _MARGIN), _PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((_MARGIN, 16), self._title, _INK, _font(22, bold=True))
        draw.text((_MARGIN, 48), text, _FAINT, _font(13), spacing=5)
        for top in heading_tops:
            self._draw_heading(sheet, top, lefts, scales)
        for row, top in zip(self._rows, row_tops, strict=True):
            self._draw_row(sheet, row, top, lefts, scales[row.shown])
        return sheet

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the sheet as a PNG file."""
        self.draw().save(path, format="PNG")

    def _shown(self) -> list[Shown]:
        """The kinds of rows on the sheet, values first."""
        return [shown for shown in LOOKS if any(row.shown == shown for row in self._rows)]

    def _scales(self, shown: Shown) -> dict[Column, Scale]:
        """The scale of every column but the photos', over all rows of this kind."""
        rows = [row.maps for row in self._rows if row.shown == shown]
        return {
            (kind, view): look.scale(np.concatenate([maps[kind, view].ravel() for maps in rows]))
            for view in range(1, len(self._photos) + 1)
            for kind, look in LOOKS[shown].items()
        }

    def _tops(self, top: int) -> tuple[list[int], list[int], int]:
        """Upper edges of the headings and of the rows, and where the last row ends."""
        heading_height = _HEADING_HEIGHT + _NEXT_BAR * (len(self._shown()) - 1)
        row_height = max(photo.height for photo in self._photos) + _ROW_GAP
        headings, rows = [], []
        for number, row in enumerate(self._rows):
            if number % _HEADING_EVERY == 0:
                headings.append(top)
                top += heading_height
            else:
                top += row.gap
            rows.append(top)
            top += row_height
        return headings, rows, top

    def _column_lefts(self) -> tuple[dict[Column, int], int]:
        """Left edge of every column, photos included, and the width of the sheet."""
        lefts: dict[Column, int] = {}
        left = _MARGIN + _LABEL_WIDTH
        for view, photo in enumerate(self._photos, start=1):
            for kind in ("photo", "depth", "confidence"):
                lefts[kind, view] = left
                left += _column_width(photo) + _COLUMN_GAP
            left += _VIEW_GAP - _COLUMN_GAP
        return lefts, left - _VIEW_GAP + _MARGIN

    def _draw_heading(
        self, sheet: Image.Image, top: int, lefts: Mapping[Column, int], scales: Mapping[Shown, Mapping[Column, Scale]]
    ) -> None:
        """Draws each column's titles above its colour bars, one below the other."""
        draw = ImageDraw.Draw(sheet)
        bar_tops = {shown: top + 34 + _NEXT_BAR * number for number, shown in enumerate(scales)}
        for (kind, view), left in lefts.items():
            if kind == "photo":
                draw.text((left, max(bar_tops.values()) + 32), f"View {view}", _INK, _font(17, bold=True), anchor="ls")
                continue
            for shown, bar_top in bar_tops.items():
                look = LOOKS[shown][kind]
                draw.text((left, bar_top - 7), look.heading.format(view=view), _INK, _font(14, bold=True), anchor="ls")
                _draw_bar(sheet, left, bar_top, _column_width(self._photos[view - 1]), look.colormap, scales[shown][kind, view])

    def _draw_row(self, sheet: Image.Image, row: _Row, top: int, lefts: Mapping[Column, int], scales: Mapping[Column, Scale]) -> None:
        tallest = max(photo.height for photo in self._photos)
        draw, middle = ImageDraw.Draw(sheet), top + tallest // 2
        draw.text((_MARGIN, middle - (10 if row.below_label else 0)), row.label, _INK, _font(14), anchor="lm")
        draw.text((_MARGIN, middle + 10), row.below_label, _FAINT, _font(13), anchor="lm")
        for (kind, view), left in lefts.items():
            photo = self._photos[view - 1]
            cell = photo
            if kind != "photo":
                fractions = scales[kind, view].fractions(row.maps[kind, view])
                cell = Image.fromarray(colored(fractions, LOOKS[row.shown][kind].colormap))
            sheet.paste(cell, (left + (_column_width(photo) - photo.width) // 2, top + (tallest - photo.height) // 2))


def _differences(before: Mapping[Column, np.ndarray], after: Mapping[Column, np.ndarray], unit: float) -> dict[Column, np.ndarray]:
    """After minus before: depths in `unit`, and logarithms of confidences; NaN where either has no finite value."""
    differences = {}
    for (kind, view), one in before.items():
        both = [values.astype(np.float64) for values in (one, after[kind, view])]
        if kind == "confidence":
            both = [np.log(np.where(values > 0, values, np.nan)) for values in both]
        first, second = (np.where(np.isfinite(values), values, np.nan) for values in both)
        differences[kind, view] = (second - first) / (unit if kind == "depth" else 1)
    return differences


def _draw_bar(sheet: Image.Image, left: int, top: int, width: int, colormap: str, scale: Scale) -> None:
    """A colour bar and its numbers, without the middle one if it would touch another."""
    draw, font = ImageDraw.Draw(sheet), _font(12)
    bar = np.broadcast_to(np.linspace(0, 1, width), (12, width))
    sheet.paste(Image.fromarray(colored(bar, colormap)), (left, top))
    ticks = scale.ticks()
    first, middle, last = (font.getlength(text) for text in ticks)
    middle_fits = middle / 2 + max(first, last) + 8 <= width / 2
    for text, offset, anchor in zip(ticks, (0, width // 2, width), ("lt", "mt", "rt"), strict=True):
        if anchor != "mt" or middle_fits:
            draw.text((left + offset, top + 17), text, _INK, font, anchor=anchor)


def _column_width(photo: Image.Image) -> int:
    """As wide as the pictures in it, and wide enough for its heading."""
    return max(photo.width, _LEAST_COLUMN)


def _font(size: int, bold: bool = False) -> "FreeTypeFont":
    """DejaVu Sans, which ships with matplotlib, so that a sheet looks the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", file), size)
