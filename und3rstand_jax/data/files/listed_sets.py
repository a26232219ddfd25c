"""A user's list of pairs and sets (docs/data.md describes the format), read and checked entry by entry.

Whatever can be checked without opening a photo is checked, and all faults are reported together.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import annotated_types
import numpy as np

from und3rstand_jax.data.files.reading import found_in
from und3rstand_jax.data.records import Split
from und3rstand_jax.geometry.cameras import intrinsics_fault, pose_fault
from und3rstand_jax.support.documents import checked, json_lines, parse_json, read_json, read_text
from und3rstand_jax.support.errors import DataError

NAMES = ("pairs.json", "pairs.jsonl")

DEPTH_SCALES = {".png": 0.001, ".npy": 1.0}
"""Depth files by suffix, and the default of `depth_scale`: a PNG is in millimetres, an .npy file in the unit of cam2world."""

_VIEW = "a view has image, depth, K (3×3), cam2world (4×4), and may have depth_scale"

_PAIR = 'expected {"view1": …, "view2": …} or ["name of a view", "name of a view"]'

_SET = 'expected {"views": [view, view, …]} or ["name of a view", "name of a view", …]'

_LARGEST = 2**30  # bytes of a list

_FAULTS_SHOWN = 20

_Row3: TypeAlias = Annotated[list[float], annotated_types.Len(3, 3)]
_Row4: TypeAlias = Annotated[list[float], annotated_types.Len(4, 4)]


@dataclasses.dataclass(frozen=True)
class ListedView:
    """A view as written in the list."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image: str
    depth: str
    K: Annotated[list[_Row3], annotated_types.Len(3, 3)]
    cam2world: Annotated[list[_Row4], annotated_types.Len(4, 4)]
    depth_scale: Annotated[float, annotated_types.Interval(gt=0, lt=float("inf"))] | None = None

    @property
    def scale(self) -> float:
        """The given `depth_scale`, or the default for the depth file's suffix."""
        return DEPTH_SCALES[Path(self.depth).suffix.lower()] if self.depth_scale is None else self.depth_scale


class ListedSet(NamedTuple):
    """A checked pair or set: indices of its views, two or more, and its split if the list gives one."""

    views: tuple[int, ...]
    split: Split | None


class Listed(NamedTuple):
    """A list's path, all its views, and its sets: pairs first, then larger ones, or in the order of the lines."""

    path: Path
    views: list[ListedView]
    sets: list[ListedSet]


def read_listed(root: Path) -> Listed:
    """Reads the list in a folder.

    Raises:
        DataError: there is no list or there are two, it is not JSON, or entries are faulty; the message reports the first 20 faults.
    """
    path, table, entries = _read_entries(root)
    checker = _Checker(root)
    named = {name: checker.view(f"view {name!r}", raw) for name, raw in table.items()}
    sets = [one for entry in entries if (one := checker.set_of(entry, named))]
    unsplit = sum(one.split is None for one in sets)
    if 0 < unsplit < len(sets):
        things = "pairs" if all(len(one.views) == 2 for one in sets) else "sets"
        checker.faults.append(f'{unsplit} {things} have no "split" while others have one: give it to all or to none')
    count = len(checker.faults)
    if count:
        more = [f"… and {count - _FAULTS_SHOWN} more"] if count > _FAULTS_SHOWN else []
        raise DataError(f"{path} has {count} fault{'s' * (count > 1)}:", *checker.faults[:_FAULTS_SHOWN], *more)
    return Listed(path, checker.views, sets)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A pair as written in the list; a view is given by name or written out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    view1: Any
    view2: Any
    split: Split | None = None


@dataclasses.dataclass(frozen=True)
class _Set:
    """A set as written in the list; a view is given by name or written out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    views: Annotated[list[Any], annotated_types.Len(2)]
    split: Split | None = None


@dataclasses.dataclass(frozen=True)
class _Table:
    """A list with named views; views, pairs and sets are checked one by one."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    pairs: list[Any] | None = None
    sets: list[Any] | None = None
    views: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pairs is None and self.sets is None:
            raise ValueError('neither "pairs" nor "sets" is given')


class _Entry(NamedTuple):
    """A pair or set as written in the list, its name in messages, and whether it is a pair."""

    where: str
    raw: object
    is_pair: bool


