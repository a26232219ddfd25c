"""An inspection as text, with counts, a table of figures, and findings; and as JSON."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from und3rstand_jax.data.inspect.agreement import TOLERANCE, Agreement
from und3rstand_jax.data.inspect.inspection import Inspection, ViewFigures
from und3rstand_jax.data.records import things_of
from und3rstand_jax.support.text import JsonObject, printable, text_table

_SHOWN = 5
"""Maximum number of messages and image sizes listed."""

_CONSISTENT = 0.5
"""Share of agreeing points from which geometry counts as consistent."""

_FAR = 2.0
"""Ratio to the depth of all the rest above which a view's greatest depth counts as background, unless other views share it."""

_STRAY = 0.3
"""Share below which a single set is named, even though the data set is consistent."""


def describe(inspection: Inspection) -> str:
    """The report on an inspection; its last line says whether the geometry is consistent."""
    height, width = inspection.shape
    things = things_of(inspection.views)
    lines = [
        f"{printable(inspection.name)}: {inspection.sets} {things}",
        *(f"  {printable(note)}" for note in inspection.notes),
        f"inspected: {len(inspection.figures) + len(inspection.unreadable)} {things}",
        *_messages("  ", f"{len(inspection.unreadable)} of them cannot be read", inspection.unreadable),
        *_messages("  ", f"{len(inspection.refused)} of them would be skipped in training at {width}×{height}", inspection.refused),
    ]
    if not inspection.figures:
        return "\n".join([*lines, "", f"None of the {things} could be read, so nothing is known about the geometry."])
    return "\n".join([*lines, "", *_figures(inspection), "", *_oddities(inspection), *_verdict(inspection)])


def as_json(inspection: Inspection) -> JsonObject:
    """Everything that was found, unrounded; docs/command_output.md explains the keys."""
    height, width = inspection.shape
    return {
        "name": inspection.name,
        "views": inspection.views,
        "sets": inspection.sets,
        "notes": inspection.notes,
        "resolution": f"{width}x{height}",
        "inspected": len(inspection.figures) + len(inspection.unreadable),
        "unreadable": inspection.unreadable,
        "refused": inspection.refused,
        "verdict": _judgement(inspection),
        "agreement": _agreement_json(inspection.agreement),
        "explanations": [
            {"symptom": found.symptom, "remedy": found.remedy, "agreement": _agreement_json(found.agreement)}
            for found in inspection.explanations
        ],
        "figures": [
            {
                "name": figures.name,
                "views": [
                    {
                        "size": view.size,
                        "depth": dict(zip(("near", "median", "far"), view.depth, strict=True)),
                        "valid": view.valid,
                        "field_of_view_degrees": view.field_of_view,
                        "off_centre": view.off_centre,
                        "far": None if view.far is None else view.far._asdict(),
                    }
                    for view in figures.views
                ],
                "links": [
                    {
                        "overlap": link.forward.overlap,
                        "agreement": _agreement_json(link.both),
                        "baseline_over_depth": link.baseline_over_depth,
                    }
                    for link in figures.links
                ],
            }
            for figures in inspection.figures
        ],
    }


def _agreement_json(found: Agreement) -> JsonObject:
    """Counts of points, and the figures derived from them; the share is None if nothing could be compared."""
    share, difference = (found.share, found.difference) if found.compared else (None, None)
    return {"points": found.points, "compared": found.compared, "agreeing": found.agreeing, "share": share, "mean_difference": difference}


def _judgement(inspection: Inspection) -> Literal["unknown", "wrong", "doubtful", "consistent"]:
    """The verdict in the report's last line, as one word."""
    if not inspection.figures:
        return "unknown"
    if inspection.explanations or not inspection.agreement.compared:
        return "wrong"
    return "doubtful" if inspection.agreement.share < _CONSISTENT else "consistent"


def _messages(indent: str, title: str, messages: Sequence[str]) -> Iterator[str]:
    yield f"{indent}{title}{':' if messages else ''}"
    yield from (f"    {printable(message)}" for message in messages[:_SHOWN])
    if len(messages) > _SHOWN:
        yield f"    … and {len(messages) - _SHOWN} more"


