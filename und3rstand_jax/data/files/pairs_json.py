"""`pairs:DIR`: a user's own photos, depth and cameras, listed in pairs.json or pairs.jsonl (docs/data.md describes the format)."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.data.files.listed_sets import Listed, read_listed
from und3rstand_jax.data.files.reading import looked_up, read_npy, read_png16, scaled, to_view
from und3rstand_jax.data.records import Split, View, things_of
from und3rstand_jax.support.errors import DataError

_VAL_EVERY = 10


@dataclasses.dataclass(frozen=True)
class JsonView:
    """One view with its camera; `depth_scale` is the unit of cam2world per stored step of depth."""

    image: Path
    depth: Path
    depth_scale: float
    intrinsics: Float[np.ndarray, "3 3"]
    cam2world: Float[np.ndarray, "4 4"]

    def read(self) -> View:
        """The view. Raises UnreadableSet."""
        if self.depth.suffix.lower() == ".png":
            depth = looked_up(read_png16(self.depth), np.arange(2**16) * self.depth_scale, self.depth)
        else:
            depth = scaled(read_npy(self.depth), self.depth_scale, self.depth)
        return to_view(self.image, self.depth, depth, self.intrinsics, self.cam2world)


@dataclasses.dataclass(frozen=True, eq=False)
class JsonListing:
    """All views of a list, as columns, and the sets of one split, each the indices of its V views."""

    root: Path
    images: tuple[str, ...]
    depths: tuple[str, ...]
    depth_scales: Float[np.ndarray, " views"]
    intrinsics: Float[np.ndarray, "views 3 3"]
    cam2world: Float[np.ndarray, "views 4 4"]
    sets: Int[np.ndarray, "sets V"]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sets)

    def files(self, index: int) -> tuple[JsonView, ...]:
        """The views of a set."""
        return tuple(
            JsonView(
                self.root / self.images[view],
                self.root / self.depths[view],
                float(self.depth_scales[view]),
                self.intrinsics[view],
                self.cam2world[view],
            )
            for view in self.sets[index].tolist()
        )


def open_pairs_json(root: Path, split: Split, views: int = 2) -> JsonListing:
    """The listed sets that belong to the split: as their entries say, or else every 10th set of views is "val".

    Of sets with more than `views` views, the first ones are used; sets with fewer are left out and counted in the notes.

    Raises:
        DataError: there is no list or there are two, it is not JSON, entries are faulty, or all of them have too few views; the message
            reports the first 20 faults.
    """
    listed = read_listed(root)
    usable = [one for one in listed.sets if len(one.views) >= views]
    if listed.sets and not usable:
        raise DataError(_too_small(listed, views))
    sets = [one.views[:views] for one in usable]
    if any(one.split for one in usable):
        held_out = [one.split == "val" for one in usable]
    else:
        # All orders of the same views share a number, so that no set is trained on in one order and held out in another.
        numbers: dict[frozenset[int], int] = {}
        held_out = [numbers.setdefault(frozenset(one), len(numbers)) % _VAL_EVERY == _VAL_EVERY - 1 for one in sets]
    chosen = [one for one, is_held_out in zip(sets, held_out, strict=True) if is_held_out == (split == "val")]
    return JsonListing(
        root,
        images=tuple(view.image for view in listed.views),
        depths=tuple(view.depth for view in listed.views),
        depth_scales=np.array([view.scale for view in listed.views], np.float64),
        intrinsics=np.array([view.K for view in listed.views], np.float64).reshape(-1, 3, 3),
        cam2world=np.array([view.cam2world for view in listed.views], np.float64).reshape(-1, 4, 4),
        sets=np.array(chosen, np.int32).reshape(-1, views),
        notes=_notes(listed, views, f"{len(chosen)} of them for {split!r}"),
    )


def _notes(listed: Listed, views: int, share: str) -> tuple[str, ...]:
    sizes = np.array([len(one.views) for one in listed.sets], int)
    of = "of" if views == 2 else "among"
    notes = [f"{(sizes >= views).sum()} {things_of(views)} {of} {len(listed.views)} views are listed, {share}"]
    if (sizes > views).any():
        notes.append(f"{(sizes > views).sum()} of the listed sets have more than {views} views, and give their first {views}")
    if (sizes < views).any():
        notes.append(f"{(sizes < views).sum()} listed pairs and sets have fewer than {views} views and are left out")
    return tuple(notes)


def _too_small(listed: Listed, views: int) -> str:
    largest = max(len(one.views) for one in listed.sets)
    pairs = sum(len(one.views) == 2 for one in listed.sets)
    found = f"{pairs} pairs" if largest == 2 else f"{pairs} pairs and {len(listed.sets) - pairs} sets, of at most {largest} views"
    remedy = f'list sets of {views} under "sets" (format: docs/data.md), or ask for --views {largest}'
    return f"{listed.path}: expected sets of {views} views or more, found {found}: {remedy}"
