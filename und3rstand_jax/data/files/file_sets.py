"""Sets of views of a data set on disk: opened by kind, read, and brought to the shape of a batch as DUSt3R crops and resizes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from und3rstand_jax.data.files.blendedmvs import open_blendedmvs
from und3rstand_jax.data.files.co3d import open_co3d
from und3rstand_jax.data.files.pairs_json import open_pairs_json
from und3rstand_jax.data.records import Shape, Split, UnreadableSet, View, ViewSet, things_of
from und3rstand_jax.geometry.cameras import principal_point_fault
from und3rstand_jax.support.errors import DataError, OptionError
from und3rstand_jax.support.text import printable

JITTER = 16
"""DUSt3R's crop jitter enlarges a view by fewer pixels than this before cropping."""


@runtime_checkable
class ViewFiles(Protocol):
    """One view on disk."""

    @property
    def image(self) -> Path:
        """The photo, whose path names the view in messages."""
        ...

    def read(self) -> View:
        """The view as stored in its files, neither cropped nor resized; camera in float64. Raises UnreadableSet."""
        ...


@runtime_checkable
class Listing(Protocol):
    """The sets of one split of a data set: paths and index arrays, small enough to send to every worker process."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, one line each."""
        ...

    def __len__(self) -> int: ...

    def files(self, index: int) -> tuple[ViewFiles, ...]:
        """The files of a set's views. Reads none of them."""
        ...


_OPENERS: dict[str, Callable[[Path, Split, int], Listing]] = {"co3d": open_co3d, "blendedmvs": open_blendedmvs, "pairs": open_pairs_json}

KINDS: tuple[str, ...] = tuple(_OPENERS)


def open_sets(kind: str, root: Path, split: Split, views: int = 2) -> "FileSets":
    """The sets of one split of the data set at `root`.

    Args:
        kind: one of KINDS.
        root: the data set's folder.
        split: "train", or "val" for the held-out sets.
        views: number of views in a set, two for pairs.

    Raises:
        DataError: the folder does not contain such a data set, its list is faulty, or the split is empty.
        OptionError: there is no such kind, or it has no sets of this many views.
    """
    if kind not in _OPENERS:
        raise OptionError(f"{kind!r} is not a kind of data set; expected one of {', '.join(KINDS)}")
    name = f"{kind}:{root}"
    listing = _OPENERS[kind](Path(root), split, views)
    if not len(listing):
        hint = "; name other data to validate on with --val-data" if split == "val" else ""
        raise DataError(f"{name} has no {things_of(views)} for the split {split!r} ({'; '.join(listing.notes)}){hint}")
    return FileSets(name, listing, views)


@dataclasses.dataclass(frozen=True)
class FileSets:
    """The sets of one split of a data set on disk; `name` is KIND:DIR, and `views` is the number of views in each set."""

    name: str
    listing: Listing
    views: int = 2

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, one line each. Commands show them."""
        return self.listing.notes

    def set_name(self, index: int) -> str:
        """A set's name in messages: the paths of its photos."""
        *most, last = (str(files.image) for files in self.listing.files(index))
        return printable(f"{', '.join(most)} and {last}")

    def read(self, index: int) -> ViewSet:
        """One set as stored in its files: views of any size, cameras in float64. Raises UnreadableSet."""
        return tuple(files.read() for files in self.listing.files(index))

    def load(self, index: int, shape: Shape, rng: np.random.Generator | None) -> ViewSet:
        """One set at exactly `shape` (H, W): `read`, then `fit`. Raises UnreadableSet."""
        return self.fit(index, self.read(index), shape, rng)

    def fit(self, index: int, views: ViewSet, shape: Shape, rng: np.random.Generator | None) -> ViewSet:
        """What `read` returned for `index`, prepared for training: cropped by `crop_view`, geometry in float32.

        The world's origin moves to camera 1 before the conversion from float64: in national grid coordinates, float32 does not
        resolve centimetres.

        Raises:
            UnreadableSet: a principal point is far off its photo's centre, or no pixel of a crop has a known depth.
        """
        fitted = []
        for view, files in zip(views, self.listing.files(index), strict=True):
            fault = principal_point_fault(view.intrinsics, *view.image.shape[:2])
            if fault:
                raise UnreadableSet(f"{files.image}: {fault}")
            cropped = crop_view(view, shape, rng)
            if not cropped.depth.any():
                raise UnreadableSet(f"{files.image}: no pixel of its crop to {shape[1]}×{shape[0]} has a known depth")
            cam2world = cropped.cam2world.copy()
            cam2world[:3, 3] -= views[0].cam2world[:3, 3]
            image, depth = np.ascontiguousarray(cropped.image), np.ascontiguousarray(cropped.depth, np.float32)
            fitted.append(View(image, depth, cropped.intrinsics.astype(np.float32), cam2world.astype(np.float32)))
        return tuple(fitted)


