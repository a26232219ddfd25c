"""Edits as JSON, with their arrays beside it in an npz, and back.

    [{"site": "decoder.*.cross_attn.heads:0-3", "view": 2, "scale": 0},
     {"site": "decoder.2.mlp", "view": 2, "tokens": [5, 6], "shift": "direction"},
     {"site": "decoder.3.cross_attn.scores", "keys": [0, 1], "shift": -Infinity}]

Only `site` is required; the other fields are those of `und3rstand_jax.model.edits.Edit`. A scale or shift given as a string names an
array; "-inf" is −∞, for JSON writers that have no such number.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeAlias

import numpy as np
from annotated_types import Ge
from numpy.typing import ArrayLike
from typing_extensions import TypedDict

from und3rstand_jax.model.edits import PLACE_FIELDS, Edit, Edits
from und3rstand_jax.support.documents import checked, read_json
from und3rstand_jax.support.errors import EditError
from und3rstand_jax.support.files import open_regular
from und3rstand_jax.support.text import listed, one_line

_BLOCKED = "-inf"

_NOT_ARRAYS = (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What NumPy and the libraries under it raise if a file is not what its name promises."""


_Tokens: TypeAlias = list[int] | Literal["special", "patches"]


class EditSpec(TypedDict):
    """One edit in JSON."""

    __pydantic_config__ = {"extra": "forbid"}  # type: ignore[misc]

    site: str
    view: NotRequired[Annotated[int, Ge(1)] | Literal["all", "both"]]
    heads: NotRequired[list[int]]
    tokens: NotRequired[_Tokens]
    queries: NotRequired[_Tokens]
    keys: NotRequired[_Tokens]
    pairs: NotRequired[list[tuple[int, int]]]
    key_views: NotRequired[list[Annotated[int, Ge(1)]]]
    scale: NotRequired[float | str]
    shift: NotRequired[float | str]


class _Case(TypedDict):
    edits: list[EditSpec]


Spec: TypeAlias = list[EditSpec] | _Case


def read_edits(
    spec: str | os.PathLike[str] | list[Any] | Mapping[str, Any], arrays: str | os.PathLike[str] | Mapping[str, ArrayLike] | None = None
) -> Edits:
    """Edits from JSON.

    Args:
        spec: a file, or its content: a list of edits, or an object with such a list under "edits" (other keys are ignored).
        arrays: the arrays that scales and shifts name: a mapping, or an npz file; by default the npz of the same name beside the file.

    Raises:
        EditError: a file cannot be read, an edit has an unknown field or a value of the wrong type, an array is missing, or places
            contradict one another.
        LayerError: the heads or queries of a site are malformed.
    """
    if isinstance(spec, str | os.PathLike):
        file = Path(spec)
        content: Spec = read_json(file, Spec, EditError)
        beside = file.with_suffix(".npz")
        arrays = beside if arrays is None and beside.is_file() else arrays
    else:
        content = checked({"edits": spec.get("edits")} if isinstance(spec, Mapping) else spec, "edits", Spec, EditError)
    listed_edits = content if isinstance(content, list) else content["edits"]
    if not isinstance(arrays, Mapping | str | os.PathLike | None):
        raise EditError(f"arrays must be a mapping from names to arrays, or an npz file; found {type(arrays).__name__}")
    named = arrays if isinstance(arrays, Mapping) else {} if arrays is None else read_arrays(Path(arrays))
    return Edits(tuple(_edit(number, edit, named) for number, edit in enumerate(listed_edits)))


def _edit(number: int, spec: EditSpec, arrays: Mapping[str, ArrayLike]) -> Edit:
    fields: dict[str, Any] = dict(spec)
    for what in ("scale", "shift"):
        value = fields.get(what)
        if value == _BLOCKED:
            fields[what] = -math.inf
        elif isinstance(value, str):
            if value not in arrays:
                raise EditError(
                    f"edit {number}, {spec['site']!r}: {what} {value!r} names no array given; given: {listed(arrays) or 'none'}"
                )
            fields[what] = arrays[value]
    return Edit(**fields)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; nothing in it is executed.

    Raises:
        EditError: the file cannot be read as an npz of arrays.
    """
    try:
        with open_regular(file) as stream, np.load(stream, allow_pickle=False) as content:
            return dict(content)
    except _NOT_ARRAYS as failure:
        raise EditError(f"{file} cannot be read as an npz of arrays: {one_line(failure)}") from failure


def edits_to_json(edits: Edits) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The inverse of `read_edits`: the edits in plain values, and the arrays that they name."""
    specs, arrays = [], {}
    for number, edit in enumerate(edits):
        spec: dict[str, Any] = {"site": edit.site, "view": edit.view}
        for name in PLACE_FIELDS:
            if (places := getattr(edit, name)) is not None:
                spec[name] = places if isinstance(places, str) else [list(place) if isinstance(place, tuple) else place for place in places]
        for name in ("scale", "shift"):
            value = np.asarray(getattr(edit, name), np.float32)
            if value.ndim:
                spec[name] = f"edits/{number}/{name}"
                arrays[spec[name]] = value
            else:
                spec[name] = _BLOCKED if np.isneginf(value) else float(value)
        specs.append(spec)
    return specs, arrays
