"""Reads and checks pairs.json or pairs.jsonl: all that can be told without opening a photo is told at once."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data.files.cameras import intrinsics_fault, pose_fault
from train.data.files.listing import Split, found_in
from und3rstand_jax.errors import UserError

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