def crop_view(view: View, shape: Shape, rng: np.random.Generator | None = None) -> View:
    """The view's centre at exactly `shape` (H, W), in three steps.

    1. Crop symmetrically around the principal point, as large as the photo allows.
    2. Resize, keeping the aspect ratio, to the smallest size that covers `shape`: Lanczos down, bicubic up, nearest for depth.
       With `rng`, DUSt3R's crop jitter: cover `shape` + n in both directions, n drawn uniformly from 0 to 15 pixels.
    3. Crop to `shape` around the centre.

    Jitter thus changes only the scale. Like DUSt3R's, the crop stays centred on the principal point, which the network takes to be the
    image's centre. The result has `shape` whatever the photo's orientation: a landscape shape takes the middle of a portrait photo.

    Intrinsics scale about the corner of the first pixel, which is at (-0.5, -0.5) since pixel centres are at integers. Each axis
    scales by the ratio of the sizes in whole pixels, which is what the resize actually does.
    """
    height, width = view.image.shape[:2]
    x, y = view.intrinsics[:2, 2].astype(np.float64) + 0.5  # of the principal point, from the photo's corner
    margin_x, margin_y = min(x, width - x), min(y, height - y)
    view = _crop(view, round(y - margin_y), round(y + margin_y), round(x - margin_x), round(x + margin_x))

    grown = 0 if rng is None else int(rng.integers(JITTER))
    least_height, least_width = shape[0] + grown, shape[1] + grown
    height, width = view.image.shape[:2]
    scale = max(least_height / height, least_width / width)
    height, width = max(least_height, round(height * scale)), max(least_width, round(width * scale))
    view = _resize(view, height, width)

    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    return _crop(view, top, top + shape[0], left, left + shape[1])


def _crop(view: View, top: int, bottom: int, left: int, right: int) -> View:
    intrinsics = np.array(view.intrinsics, np.float64)
    intrinsics[:2, 2] -= left, top
    return View(view.image[top:bottom, left:right], view.depth[top:bottom, left:right], intrinsics, view.cam2world)


def _resize(view: View, height: int, width: int) -> View:
    old_height, old_width = view.image.shape[:2]
    if (height, width) == (old_height, old_width):
        return view
    resampling = Image.Resampling.LANCZOS if height < old_height or width < old_width else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(view.image).resize((width, height), resampling))
    # Each new pixel takes the depth of the old pixel that its centre falls in.
    rows, columns = (((np.arange(new) + 0.5) * (old / new)).astype(np.intp) for new, old in ((height, old_height), (width, old_width)))
    to_corner, back = np.eye(3), np.eye(3)
    to_corner[:2, 2], back[:2, 2] = 0.5, -0.5
    scale: Float[np.ndarray, "3 3"] = np.diag((width / old_width, height / old_height, 1.0))
    return View(image, view.depth[rows[:, None], columns], back @ scale @ to_corner @ view.intrinsics, view.cam2world)
