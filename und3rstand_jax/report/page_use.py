"""What the page's scripts read about the use of heads and about the lens, as JSON values."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from und3rstand_jax.analysis.head_use import CROSS, MEANING, MEASURES, HeadUse

_DIGITS = 6  # after the decimal point


def use_values(use: HeadUse, cameras: list[list[list[float]] | None]) -> dict[str, object]:
    """Numbers of every head by attention, view, block and head; and the heads without which points are shown.

    Args:
        use: what heads are used for.
        cameras: for each of `HeadUse.without`, view 2's camera in view 1's frame, in the unit of the points on the page.
    """
    numbers = {
        attention: {
            "mass": _rounded(use.mass) if attention == CROSS else None,
            "elsewhere": _rounded(use.elsewhere) if attention == CROSS else None,
            "sink": _rounded(sink),
            "cost": _rounded(use.cost[attention]),
        }
        for attention, sink in use.sink.items()
    }
    return {
        "measure": use.measure,
        "unedited": _rounded(use.unedited),
        "even": _rounded(use.even),
        "numbers": numbers,
        "without": [{**one.head._asdict(), "camera": camera} for one, camera in zip(use.without, cameras, strict=True)],
    }


def lens_values(lens: Mapping[str, tuple[float, ...]]) -> dict[str, list[float | None]]:
    """Every view's errors by layer; None where they are not finite."""
    return {layer: [error if math.isfinite(error) else None for error in errors] for layer, errors in lens.items()}


def use_numbers(use: HeadUse) -> dict[str, object]:
    """The same for other programs: a record for each head, unrounded."""
    records = []
    for head in use.heads:
        at = head.view - 1, head.block, head.head
        record: dict[str, Any] = {
            **head._asdict(),
            "sink": float(use.sink[head.attention][at]),
            "cost": use.cost[head.attention][at].tolist(),
        }
        if head.attention == CROSS and use.mass is not None and use.elsewhere is not None:
            record |= {"mass": float(use.mass[at]), "elsewhere": float(use.elsewhere[at])}
        records.append(record)
    return {
        "measure": use.measure,
        "meaning": {**MEANING, "measure": MEASURES[use.measure], "unedited": "for view 1 and view 2, what changes are counted from"},
        "unedited": use.unedited,
        "even": use.even,
        "heads": records,
    }


def _rounded(numbers: object) -> Any:
    """As nested lists, None where they are not finite."""
    if numbers is None:
        return None
    array = np.asarray(numbers, np.float64)
    if array.ndim:
        return [_rounded(part) for part in array]
    return round(float(array), _DIGITS) if np.isfinite(array) else None
