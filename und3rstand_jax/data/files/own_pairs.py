"""Reads and checks pairs.json or pairs.jsonl: all that can be told without opening a photo is told at once.

Pairs of people's own: photos, depth and cameras in files of any layout, listed in pairs.json or pairs.jsonl (docs/data.md).
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.data.files.reading import Split, found_in, read_npy, read_png16, to_view
from und3rstand_jax.data.records import View
from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault
from und3rstand_jax.support.errors import UserError

NAMES = ("pairs.json", "pairs.jsonl")


DEPTH_SCALES = {".png": 0.001, ".npy": 1.0}
"""Kinds of depth files, and the unit of cam2world per stored step where an entry does not say: millimetres in a PNG."""


_SHOWN = 20


_VIEW_KEYS = ("image", "depth", "K", "cam2world")


_PAIR_FORM = 'expected {"view1": …, "view2": …} or ["name of a view", "name of a view"]'


class ViewEntry(NamedTuple):
    """A view as the list has it; paths relative to the list's folder."""

    image: str
    depth: str
    depth_scale: float
    intrinsics: np.ndarray
    cam2world: np.ndarray


class PairEntry(NamedTuple):
    """A pair: indices of its views, and the split if the list says one."""

    views: tuple[int, int]
    split: Split | None


def read_list(root: Path) -> tuple[list[ViewEntry], list[PairEntry]]:
    """The views and pairs of the list in `root`, pairs in the list's order; views given twice are one.

    Raises:
        UserError: there is no list or two, it is not JSON, or entries are faulty: the first 20 faults are in the message.
    """
    path, table, entries = _load(root)
    reader = _Reader(root)
    named = {name: reader.view(f"view {name!r}", raw) for name, raw in table.items()}
    pairs = [reader.pair(where, raw, named) for where, raw in entries]
    unsplit = sum(pair is not None and pair.split is None for pair in pairs)
    if 0 < unsplit < len(pairs) and any(pair and pair.split for pair in pairs):
        reader.faults.append(f'{unsplit} pairs have no "split" while others have one: give it to all or to none')
    if reader.faults:
        more = f"\n… and {len(reader.faults) - _SHOWN} more" if len(reader.faults) > _SHOWN else ""
        raise UserError(f"{path} has {len(reader.faults)} faults:\n" + "\n".join(reader.faults[:_SHOWN]) + more)
    return reader.views, [pair for pair in pairs if pair]


class _Reader:
    """Checks entries one by one, collects the views and everything that is wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.views: list[ViewEntry] = []
        self.faults: list[str] = []
        self._known: dict[str, int | None] = {}

    def view(self, where: str, raw: Any) -> int | None:
        """The index of a view; None if it is faulty, which is said the first time only."""
        key = json.dumps(raw, sort_keys=True)
        if key not in self._known:
            faults = list(_view_faults(self.root, raw))
            self.faults += [f"{where}: {fault}" for fault in faults]
            self._known[key] = None if faults else len(self.views)
            if not faults:
                self.views.append(_view_entry(raw))
        return self._known[key]

    def pair(self, where: str, raw: Any, named: Mapping[str, int | None]) -> PairEntry | None:
        """The pair; None if it is faulty."""
        sides, split = _pair_parts(raw)
        if sides is None:
            self.faults.append(f"{where}: {_PAIR_FORM}, found {_short(raw)}")
            return None
        if split not in (None, "train", "val"):
            self.faults.append(f'{where}: "split" must be "train" or "val", not {_short(split)}')
            return None
        view1, view2 = (self._side(f"{where}, view{number}", side, named) for number, side in enumerate(sides, start=1))
        return None if view1 is None or view2 is None else PairEntry((view1, view2), split)

    def _side(self, where: str, side: Any, named: Mapping[str, int | None]) -> int | None:
        if not isinstance(side, str):
            return self.view(where, side)
        if side not in named:
            self.faults.append(f'{where}: there is no {side!r} in "views" ({len(named)} views are named there)')
        return named.get(side)


def _load(root: Path) -> tuple[Path, Mapping[str, Any], list[tuple[str, Any]]]:
    """The list's path, its table of named views, and its entries, each with the words messages call it by."""
    paths = [root / name for name in NAMES if (root / name).is_file()]
    if len(paths) != 1:
        found = f"both are in {root}" if paths else found_in(root)
        raise UserError(f"pairs:{root}: expected {NAMES[0]} or {NAMES[1]} (format: docs/data.md); {found}")
    path = paths[0]
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return path, {}, _json_lines(text, path)
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    table, pairs = ({}, content) if isinstance(content, list) else _table_and_pairs(content)
    if not isinstance(table, dict) or not isinstance(pairs, list):
        raise UserError(f'{path}: expected a list of pairs, or {{"views": {{name: view}}, "pairs": [pairs]}}, found {_short(content)}')
    return path, table, [(f"pair {number}", entry) for number, entry in enumerate(pairs)]


def _table_and_pairs(content: Any) -> tuple[Any, Any]:
    is_table = isinstance(content, dict) and "pairs" in content and set(content) <= {"views", "pairs"}
    return (content.get("views", {}), content["pairs"]) if is_table else (None, None)


