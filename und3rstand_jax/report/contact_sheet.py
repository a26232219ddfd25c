"""One picture of what every layer knows: depth and confidence of both views beside the photos, a row a layer.

Depth and confidence have one colour scale per view over all rows, so that rows can be compared; the scale spans the
2nd to 98th percentile, and confidence, which is 1 + exp of what the network says, is coloured by its logarithm.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Column = tuple[str, int]
"""What a column shows ("photo", "depth", "confidence") and of which view."""


COLUMNS: tuple[Column, ...] = (("depth", 1), ("confidence", 1), ("depth", 2), ("confidence", 2))


_COLORMAPS = {"depth": "turbo", "confidence": "viridis"}


_PERCENTILES = (2.0, 98.0)


_EXPLANATION = """\
Depth is z in the camera frame of view 1, for both views, in the model's own unit. Confidence is coloured on a logarithmic scale.
Each view has one scale for depth and one for confidence, for all rows (2nd to 98th percentile; the end colours stand for all beyond).
Grey: no finite value."""


_INK, _FAINT, _PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)


_NO_VALUE = np.array((200, 200, 200), np.uint8)


_LABEL_WIDTH = 182


_COLUMN_GAP = 12


_ROW_GAP = 8


_LEAST_COLUMN = 160


_VIEW_GAP = 32


_MARGIN = 20


_HEADING_EVERY = 12


_HEADING_HEIGHT = 74


_TITLE_HEIGHT = 108


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
        # A constant map has no span; a relative one around it keeps the numbers beside the bar true.
        margin = abs(low) * 1e-3 or 1e-6
        return cls(low, high, logarithmic) if high - low > margin else cls(low - margin, high + margin, logarithmic)

    def fractions(self, values: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """Where values lie on the bar, from 0 to 1, clipped; what has no place (not finite, no logarithm) is NaN."""
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
    """Collects one row of maps per layer, at thumbnail size, then draws them all with common scales."""

    def __init__(self, photo1: UInt8[np.ndarray, "H W 3"], photo2: UInt8[np.ndarray, "H2 W2 3"], rows: int, title: str) -> None:
        """A sheet without rows yet.

        Args:
            photo1, photo2: the pixels the views were made from; the views may differ in size.
            rows: how many rows are to come; a short sheet gets larger pictures.
            title: printed at the top.
        """
        self._side = 320 if rows <= 6 else 208
        self._title = title
        self._photos = [_shrink_photo(photo, self._side) for photo in (photo1, photo2)]
        self._labels: list[str] = []
        self._maps: dict[Column, list[np.ndarray]] = {column: [] for column in COLUMNS}

    def add_row(self, label: str, prediction1: Mapping[str, Any], prediction2: Mapping[str, Any]) -> None:
        """Adds a row from the predictions for both views: `pts3d` (H, W, 3) and, where there is one, `conf` (H, W)."""
        self._labels.append(label)
        for view, prediction in ((1, prediction1), (2, prediction2)):
            depth = np.asarray(prediction["pts3d"])[..., 2]
            confidence = np.asarray(prediction["conf"]) if "conf" in prediction else np.full_like(depth, np.nan)
            for kind, values in (("depth", depth), ("confidence", confidence)):
                self._maps[kind, view].append(_sample(values, self._photos[view - 1].size))

    def draw(self) -> Image.Image:
        """The sheet as an RGB picture."""
        scales = {(kind, view): Scale.of(_pooled(maps), kind == "confidence") for (kind, view), maps in self._maps.items()}
        lefts, width = self._column_lefts()
        row_height = max(photo.height for photo in self._photos) + _ROW_GAP
        tops, height = _row_tops(len(self._labels), row_height)
        sheet = Image.new("RGB", (width, height), _PAPER)
        self._draw_title(sheet)
        for top in (tops[index] - _HEADING_HEIGHT for index in range(0, len(tops), _HEADING_EVERY)):
            self._draw_heading(sheet, top, lefts, scales)
        for index, top in enumerate(tops):
            self._draw_row(sheet, index, top, lefts, scales)
        return sheet

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the sheet as a PNG file."""
        self.draw().save(path, format="PNG")

    def _column_lefts(self) -> tuple[dict[Column, int], int]:
        """Left edge of every column, photos included, and the width of the sheet."""
        lefts, left = {}, _MARGIN + _LABEL_WIDTH
        for view, photo in enumerate(self._photos, start=1):
            for kind in ("photo", "depth", "confidence"):
                lefts[kind, view] = left
                left += _column_width(photo) + _COLUMN_GAP
            left += _VIEW_GAP - _COLUMN_GAP
        return lefts, left - _VIEW_GAP + _MARGIN

    def _draw_title(self, sheet: Image.Image) -> None:
        draw = ImageDraw.Draw(sheet)
        draw.text((_MARGIN, 16), self._title, _INK, _font(22, bold=True))
        draw.text((_MARGIN, 48), _EXPLANATION, _FAINT, _font(13), spacing=5)

    def _draw_heading(self, sheet: Image.Image, top: int, lefts: Mapping[Column, int], scales: Mapping[Column, Scale]) -> None:
        draw = ImageDraw.Draw(sheet)
        for (kind, view), left in lefts.items():
            width = _column_width(self._photos[view - 1])
            bar_top = top + 34
            if kind == "photo":
                draw.text((left, bar_top + 32), f"View {view}", _INK, _font(17, bold=True), anchor="ls")
                continue
            name = f"depth z, view {view}" if kind == "depth" else f"confidence, view {view}"
            draw.text((left, bar_top - 7), name, _INK, _font(14, bold=True), anchor="ls")
            bar = np.broadcast_to(np.linspace(0, 1, width), (12, width))
            sheet.paste(Image.fromarray(_colored(bar, kind)), (left, bar_top))
            _draw_ticks(draw, scales[kind, view].ticks(), (left, bar_top + 17), width)

    def _draw_row(self, sheet: Image.Image, index: int, top: int, lefts: Mapping[Column, int], scales: Mapping[Column, Scale]) -> None:
        tallest = max(photo.height for photo in self._photos)
        ImageDraw.Draw(sheet).text((_MARGIN, top + tallest // 2), self._labels[index], _INK, _font(14), anchor="lm")
        for (kind, view), left in lefts.items():
            photo = self._photos[view - 1]
            cell = photo
            if kind != "photo":
                cell = Image.fromarray(_colored(scales[kind, view].fractions(self._maps[kind, view][index]), kind))
            sheet.paste(cell, (left + (_column_width(photo) - photo.width) // 2, top + (tallest - photo.height) // 2))


def _draw_ticks(draw: ImageDraw.ImageDraw, texts: tuple[str, str, str], corner: tuple[int, int], width: int) -> None:
    """A bar's three numbers under it; the middle one only where it does not touch the others."""
    font = _font(12)
    left, middle, right = (font.getlength(text) for text in texts)
    fits = middle / 2 + max(left, right) + 8 <= width / 2
    for text, offset, anchor in zip(texts, (0, width // 2, width), ("lt", "mt", "rt"), strict=True):
        if anchor != "mt" or fits:
            draw.text((corner[0] + offset, corner[1]), text, _INK, font, anchor=anchor)


def _column_width(photo: Image.Image) -> int:
    """As wide as the pictures in it, and wide enough for its heading."""
    return max(photo.width, _LEAST_COLUMN)


def _row_tops(rows: int, row_height: int) -> tuple[list[int], int]:
    """Top of every row, a heading above every twelfth, and the height of the sheet."""
    tops, top = [], _TITLE_HEIGHT
    for index in range(rows):
        top += _HEADING_HEIGHT if index % _HEADING_EVERY == 0 else 0
        tops.append(top)
        top += row_height
    return tops, top + _MARGIN


def _shrink_photo(photo: UInt8[np.ndarray, "H W 3"], side: int) -> Image.Image:
    """The photo with its longer side brought to `side`."""
    height, width = photo.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)


def _sample(values: Float[np.ndarray, "H W"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """The values nearest to the centres of `size` (width, height) cells: averages would mix in outliers and NaNs."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size[::-1], values.shape, strict=True))
    return values[np.ix_(rows, columns)].astype(np.float32)


def _pooled(maps: list[np.ndarray]) -> Float[np.ndarray, " N"]:
    return np.concatenate([values.ravel() for values in maps]) if maps else np.empty(0, np.float32)


def _colored(fractions: Float[np.ndarray, "H W"], kind: str) -> UInt8[np.ndarray, "H W 3"]:
    import matplotlib

    # The bytes of 256 colours, indexed: matplotlib's own call is several times slower.
    table = matplotlib.colormaps[_COLORMAPS[kind]](np.arange(256), bytes=True)[:, :3]
    colors = table[np.rint(np.nan_to_num(fractions) * 255).astype(np.uint8)]
    return np.where(np.isnan(fractions)[..., None], _NO_VALUE, colors)


def _font(size: int, bold: bool = False) -> "FreeTypeFont":
    """DejaVu Sans, which matplotlib brings along, so that a sheet looks the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", file), size)
