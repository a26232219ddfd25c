"""From a view of any size to one of exactly the size a batch has, as DUSt3R crops and resizes; intrinsics follow.

Pairs of a data set on disk, cropped to a batch's size.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from und3rstand_jax.data.files.blendedmvs import open_blendedmvs
from und3rstand_jax.data.files.co3d import open_co3d
from und3rstand_jax.data.files.own_pairs import open_own_pairs
from und3rstand_jax.data.files.reading import Listing, Split, ViewFiles
from und3rstand_jax.data.records import Pair, Shape, UnreadablePair, View
from und3rstand_jax.geometry.cameras import principal_point_fault
from und3rstand_jax.support.errors import UserError

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


_OPENERS: dict[str, Callable[[Path, Split], Listing]] = {"co3d": open_co3d, "blendedmvs": open_blendedmvs, "pairs": open_own_pairs}


KINDS: tuple[str, ...] = tuple(_OPENERS)


@dataclasses.dataclass(frozen=True)
class FilePairs:
    """The pairs of one split of a data set on disk. `notes` says what was counted or left out when the list was made."""

    name: str
    listing: Listing

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, a line each; whoever uses the source is to show them."""
        return self.listing.notes

    def pair_name(self, index: int) -> str:
        """How messages call a pair: by its photos."""
        files1, files2 = self.listing.files(index)
        return f"{files1.image} and {files2.image}"

    def read(self, index: int) -> Pair:
        """One pair as its files have it: views of any size, cameras in float64. Raises UnreadablePair."""
        files1, files2 = self.listing.files(index)
        return Pair(files1.read(), files2.read())

    def load(self, index: int, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """One pair at exactly `shape` (H, W); all but the photos in float32. Raises UnreadablePair, see `read` and `fit`."""
        return self.fit(index, self.read(index), shape, rng)

    def fit(self, index: int, pair: Pair, shape: Shape, rng: np.random.Generator | None) -> Pair:
        """What `read` gave for `index` as training takes it: see `crop_view`.

        The world's origin moves into camera 1 before float64 is given up: in coordinates of a country, float32 has no centimetres.

        Raises:
            UnreadablePair: a principal point is far off its photo's centre, or a crop holds no pixel of known depth.
        """
        origin = pair.view1.cam2world[:3, 3]
        files1, files2 = self.listing.files(index)
        return Pair(_fit(pair.view1, files1, shape, rng, origin), _fit(pair.view2, files2, shape, rng, origin))


def open_pairs(kind: str, root: Path, split: Split) -> FilePairs:
    """The pairs of one split of the data set at `root`.

    Args:
        kind: one of KINDS.
        root: the data set's folder.
        split: "train", or "val" for those kept for evaluation.

    Raises:
        UserError: the kind is unknown, the folder does not hold such a data set, its list is faulty, or the split is empty.
    """
    if kind not in _OPENERS:
        raise UserError(f"{kind!r} is not a kind of data set; expected one of {', '.join(KINDS)}")
    name = f"{kind}:{root}"
    listing = _OPENERS[kind](Path(root), split)
    if not len(listing):
        hint = "; name other data to validate on with --val-data" if split == "val" else ""
        raise UserError(f"{name} has no pairs for the split {split!r} ({'; '.join(listing.notes)}){hint}")
    return FilePairs(name, listing)


def _fit(view: View, files: ViewFiles, shape: Shape, rng: np.random.Generator | None, origin: np.ndarray) -> View:
    fault = principal_point_fault(view.intrinsics, *view.image.shape[:2])
    if fault:
        raise UnreadablePair(f"{files.image}: {fault}")
    cropped = crop_view(view, shape, rng)
    if not cropped.depth.any():
        raise UnreadablePair(f"{files.image}: no pixel of its crop to {shape[1]}×{shape[0]} has a known depth")
    cam2world = cropped.cam2world.copy()
    cam2world[:3, 3] -= origin
    return View(
        np.ascontiguousarray(cropped.image),
        np.ascontiguousarray(cropped.depth, np.float32),
        cropped.intrinsics.astype(np.float32),
        cam2world.astype(np.float32),
    )
