"""`pairs:DIR`: a user's own photos, depth and cameras, listed in pairs.json or pairs.jsonl (the format is in docs/data.md).

Whatever can be checked without opening a photo is checked when the list is read, and all faults are reported together.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from und3rstand_jax.data.files.reading import found_in, read_npy, read_png16, to_view
from und3rstand_jax.data.records import Split, View
from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault
from und3rstand_jax.support.errors import DataError

NAMES = ("pairs.json", "pairs.jsonl")

DEPTH_SCALES = {".png": 0.001, ".npy": 1.0}
"""Depth files by suffix, and the default of `depth_scale`: a PNG holds millimetres, an .npy file the unit of cam2world."""

_VIEW_KEYS = ("image", "depth", "K", "cam2world")

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
        """The view. Raises UnreadablePair."""
        stored = read_png16(self.depth) if self.depth.suffix.lower() == ".png" else read_npy(self.depth)
        return to_view(self.image, self.depth, stored * np.float64(self.depth_scale), self.intrinsics, self.cam2world)


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


def open_pairs_json(root: Path, split: Split) -> JsonListing:
    """The pairs of the list in `root` that belong to the split: as their entries say, or else every 10th pair of views is "val".

    Raises:
        DataError: there is no list or there are two, it is not JSON, or entries are faulty; the message has the first 20 faults.
    """
    path, table, entries = _read_json(root)
    checker = _Checker(root)
    named = {name: checker.view(f"view {name!r}", raw) for name, raw in table.items()}
    checked = [checker.pair(where, raw, named) for where, raw in entries]
    pairs = [pair for pair in checked if pair]
    unsplit = sum(pair.split is None for pair in pairs)
    if 0 < unsplit < len(pairs):
        checker.faults.append(f'{unsplit} pairs have no "split" while others have one: give it to all or to none')
    if checker.faults:
        more = f"\n… and {len(checker.faults) - _FAULTS_SHOWN} more" if len(checker.faults) > _FAULTS_SHOWN else ""
        raise DataError(f"{path} has {len(checker.faults)} faults:\n" + "\n".join(checker.faults[:_FAULTS_SHOWN]) + more)
    if unsplit:
        # Both orders of two views share a number, so that none is trained on in one order and held out in the other.
        numbers: dict[frozenset[int], int] = {}
        held_out = [numbers.setdefault(frozenset(pair.views), len(numbers)) % _VAL_EVERY == _VAL_EVERY - 1 for pair in pairs]
    else:
        held_out = [pair.split == "val" for pair in pairs]
    chosen = [pair.views for pair, is_held_out in zip(pairs, held_out, strict=True) if is_held_out == (split == "val")]
    views = checker.views
    return JsonListing(
        root,
        images=tuple(view["image"] for view in views),
        depths=tuple(view["depth"] for view in views),
        depth_scales=np.array([view.get("depth_scale", DEPTH_SCALES[Path(view["depth"]).suffix.lower()]) for view in views], np.float64),
        intrinsics=np.array([view["K"] for view in views], np.float64).reshape(-1, 3, 3),
        cam2world=np.array([view["cam2world"] for view in views], np.float64).reshape(-1, 4, 4),
        pairs=np.array(chosen, np.int32).reshape(-1, 2),
        notes=(f"{len(pairs)} pairs of {len(views)} views are listed, {len(chosen)} of them for {split!r}",),
    )


def _read_json(root: Path) -> tuple[Path, Mapping[str, object], list[tuple[str, object]]]:
    """The list's path, its table of named views, and its entries, each with what messages call it."""
    paths = [root / name for name in NAMES if (root / name).is_file()]
    if len(paths) != 1:
        found = f"both are in {root}" if paths else found_in(root)
        raise DataError(f"pairs:{root}: expected {NAMES[0]} or {NAMES[1]} (format: docs/data.md); {found}")
    path, where = paths[0], ""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            entries = []
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    where = f": line {number}"
                    entries.append((where[2:], json.loads(line)))
            return path, {}, entries
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}{where} is not JSON: {error}") from error
    table, pairs = {}, content
    if isinstance(content, dict) and set(content) <= {"views", "pairs"}:
        table, pairs = content.get("views", {}), content.get("pairs")
    if not isinstance(table, dict) or not isinstance(pairs, list):
        raise DataError(f'{path}: expected a list of pairs, or {{"views": {{name: view}}, "pairs": [pairs]}}, found {_short(content)}')
    return path, table, [(f"pair {number}", entry) for number, entry in enumerate(pairs)]


