"""An inspection in words: a table of the figures, and what they mean."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from und3rstand_jax.data.inspect.agreement import TOLERANCE
from und3rstand_jax.data.inspect.inspection import Inspection, ViewFigures

_SHOWN = 5


_CONSISTENT = 0.5


_STRAY = 0.3


def describe(inspection: Inspection) -> str:
    """The report for stdout: counts, a table, and findings; the last line says whether the geometry is consistent."""
    return "\n".join([*_counts(inspection), *_table(inspection), *_findings(inspection)])


def _counts(inspection: Inspection) -> Iterator[str]:
    yield f"{inspection.name}: {inspection.pairs} pairs"
    yield from (f"  {note}" for note in inspection.notes)
    yield f"inspected: {len(inspection.figures) + len(inspection.unreadable)} pairs"
    height, width = inspection.shape
    yield from _messages(f"{len(inspection.unreadable)} of them cannot be read", inspection.unreadable)
    yield from _messages(f"{len(inspection.refused)} of them training would skip at {width}×{height}", inspection.refused)


def _messages(title: str, messages: Sequence[str]) -> Iterator[str]:
    yield f"  {title}{':' if messages else ''}"
    yield from (f"    {message}" for message in messages[:_SHOWN])
    if len(messages) > _SHOWN:
        yield f"    … and {len(messages) - _SHOWN} more"


def _table(inspection: Inspection) -> Iterator[str]:
    if not inspection.figures:
        return
    pairs, views = inspection.figures, _views(inspection)
    sizes = Counter(view.size for view in views)
    yield ""
    yield f"{'photos':<28}{', '.join(f'{count} of {width}×{height}' for (width, height), count in sizes.most_common(_SHOWN))}"
    yield f"{'':<28}{'least':>10}{'median':>10}{'greatest':>10}"
    known = [view for view in views if view.valid > 0]
    if known:
        near, median, far = zip(*(view.depth for view in known), strict=True)
        yield _row("depth, in cam2world's unit", (min(near), float(np.median(median)), max(far)), _number)
    yield _row("pixels with a known depth", _spread([view.valid for view in views]), _percent)
    yield _row("horizontal field of view", _spread([view.field_of_view for view in views]), lambda degrees: f"{degrees:.0f}°")
    yield _row("baseline over median depth", _spread([pair.baseline_over_depth for pair in pairs]), _number)
    yield _row("overlap: view 1 seen in 2", _spread([pair.forward.overlap for pair in pairs]), _percent)
    yield _row("depths agree where both see", _spread([pair.both.share for pair in pairs if pair.both.compared]), _percent)


def _row(name: str, values: Sequence[float], shown: Callable[[float], str]) -> str:
    return f"{name:<28}" + "".join(f"{shown(value):>10}" for value in values)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return (min(values), float(np.median(values)), max(values)) if values else (np.nan,) * 3


def _number(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"


def _views(inspection: Inspection) -> list[ViewFigures]:
    return [view for pair in inspection.figures for view in pair.views]


def _findings(inspection: Inspection) -> Iterator[str]:
    yield ""
    if not inspection.figures:
        yield "No pair could be read: nothing is known of the geometry."
        return
    yield from _oddities(inspection)
    yield from _verdict(inspection)


def _oddities(inspection: Inspection) -> Iterator[str]:
    pairs, views = inspection.figures, _views(inspection)
    unknown = sum(view.valid == 0 for view in views)
    if unknown:
        yield f"{unknown} of {len(views)} views know no depth at all."
    off_centre = sum(view.off_centre > 0.2 for view in views)
    if off_centre:
        yield f"{off_centre} of {len(views)} views have a principal point far off the centre: are the intrinsics those of this photo?"
    odd = sum(not 15 <= view.field_of_view <= 130 for view in views)
    if odd:
        yield f"{odd} of {len(views)} views have a field of view below 15° or above 130°: are the focal lengths in pixels of this photo?"
    baseline = float(np.median([pair.baseline_over_depth for pair in pairs]))
    if baseline < 0.003:
        yield (
            f"The cameras are hardly apart compared with the depth (baseline over depth {_number(baseline)}): if they were, depth and "
            "cam2world are in different units, which the check below then cannot tell."
        )


def _verdict(inspection: Inspection) -> Iterator[str]:
    given, tolerance = inspection.agreement, _percent(TOLERANCE)
    check = f"of the points that land in the other view, {_percent(given.share)} agree with its depth within {tolerance}"
    if inspection.explanations:
        best, *others = inspection.explanations
        yield f"WRONG: {check}."
        yield f"{best.symptom}: {best.remedy} raises the agreement from {_percent(given.share)} to {_percent(best.agreement.share)}."
        yield (
            f"  (mean difference of depth, a greater one counted as {tolerance}: "
            f"{100 * given.difference:.1f} % before, {100 * best.agreement.difference:.1f} % after)"
        )
        if others:
            yield f"Explains these pairs as well: {'; '.join(other.symptom for other in others[:3])}{'; …' if len(others) > 3 else ''}."
    elif not given.compared:
        yield "WRONG: no point of a view lands in the other one, and none of the usual mistakes explains it: do the pairs overlap?"
    elif given.share < _CONSISTENT:
        yield f"DOUBTFUL: {check}, and none of the usual mistakes explains it."
    else:
        yield from _strays(inspection)
        yield f"The geometry is consistent: {check}."


def _strays(inspection: Inspection) -> Iterator[str]:
    strays = [pair.name for pair in inspection.figures if pair.both.share < _STRAY]
    if strays:
        yield from _messages(
            f"{len(strays)} pairs agree in less than {_percent(_STRAY)} of what both see, or see nothing in common", strays
        )
