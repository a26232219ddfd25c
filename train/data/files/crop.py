"""From a view of any size to one of exactly the size a batch has, as DUSt3R crops and resizes; intrinsics follow."""

import numpy as np
from PIL import Image

from train.data.records import Shape, View

JITTER = 16


def crop_view(view: View, shape: Shape, rng: np.random.Generator | None = None) -> View:
    """The view's centre at exactly `shape` (H, W), in three steps.

    1. A crop symmetric around the principal point, as large as the photo allows.
    2. A resize that keeps the proportions, to the least size that covers `shape`: Lanczos down, bicubic up, depth nearest.
       With `rng`, DUSt3R's crop jitter: it covers `shape` + n in both directions, n drawn uniformly from 0 to 15 pixels.
    3. A crop to `shape` around the centre.

    The jitter is thus one of scale: like DUSt3R's, the crop stays on the principal point, which the network takes to be the
    image's centre. `shape` is met whatever the photo's orientation: of an upright photo, a lying shape takes the middle.

    Intrinsics scale about the corner of the first pixel: centres lie at integers, so it is at (-0.5, -0.5). Each axis scales by the
    ratio of the sizes in whole pixels, which is what the resize really does.
    """
    height, width = view.image.shape[:2]
    centred = _crop(view, *_symmetric(view.intrinsics[1, 2], height), *_symmetric(view.intrinsics[0, 2], width))
    grown = 0 if rng is None else int(rng.integers(JITTER))
    return _central_crop(_cover(centred, (shape[0] + grown, shape[1] + grown)), shape)


def _symmetric(principal: float, side: int) -> tuple[int, int]:
    """First pixel, and one past the last, of the longest run around the principal point."""
    corner = float(principal) + 0.5
    margin = min(corner, side - corner)
    return round(corner - margin), round(corner + margin)


def _cover(view: View, shape: Shape) -> View:
    height, width = view.image.shape[:2]
    scale = max(shape[0] / height, shape[1] / width)
    return _resize(view, max(shape[0], round(height * scale)), max(shape[1], round(width * scale)))


def _resize(view: View, height: int, width: int) -> View:
    old_height, old_width = view.image.shape[:2]
    if (height, width) == (old_height, old_width):
        return view
    filter_ = Image.Resampling.LANCZOS if height < old_height or width < old_width else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(view.image).resize((width, height), filter_))
    rows, columns = _nearest(height, old_height), _nearest(width, old_width)
    return View(image, view.depth[rows[:, None], columns], _scaled(view.intrinsics, height / old_height, width / old_width), view.cam2world)


def _nearest(size: int, old_size: int) -> np.ndarray:
    """For each new pixel the old one that its centre lies in."""
    return ((np.arange(size) + 0.5) * (old_size / size)).astype(np.intp)


def _scaled(intrinsics: np.ndarray, scale_y: float, scale_x: float) -> np.ndarray:
    to_corner, back = np.eye(3), np.eye(3)
    to_corner[:2, 2], back[:2, 2] = 0.5, -0.5
    return back @ np.diag((scale_x, scale_y, 1.0)) @ to_corner @ intrinsics


def _central_crop(view: View, shape: Shape) -> View:
    top, left = ((side - wanted) // 2 for side, wanted in zip(view.image.shape, shape, strict=False))
    return _crop(view, top, top + shape[0], left, left + shape[1])


def _crop(view: View, top: int, bottom: int, left: int, right: int) -> View:
    intrinsics = np.array(view.intrinsics, np.float64)
    intrinsics[:2, 2] -= left, top
    return View(view.image[top:bottom, left:right], view.depth[top:bottom, left:right], intrinsics, view.cam2world)