def _json_lines(text: str, path: Path) -> list[tuple[str, Any]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                entries.append((f"line {number}", json.loads(line)))
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not JSON: {error}") from error
    return entries


def _pair_parts(raw: Any) -> tuple[Sequence[Any] | None, Any]:
    if isinstance(raw, list) and len(raw) == 2:
        return raw, None
    if isinstance(raw, dict) and {"view1", "view2"} <= set(raw) <= {"view1", "view2", "split"}:
        return (raw["view1"], raw["view2"]), raw.get("split")
    return None, None


def _view_faults(root: Path, raw: Any) -> Iterable[str]:
    if not isinstance(raw, dict):
        yield f"a view must have {', '.join(_VIEW_KEYS)}; found {_short(raw)}"
        return
    missing, unknown = [key for key in _VIEW_KEYS if key not in raw], sorted(set(raw) - {*_VIEW_KEYS, "depth_scale"})
    if missing:
        yield f"has no {', '.join(missing)}"
    if unknown:
        yield f"has {', '.join(unknown)}, which no view has; expected {', '.join(_VIEW_KEYS)} and perhaps depth_scale"
    for key in ("image", "depth"):
        if key in raw:
            yield from _path_faults(root, key, raw[key])
    if not _is_number(raw.get("depth_scale", 1)) or not 0 < raw.get("depth_scale", 1) < float("inf"):
        yield f"depth_scale must be a positive number, not {_short(raw['depth_scale'])}"
    for key, fault_of in (("K", intrinsics_fault), ("cam2world", pose_fault)):
        if key in raw:
            matrix = _matrix(raw[key])
            fault = "must be a list of rows of numbers" if matrix is None else fault_of(matrix)
            if fault:
                yield f"{key} {fault}"


def _path_faults(root: Path, key: str, path: Any) -> Iterable[str]:
    if not isinstance(path, str):
        yield f"{key} must be a path, not {_short(path)}"
        return
    if key == "depth" and Path(path).suffix.lower() not in DEPTH_SCALES:
        yield f"depth {path} is neither .png (16 bits) nor .npy"
    if not (root / path).is_file():
        yield f"there is no {key} {root / path}"


def _view_entry(raw: Mapping[str, Any]) -> ViewEntry:
    scale = float(raw.get("depth_scale", DEPTH_SCALES[Path(raw["depth"]).suffix.lower()]))
    return ViewEntry(raw["image"], raw["depth"], scale, np.array(raw["K"], np.float64), np.array(raw["cam2world"], np.float64))


def _matrix(raw: Any) -> np.ndarray | None:
    rows_of_numbers = isinstance(raw, list) and all(isinstance(row, list) and all(map(_is_number, row)) for row in raw)
    if not rows_of_numbers or len({len(row) for row in raw}) != 1:
        return None
    return np.array(raw, np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


_VAL_EVERY = 10


@dataclasses.dataclass(frozen=True)
class OwnView:
    """One view with its camera; `depth_scale` is the unit of cam2world per stored step."""

    image: Path
    depth: Path
    depth_scale: float
    intrinsics: Float[np.ndarray, "3 3"]
    cam2world: Float[np.ndarray, "4 4"]

    def read(self) -> View:
        """The view."""
        stored = read_png16(self.depth) if self.depth.suffix.lower() == ".png" else read_npy(self.depth)
        return to_view(self.image, self.depth, stored * np.float64(self.depth_scale), self.intrinsics, self.cam2world)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnListing:
    """All views, a column a property, and of each pair of one split the indices of two of them."""

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

    def files(self, index: int) -> tuple[OwnView, OwnView]:
        """The two views of a pair."""
        first, second = self.pairs[index].tolist()
        return self._view(first), self._view(second)

    def _view(self, view: int) -> OwnView:
        image, depth = self.root / self.images[view], self.root / self.depths[view]
        return OwnView(image, depth, float(self.depth_scales[view]), self.intrinsics[view], self.cam2world[view])


def open_own_pairs(root: Path, split: Split) -> OwnListing:
    """The pairs of `root`'s list that belong to the split: by their own word, or else every 10th two views to "val".

    Raises:
        UserError: there is no list, or something in it is wrong; everything that is, is said at once.
    """
    views, entries = read_list(root)
    pairs = np.array([entry.views for entry in entries], np.int32).reshape(-1, 2)[_belongs(entries, split)]
    return _columns(root, views, pairs, (f"{len(entries)} pairs of {len(views)} views are listed, {len(pairs)} of them for {split!r}",))


def _belongs(entries: Sequence[PairEntry], split: Split) -> np.ndarray:
    if any(entry.split for entry in entries):
        return np.array([entry.split == split for entry in entries], bool)
    # Both orders of two views are one pair here: what is trained on one way round is not held out the other.
    first: dict[frozenset[int], int] = {}
    numbers = [first.setdefault(frozenset(entry.views), len(first)) for entry in entries]
    return (np.array(numbers, int) % _VAL_EVERY == _VAL_EVERY - 1) == (split == "val")


def _columns(root: Path, views: Sequence[ViewEntry], pairs: np.ndarray, notes: tuple[str, ...]) -> OwnListing:
    return OwnListing(
        root,
        tuple(view.image for view in views),
        tuple(view.depth for view in views),
        np.array([view.depth_scale for view in views], np.float64),
        np.array([view.intrinsics for view in views], np.float64).reshape(-1, 3, 3),
        np.array([view.cam2world for view in views], np.float64).reshape(-1, 4, 4),
        pairs,
        notes,
    )
