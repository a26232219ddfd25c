"""One picture of what every layer knows: depth and confidence of both views beside the photos, one row per layer.

Depth and confidence have one colour scale per view over all rows, so that rows can be compared. A scale spans the 2nd to
98th percentile; confidence, which DUSt3R computes as 1 + exp(x), is coloured by its logarithm.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from und3rstand_jax.geometry.cameras import ViewGeometry

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Column = tuple[str, int]
"""What a column shows ("photo", "depth", "confidence") and of which view."""

_COLORMAPS = {"depth": "turbo", "confidence": "viridis"}
_PERCENTILES = (2.0, 98.0)
_EXPLANATION = """\
Depth is z in view 1's camera frame, for both views, in the model's own unit. Confidence is coloured on a logarithmic scale.
Each view has one depth scale and one confidence scale for all rows (2nd to 98th percentile; values beyond take the end colours).
Grey: no finite value."""

_INK, _FAINT, _PAPER, _NO_VALUE = (24, 24, 27), (113, 113, 122), (255, 255, 255), (200, 200, 200)
# All in pixels.
_MARGIN, _LABEL_WIDTH, _LEAST_COLUMN = 20, 182, 160
_COLUMN_GAP, _VIEW_GAP, _ROW_GAP = 12, 32, 8
_TITLE_HEIGHT, _HEADING_HEIGHT = 108, 74
_HEADING_EVERY = 12  # rows


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a colour bar spans; `logarithmic` spaces colours by the logarithm."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Float[np.ndarray, " N"], logarithmic: bool) -> "Scale":
        """Spans the middle 96 % of the finite values (positive ones, if logarithmic); never empty."""
        usable = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
        if not usable.size:
            return cls(1.0, 2.0, logarithmic)
        low, high = (float(bound) for bound in np.percentile(usable.astype(np.float64), _PERCENTILES))
        # A constant map spans nothing; a small relative range around it keeps the numbers beside the bar true.
        margin = abs(low) * 1e-3 or 1e-6
        return cls(low, high, logarithmic) if high - low > margin else cls(low - margin, high + margin, logarithmic)

    def fractions(self, values: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """Positions of values along the bar, clipped to 0 and 1; NaN for a value that is not finite or has no logarithm."""
        values = np.asarray(values, np.float64)
        bounds = np.array([self.low, self.high])
        values = np.where(np.isfinite(values), values, np.nan)
        if self.logarithmic:
            values, bounds = np.log(np.where(values > 0, values, np.nan)), np.log(bounds)
        return np.clip((values - bounds[0]) / (bounds[1] - bounds[0]), 0, 1)

    def ticks(self) -> tuple[str, str, str]:
        """Numbers for the left end, the middle and the right end of the bar."""
        middle = (self.low * self.high) ** 0.5 if self.logarithmic else (self.low + self.high) / 2
        return f"{self.low:.3g}", f"{middle:.3g}", f"{self.high:.3g}"


class ContactSheet:
    """Collects a row of maps per layer, at thumbnail size, then draws them all with common scales."""

    def __init__(self, photo1: UInt8[np.ndarray, "H1 W1 3"], photo2: UInt8[np.ndarray, "H2 W2 3"], rows: int, title: str) -> None:
        """A sheet without rows yet.

        Args:
            photo1, photo2: the pixels of the views, which may differ in size.
            rows: number of rows to come; a short sheet gets larger pictures.
            title: printed at the top.
        """
        side = 320 if rows <= 6 else 208
        self._title = title
        self._photos = []
        for photo in (photo1, photo2):
            height, width = photo.shape[:2]
            size = tuple(max(1, round(length * side / max(height, width))) for length in (width, height))
            self._photos.append(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
        self._labels: list[str] = []
        self._maps: dict[Column, list[np.ndarray]] = {(kind, view): [] for view in (1, 2) for kind in _COLORMAPS}

    def add_row(self, label: str, view1: ViewGeometry, view2: ViewGeometry) -> None:
        """Adds one layer's geometry of both views."""
        self._labels.append(label)
        for view, geometry in ((1, view1), (2, view2)):
            depth = geometry.points[..., 2]
            confidence = np.full_like(depth, np.nan) if geometry.confidence is None else geometry.confidence
            # The value nearest to the centre of each thumbnail pixel: averages would mix in outliers and NaNs.
            photo = self._photos[view - 1]
            sides = zip((photo.height, photo.width), depth.shape, strict=True)
            pixels = np.ix_(*(((np.arange(small) + 0.5) * large / small).astype(int) for small, large in sides))
            for kind, values in (("depth", depth), ("confidence", confidence)):
                self._maps[kind, view].append(values[pixels].astype(np.float32))

    def draw(self) -> Image.Image:
        """The sheet as an RGB picture."""
        scales = {
            (kind, view): Scale.of(np.concatenate([np.empty(0), *(values.ravel() for values in maps)]), kind == "confidence")
            for (kind, view), maps in self._maps.items()
        }
        lefts, width = self._column_lefts()
        row_height = max(photo.height for photo in self._photos) + _ROW_GAP
        heading_tops, row_tops, top = [], [], _TITLE_HEIGHT
        for row in range(len(self._labels)):
            if row % _HEADING_EVERY == 0:
                heading_tops.append(top)
                top += _HEADING_HEIGHT
            row_tops.append(top)
            top += row_height
        sheet = Image.new("RGB", (width, top + _MARGIN), _PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((_MARGIN, 16), self._title, _INK, _font(22, bold=True))
        draw.text((_MARGIN, 48), _EXPLANATION, _FAINT, _font(13), spacing=5)
        for heading_top in heading_tops:
            self._draw_heading(sheet, heading_top, lefts, scales)
        for row, row_top in enumerate(row_tops):
            self._draw_row(sheet, row, row_top, lefts, scales)
        return sheet

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the sheet as a PNG file."""
        self.draw().save(path, format="PNG")

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

    def _draw_heading(self, sheet: Image.Image, top: int, lefts: Mapping[Column, int], scales: Mapping[Column, Scale]) -> None:
        """Each column's title above its colour bar and the bar's numbers."""
        draw, font = ImageDraw.Draw(sheet), _font(12)
        bar_top = top + 34
        for (kind, view), left in lefts.items():
            width = _column_width(self._photos[view - 1])
            if kind == "photo":
                draw.text((left, bar_top + 32), f"View {view}", _INK, _font(17, bold=True), anchor="ls")
                continue
            name = f"depth z, view {view}" if kind == "depth" else f"confidence, view {view}"
            draw.text((left, bar_top - 7), name, _INK, _font(14, bold=True), anchor="ls")
            bar = np.broadcast_to(np.linspace(0, 1, width), (12, width))
            sheet.paste(Image.fromarray(_colored(bar, kind)), (left, bar_top))
            ticks = scales[kind, view].ticks()
            first, middle, last = (font.getlength(text) for text in ticks)
            middle_fits = middle / 2 + max(first, last) + 8 <= width / 2
            for text, offset, anchor in zip(ticks, (0, width // 2, width), ("lt", "mt", "rt"), strict=True):
                if anchor != "mt" or middle_fits:
                    draw.text((left + offset, bar_top + 17), text, _INK, font, anchor=anchor)

    def _draw_row(self, sheet: Image.Image, row: int, top: int, lefts: Mapping[Column, int], scales: Mapping[Column, Scale]) -> None:
        tallest = max(photo.height for photo in self._photos)
        ImageDraw.Draw(sheet).text((_MARGIN, top + tallest // 2), self._labels[row], _INK, _font(14), anchor="lm")
        for (kind, view), left in lefts.items():
            photo = self._photos[view - 1]
            cell = photo
            if kind != "photo":
                cell = Image.fromarray(_colored(scales[kind, view].fractions(self._maps[kind, view][row]), kind))
            sheet.paste(cell, (left + (_column_width(photo) - photo.width) // 2, top + (tallest - photo.height) // 2))


def _column_width(photo: Image.Image) -> int:
    """As wide as the pictures in it, and wide enough for its heading."""
    return max(photo.width, _LEAST_COLUMN)


def _colored(fractions: Float[np.ndarray, "H W"], kind: str) -> UInt8[np.ndarray, "H W 3"]:
    import matplotlib

    # A lookup table of 256 colours: matplotlib's own call is several times slower.
    table = matplotlib.colormaps[_COLORMAPS[kind]](np.arange(256), bytes=True)[:, :3]
    colors = table[np.rint(np.nan_to_num(fractions) * 255).astype(np.uint8)]
    return np.where(np.isnan(fractions)[..., None], np.array(_NO_VALUE, np.uint8), colors)


def _font(size: int, bold: bool = False) -> "FreeTypeFont":
    """DejaVu Sans, which matplotlib ships, so that a sheet looks the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", file), size)