def _read_entries(root: Path) -> tuple[Path, Mapping[str, object], list[_Entry]]:
    """The list's path, its table of named views, and its entries."""
    paths = [root / name for name in NAMES if os.path.lexists(root / name)]
    if len(paths) != 1:
        found = f"both are in {root}" if paths else found_in(root)
        raise DataError(f"pairs:{root}: expected {NAMES[0]} or {NAMES[1]} (format: docs/data.md); {found}")
    [path] = paths
    if path.suffix == ".jsonl":
        lines = json_lines(read_text(path, DataError, largest=_LARGEST))
        parsed = ((f"line {number}", parse_json(line, f"{path}: line {number}", object, DataError)) for number, line in lines)
        return path, {}, [_Entry(where, raw, _is_pair(raw)) for where, raw in parsed]
    expected = 'expected a list of pairs, or {"views": {name: view}, "pairs": [pairs], "sets": [sets]} with one of the last two or both'
    content = read_json(path, object, DataError, expected, _LARGEST)
    if isinstance(content, list):
        entries = [_Entry(f"{'pair' if _is_pair(raw) else 'set'} {number}", raw, _is_pair(raw)) for number, raw in enumerate(content)]
        return path, {}, entries
    table = checked(content, str(path), _Table, DataError, expected)
    pairs = [_Entry(f"pair {number}", raw, True) for number, raw in enumerate(table.pairs or ())]
    return path, table.views, [*pairs, *(_Entry(f"set {number}", raw, False) for number, raw in enumerate(table.sets or ()))]


def _is_pair(raw: object) -> bool:
    """Whether an entry of a list without named views is a pair: it is one unless it has the key `views`."""
    return not (isinstance(raw, dict) and "views" in raw)


class _Checker:
    """Checks entries one by one; collects the views and all faults. A view given twice counts once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.views: list[ListedView] = []
        self.faults: list[str] = []
        self._known: dict[str, int | None] = {}

    def view(self, where: str, raw: object) -> int | None:
        """The index of a view; None if it is faulty, which is reported only the first time."""
        key = json.dumps(raw, sort_keys=True)
        if key not in self._known:
            self._known[key] = None
            try:
                view = parse_json(key, where, ListedView, DataError, _VIEW)
            except DataError as error:
                self.faults.append(str(error))
                return None
            faults = [f"{where}: {fault}" for fault in _view_faults(self.root, view)]
            self.faults += faults
            if not faults:
                self._known[key] = len(self.views)
                self.views.append(view)
        return self._known[key]

    def set_of(self, entry: _Entry, named: Mapping[str, int | None]) -> ListedSet | None:
        """A pair or set; None if it is faulty."""
        try:
            written = _written_pair(entry) if entry.is_pair else _written_set(entry)
        except DataError as error:
            self.faults.append(str(error))
            return None
        views: list[int] = []
        for number, side in enumerate(written.views, start=1):
            where = f"{entry.where}, view{number}"
            if isinstance(side, str) and side not in named:
                self.faults.append(f'{where}: there is no {side!r} in "views" (it names {len(named)} views)')
            index = named.get(side) if isinstance(side, str) else self.view(where, side)
            views += [] if index is None else [index]
        return ListedSet(tuple(views), written.split) if len(views) == len(written.views) else None


def _written_pair(entry: _Entry) -> _Set:
    raw = entry.raw
    sides = {"view1": raw[0], "view2": raw[1]} if isinstance(raw, list) and len(raw) == 2 else raw
    pair = checked(sides, entry.where, _Pair, DataError, _PAIR)
    return _Set([pair.view1, pair.view2], pair.split)


def _written_set(entry: _Entry) -> _Set:
    return checked({"views": entry.raw} if isinstance(entry.raw, list) else entry.raw, entry.where, _Set, DataError, _SET)


def _view_faults(root: Path, view: ListedView) -> Iterator[str]:
    """The faults that no type can express."""
    if Path(view.depth).suffix.lower() not in DEPTH_SCALES:
        yield f"depth {view.depth} is neither .png (16 bits) nor .npy"
    for key, path in (("image", view.image), ("depth", view.depth)):
        # Unlike Path.is_file, which raises for a path that is too long.
        if not os.path.isfile(root / path):
            yield f"there is no {key} {root / path}"
    for key, fault in (("K", intrinsics_fault(np.array(view.K))), ("cam2world", pose_fault(np.array(view.cam2world)))):
        if fault:
            yield f"{key} {fault}"