class _Pair(NamedTuple):
    """A checked pair: indices of its views, and its split if the list gives one."""

    views: tuple[int, int]
    split: Split | None


class _Checker:
    """Checks entries one by one; collects the views and everything that is wrong. A view given twice is one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.views: list[Mapping[str, Any]] = []
        self.faults: list[str] = []
        self._known: dict[str, int | None] = {}

    def view(self, where: str, raw: object) -> int | None:
        """The index of a view; None if it is faulty, which is reported the first time only."""
        key = json.dumps(raw, sort_keys=True)
        if key not in self._known:
            faults = list(_view_faults(self.root, raw))
            self.faults += [f"{where}: {fault}" for fault in faults]
            self._known[key] = None if faults else len(self.views)
            if not faults and isinstance(raw, dict):
                self.views.append(raw)
        return self._known[key]

    def pair(self, where: str, raw: object, named: Mapping[str, int | None]) -> _Pair | None:
        """A pair; None if it is faulty."""
        if isinstance(raw, list) and len(raw) == 2:
            sides, split = raw, None
        elif isinstance(raw, dict) and {"view1", "view2"} <= set(raw) <= {"view1", "view2", "split"}:
            sides, split = [raw["view1"], raw["view2"]], raw.get("split")
        else:
            self.faults.append(f'{where}: expected {{"view1": …, "view2": …}} or ["name of a view", "name of a view"], found {_short(raw)}')
            return None
        if split not in (None, "train", "val"):
            self.faults.append(f'{where}: "split" must be "train" or "val", not {_short(split)}')
            return None
        views = []
        for number, side in enumerate(sides, start=1):
            if not isinstance(side, str):
                views.append(self.view(f"{where}, view{number}", side))
                continue
            if side not in named:
                self.faults.append(f'{where}, view{number}: there is no {side!r} in "views" (it names {len(named)} views)')
            views.append(named.get(side))
        view1, view2 = views
        return None if view1 is None or view2 is None else _Pair((view1, view2), split)


def _view_faults(root: Path, raw: object) -> Iterator[str]:
    if not isinstance(raw, dict):
        yield f"a view must have {', '.join(_VIEW_KEYS)}; found {_short(raw)}"
        return
    missing, unknown = [key for key in _VIEW_KEYS if key not in raw], sorted(set(raw) - {*_VIEW_KEYS, "depth_scale"})
    if missing:
        yield f"has no {', '.join(missing)}"
    if unknown:
        yield f"has the unknown keys {', '.join(unknown)}; expected {', '.join(_VIEW_KEYS)} and optionally depth_scale"
    for key in ("image", "depth"):
        path = raw.get(key, "")
        if not isinstance(path, str):
            yield f"{key} must be a path, not {_short(path)}"
        elif key in raw:
            if key == "depth" and Path(path).suffix.lower() not in DEPTH_SCALES:
                yield f"depth {path} is neither .png (16 bits) nor .npy"
            if not (root / path).is_file():
                yield f"there is no {key} {root / path}"
    scale = raw.get("depth_scale", 1)
    if not _is_number(scale) or not 0 < scale < float("inf"):
        yield f"depth_scale must be a positive number, not {_short(scale)}"
    for key, fault_of in (("K", intrinsics_fault), ("cam2world", pose_fault)):
        if key in raw:
            rows = raw[key]
            of_numbers = isinstance(rows, list) and all(isinstance(row, list) and all(map(_is_number, row)) for row in rows)
            rectangular = of_numbers and len({len(row) for row in rows}) == 1
            fault = fault_of(np.array(rows, np.float64)) if rectangular else "must be a list of rows of numbers"
            if fault:
                yield f"{key} {fault}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