def _figures(inspection: Inspection) -> Iterator[str]:
    views = [view for one in inspection.figures for view in one.views]
    links = [link for one in inspection.figures for link in one.links]
    overlap = "overlap: view 1 seen in view 2" if inspection.views == 2 else "overlap with an earlier view"
    sizes = Counter(view.size for view in views)
    yield f"photos: {', '.join(f'{count} of {width}×{height}' for (width, height), count in sizes.most_common(_SHOWN))}"

    def spread(values: Sequence[float]) -> tuple[float, float, float]:
        return (min(values), float(np.median(values)), max(values)) if values else (np.nan,) * 3

    rows = []
    depths = [view.depth for view in views if view.valid > 0]
    if depths:
        near, median, far = zip(*depths, strict=True)
        rows.append(("depth in the unit of cam2world", *map(_number, (min(near), float(np.median(median)), max(far)))))
    rows += [
        ("pixels with known depth", *map(_percent, spread([view.valid for view in views]))),
        ("horizontal field of view", *(f"{degrees:.0f}°" for degrees in spread([view.field_of_view for view in views]))),
        ("baseline over median depth", *map(_number, spread([link.baseline_over_depth for link in links]))),
        (overlap, *map(_percent, spread([link.forward.overlap for link in links]))),
        ("agreement where both see", *map(_percent, spread([link.both.share for link in links if link.both.compared]))),
    ]
    yield text_table(("", "min", "median", "max"), rows, numbers_from=1)


def _oddities(inspection: Inspection) -> Iterator[str]:
    views = [view for one in inspection.figures for view in one.views]
    unknown = sum(view.valid == 0 for view in views)
    if unknown:
        yield f"{unknown} of {len(views)} views have no known depth."
    off_centre = sum(view.off_centre > 0.2 for view in views)
    if off_centre:
        yield f"{off_centre} of {len(views)} views have a principal point far off the centre: do the intrinsics belong to this photo?"
    yield from _far_depth(views)
    odd = sum(not 15 <= view.field_of_view <= 130 for view in views)
    if odd:
        yield f"{odd} of {len(views)} views have a field of view below 15° or above 130°: are the focal lengths in pixels of this photo?"
    baseline = float(np.median([link.baseline_over_depth for one in inspection.figures for link in one.links]))
    if baseline < 0.003:
        yield (
            f"The cameras hardly move compared with the depth (baseline over depth {_number(baseline)}). If they really do move, depth "
            "and cam2world are in different units, which the check below cannot detect."
        )


def _far_depth(views: Sequence[ViewFigures]) -> Iterator[str]:
    """Background stored as a number: depth far beyond the scene, or the same greatest depth in several views."""
    distinct = set(views)  # a view of several sets counts once
    shared = Counter(view.far.depth for view in distinct if view.far)
    far = [view.far for view in distinct if view.far and (view.far.depth > _FAR * view.far.rest or shared[view.far.depth] > 1)]
    if far:
        deepest = max(far)
        yield (
            f"{len(far)} of {len(distinct)} views have depth that looks like background or missing depth: {_percent(deepest.share)} of the "
            f"known pixels of one are at {_number(deepest.depth)} or beyond, the others at most at {_number(deepest.rest)}. Where no "
            "surface was measured, write 0, which means unknown: such depth outweighs the scene in training."
        )


def _verdict(inspection: Inspection) -> Iterator[str]:
    things = things_of(inspection.views)
    given, tolerance = inspection.agreement, _percent(TOLERANCE)
    check = f"{_percent(given.share)} of the points that fall inside the other view agree with its depth within {tolerance}"
    if inspection.explanations:
        best, *others = inspection.explanations
        yield f"WRONG: {check}."
        yield f"{best.symptom}: {best.remedy} raises the agreement from {_percent(given.share)} to {_percent(best.agreement.share)}."
        yield (
            f"  (mean relative difference in depth, clipped to {tolerance}: "
            f"{100 * given.difference:.1f} % before, {100 * best.agreement.difference:.1f} % after)"
        )
        if others:
            listed = "; ".join(other.symptom for other in others[:3])
            yield f"These explain the {things} equally well: {listed}{'; …' if len(others) > 3 else ''}."
    elif not given.compared:
        yield f"WRONG: no point of a view falls inside the other one, and none of the usual mistakes explains it. Do the {things} overlap?"
    elif _judgement(inspection) == "doubtful":
        yield f"DOUBTFUL: {check}, and none of the usual mistakes explains it."
    else:
        strays = [one.name for one in inspection.figures if any(link.both.share < _STRAY for link in one.links)]
        if strays:
            does = "agree on less than {} of what both see, or do not overlap"
            if inspection.views > 2:
                does = "have a view that agrees on less than {} of what it and an earlier one see, or does not overlap any"
            yield from _messages("", f"{len(strays)} {things} {does.format(_percent(_STRAY))}", strays)
        yield f"The geometry is consistent: {check}."


def _number(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"
