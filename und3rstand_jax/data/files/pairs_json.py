"""`pairs:DIR`: a user's own photos, depth and cameras, listed in pairs.json or pairs.jsonl (the format is in docs/data.md).

Whatever can be checked without opening a photo is checked when the list is read, and all faults are reported together.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import annotated_types
import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.data.files.reading import found_in, looked_up, read_npy, read_png16, scaled, to_view
from und3rstand_jax.data.records import Split, View
from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault
from und3rstand_jax.support.documents import checked, json_lines, parse_json, read_json, read_text
from und3rstand_jax.support.errors import DataError

NAMES = ("pairs.json", "pairs.jsonl")

DEPTH_SCALES = {".png": 0.001, ".npy": 1.0}
"""Depth files by suffix, and the default of `depth_scale`: a PNG holds millimetres, an .npy file the unit of cam2world."""

_VIEW = "a view has image, depth, K (3×3), cam2world (4×4), and may have depth_scale"

_LARGEST = 2**30  # bytes of a list

_VAL_EVERY = 10

_FAULTS_SHOWN = 20


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
    """All views of a list, as columns, and the pairs of one split, each the indices of its two views."""

    root: Path
    images: tuple[str, ...]
    depths: tuple[str, ...]
    depth_scales: Float[np.ndarray, " views"]
    intrinsics: Float[np.ndarray, "views 3 3"]
    cam2world: Float[np.ndarray, "views 4 4"]
    pairs: Int[np.ndarray, "pairs 2"]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[JsonView, JsonView]:
        """The two views of a pair."""
        view1, view2 = (
            JsonView(
                self.root / self.images[view],
                self.root / self.depths[view],
                float(self.depth_scales[view]),
                self.intrinsics[view],
                self.cam2world[view],
            )
            for view in self.pairs[index].tolist()
        )
        return view1, view2


def open_pairs_json(root: Path, split: Split, views: int = 2) -> JsonListing:
    """The pairs of the list in `root` that belong to the split: as their entries say, or else every 10th pair of views is "val".

    Raises:
        DataError: there is no list or there are two, it is not JSON, or entries are faulty; the message has the first 20 faults.
    """
    path, table, entries = _read_list(root)
    checker = _Checker(root)
    named = {name: checker.view(f"view {name!r}", raw) for name, raw in table.items()}
    pairs = [pair for where, raw in entries if (pair := checker.pair(where, raw, named))]
    unsplit = sum(pair.split is None for pair in pairs)
    if 0 < unsplit < len(pairs):
        checker.faults.append(f'{unsplit} pairs have no "split" while others have one: give it to all or to none')
    count = len(checker.faults)
    if count:
        more = [f"… and {count - _FAULTS_SHOWN} more"] if count > _FAULTS_SHOWN else []
        raise DataError(f"{path} has {count} fault{'s' * (count > 1)}:", *checker.faults[:_FAULTS_SHOWN], *more)
    if unsplit:
        # Both orders of two views share a number, so that none is trained on in one order and held out in the other.
        numbers: dict[frozenset[int], int] = {}
        held_out = [numbers.setdefault(frozenset(pair.views), len(numbers)) % _VAL_EVERY == _VAL_EVERY - 1 for pair in pairs]
    else:
        held_out = [pair.split == "val" for pair in pairs]
    chosen = [pair.views for pair, is_held_out in zip(pairs, held_out, strict=True) if is_held_out == (split == "val")]
    listed = checker.views
    return JsonListing(
        root,
        images=tuple(view.image for view in listed),
        depths=tuple(view.depth for view in listed),
        depth_scales=np.array([view.scale for view in listed], np.float64),
        intrinsics=np.array([view.K for view in listed], np.float64).reshape(-1, 3, 3),
        cam2world=np.array([view.cam2world for view in listed], np.float64).reshape(-1, 4, 4),
        pairs=np.array(chosen, np.int32).reshape(-1, 2),
        notes=(f"{len(pairs)} pairs of {len(listed)} views are listed, {len(chosen)} of them for {split!r}",),
    )


_Row3: TypeAlias = Annotated[list[float], annotated_types.Len(3, 3)]
_Row4: TypeAlias = Annotated[list[float], annotated_types.Len(4, 4)]


@dataclasses.dataclass(frozen=True)
class _View:
    """A view as the list has it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image: str
    depth: str
    K: Annotated[list[_Row3], annotated_types.Len(3, 3)]
    cam2world: Annotated[list[_Row4], annotated_types.Len(4, 4)]
    depth_scale: Annotated[float, annotated_types.Interval(gt=0, lt=float("inf"))] | None = None

    @property
    def scale(self) -> float:
        """The depth_scale, or the default for files of its kind."""
        return DEPTH_SCALES[Path(self.depth).suffix.lower()] if self.depth_scale is None else self.depth_scale


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A pair as the list has it; a view is its name or written out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    view1: Any
    view2: Any
    split: Split | None = None


@dataclasses.dataclass(frozen=True)
class _Table:
    """A list with named views; views and pairs are checked one by one."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    pairs: list[Any]
    views: dict[str, Any] = dataclasses.field(default_factory=dict)


def _read_list(root: Path) -> tuple[Path, Mapping[str, object], list[tuple[str, object]]]:
    """The list's path, its table of named views, and its entries, each with what messages call it."""
    paths = [root / name for name in NAMES if os.path.lexists(root / name)]
    if len(paths) != 1:
        found = f"both are in {root}" if paths else found_in(root)
        raise DataError(f"pairs:{root}: expected {NAMES[0]} or {NAMES[1]} (format: docs/data.md); {found}")
    [path] = paths
    if path.suffix == ".jsonl":
        lines = json_lines(read_text(path, DataError, largest=_LARGEST))
        return path, {}, [(f"line {number}", parse_json(line, f"{path}: line {number}", object, DataError)) for number, line in lines]
    expected = 'expected a list of pairs, or {"views": {name: view}, "pairs": [pairs]}'
    content = read_json(path, object, DataError, expected, _LARGEST)
    table = _Table(content) if isinstance(content, list) else checked(content, str(path), _Table, DataError, expected)
    return path, table.views, [(f"pair {number}", entry) for number, entry in enumerate(table.pairs)]


class _Pair(NamedTuple):
    """A checked pair: indices of its views, and its split if the list gives one."""

    views: tuple[int, int]
    split: Split | None


class _Checker:
    """Checks entries one by one; collects the views and everything that is wrong. A view given twice is one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.views: list[_View] = []
        self.faults: list[str] = []
        self._known: dict[str, int | None] = {}

    def view(self, where: str, raw: object) -> int | None:
        """The index of a view; None if it is faulty, which is reported the first time only."""
        key = json.dumps(raw, sort_keys=True)
        if key not in self._known:
            self._known[key] = None
            try:
                view = parse_json(key, where, _View, DataError, _VIEW)
            except DataError as error:
                self.faults.append(str(error))
                return None
            faults = [f"{where}: {fault}" for fault in _view_faults(self.root, view)]
            self.faults += faults
            if not faults:
                self._known[key] = len(self.views)
                self.views.append(view)
        return self._known[key]

    def pair(self, where: str, raw: object, named: Mapping[str, int | None]) -> _Pair | None:
        """A pair; None if it is faulty."""
        written = {"view1": raw[0], "view2": raw[1]} if isinstance(raw, list) and len(raw) == 2 else raw
        try:
            entry = checked(written, where, _Entry, DataError, 'expected {"view1": …, "view2": …} or ["name of a view", "name of a view"]')
        except DataError as error:
            self.faults.append(str(error))
            return None
        views = []
        for number, side in enumerate((entry.view1, entry.view2), start=1):
            if not isinstance(side, str):
                views.append(self.view(f"{where}, view{number}", side))
                continue
            if side not in named:
                self.faults.append(f'{where}, view{number}: there is no {side!r} in "views" (it names {len(named)} views)')
            views.append(named.get(side))
        view1, view2 = views
        return None if view1 is None or view2 is None else _Pair((view1, view2), entry.split)


def _view_faults(root: Path, view: _View) -> Iterator[str]:
    """What no type says."""
    if Path(view.depth).suffix.lower() not in DEPTH_SCALES:
        yield f"depth {view.depth} is neither .png (16 bits) nor .npy"
    for key, path in (("image", view.image), ("depth", view.depth)):
        # Unlike Path.is_file, which raises for a path that is too long.
        if not os.path.isfile(root / path):
            yield f"there is no {key} {root / path}"
    for key, fault in (("K", intrinsics_fault(np.array(view.K))), ("cam2world", pose_fault(np.array(view.cam2world)))):
        if fault:
            yield f"{key} {fault}"
