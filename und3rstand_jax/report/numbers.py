"""The figures of a report as files for other programs: `report.json` and `arrays.npz`.

The report as a table for the terminal.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.analysis.pair import Layer, Report, layer_name
from und3rstand_jax.support.files import strict_json

NUMBERS, ARRAYS = "report.json", "arrays.npz"


_MEANING = {
    "errors": (
        "of view 1 and view 2: mean distance of the layer's points to the reference's, each pair of pointmaps first divided by its mean "
        "distance to the origin over both views' known pixels (DUSt3R's regression loss); no unit"
    ),
    "accuracy": "share of the matches with a known true place in view 2 that lie within match_threshold_pixels of it",
    "matches": "pixels of a grid of view 1 whose point and a point of view 2 are each other's nearest",
    "matches_known": "matches whose true place in view 2 is known: seen there, at a depth that agrees within 2 %",
    "camera2_to_1": "view 2's camera in view 1's frame by PnP on the layer's points of view 2; translation in their unit",
    "rotation_degrees": "angle between that camera's rotation and the reference's",
    "translation_degrees": "angle between the directions of their translations; null where the cameras stand in one place",
    "reference": "what errors and angles are measured against",
    "frame": "all points: camera of view 1, x right, y down, z forward; layers in the model's own unit, truth in metres",
    "seconds": "wall-clock time by stage; forward includes compilation",
}


_KEYS = {
    "layer_ids": "(L,) names of the layers, the model's own head as head",
    "errors": "(L, 2) as in report.json",
    "accuracies": "(L,), NaN where there is none",
    "rotation_degrees, translation_degrees": "(L,), NaN where there is none",
    "image1, image2": "(H, W, 3) 8-bit RGB",
    "LAYER/points1, LAYER/points2": "(H, W, 3) in view 1's frame",
    "LAYER/confidence1, LAYER/confidence2": "(H, W), where the layer has any",
    "LAYER/camera2_to_1": "(4, 4), where it was found",
    "LAYER/matches1, LAYER/matches2": "(K, 2) x, y of matched pixels",
    "LAYER/offsets": "(K,) pixels between the match and the true place in view 2, NaN where it is not seen; with ground truth alone",
    "attention/BLOCK/from_view1": "(heads, N1, N2) cross-attention weights in float16, tokens row by row over grids[0] and grids[1]",
    "attention/BLOCK/from_view2": "(heads, N2, N1)",
    "truth/points1, truth/points2, truth/valid1, truth/valid2": "(H, W, 3) and (H, W); with ground truth alone",
    "truth/camera2_to_1": "(4, 4); with ground truth alone",
}


def write_numbers(path: Path, report: Report) -> None:
    """Writes `report.json`: strict JSON, in which NaN is null and an infinity a string."""
    content = {
        "title": report.title,
        "reference": report.reference,
        "match_threshold_pixels": report.match_threshold,
        "grids": report.grids,
        "true_camera2_to_1": None if report.true_pose is None else report.true_pose.tolist(),
        "layers": [_layer_numbers(layer) for layer in report.layers],
        "meaning": _MEANING,
        "arrays": {"file": ARRAYS, "keys": _KEYS},
        "facts": report.facts,
    }
    text = json.dumps(strict_json(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 has surrogates, which UTF-8 cannot write; with a backslash they are JSON's own escapes.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_arrays(path: Path, report: Report) -> None:
    """Writes `arrays.npz`; its keys are told in `report.json`."""
    # As float64, None becomes NaN.
    arrays: dict[str, Any] = {
        "layer_ids": np.array([layer.layer_id for layer in report.layers]),
        "errors": np.array([layer.errors for layer in report.layers]),
        "accuracies": np.array([layer.accuracy for layer in report.layers], np.float64),
        "rotation_degrees": np.array([layer.pose.rotation_degrees for layer in report.layers], np.float64),
        "translation_degrees": np.array([layer.pose.translation_degrees for layer in report.layers], np.float64),
        "image1": report.images[0],
        "image2": report.images[1],
    }
    for layer in report.layers:
        arrays.update((f"{layer.layer_id}/{name}", array) for name, array in _layer_arrays(layer))
    for block in report.attention:
        arrays[f"attention/{block.block}/from_view1"] = block.from_view1.astype(np.float16)
        arrays[f"attention/{block.block}/from_view2"] = block.from_view2.astype(np.float16)
    if report.truth is not None:
        for view, true in enumerate(report.truth, start=1):
            arrays |= {f"truth/points{view}": true.points, f"truth/valid{view}": true.valid}
    if report.true_pose is not None:
        arrays["truth/camera2_to_1"] = report.true_pose
    np.savez(path, **arrays)


def _layer_numbers(layer: Layer) -> Mapping[str, Any]:
    camera, offsets = layer.pose.camera2_to_1, layer.correspondences.offsets
    return {
        "layer": layer.layer_id,
        "errors": layer.errors,
        "accuracy": layer.accuracy,
        "matches": len(layer.correspondences.pixels1),
        "matches_known": None if offsets is None else int((~np.isnan(offsets)).sum()),
        "camera2_to_1": None if camera is None else camera.tolist(),
        "rotation_degrees": layer.pose.rotation_degrees,
        "translation_degrees": layer.pose.translation_degrees,
    }


def _layer_arrays(layer: Layer) -> Iterator[tuple[str, np.ndarray]]:
    for view, geometry in enumerate(layer.views, start=1):
        yield f"points{view}", geometry.points
        if geometry.confidence is not None:
            yield f"confidence{view}", geometry.confidence
    yield "matches1", layer.correspondences.pixels1
    yield "matches2", layer.correspondences.pixels2
    if layer.correspondences.offsets is not None:
        yield "offsets", layer.correspondences.offsets
    if layer.pose.camera2_to_1 is not None:
        yield "camera2_to_1", layer.pose.camera2_to_1


_HEADINGS = (("", "error", "error", "match", "rotation"), ("layer", "view 1", "view 2", "accuracy", "°"))


def format_table(report: Report) -> str:
    """A line a layer: point errors of both views, accuracy of matches, rotation of view 2; what there is not is a dash."""
    lines = [*_HEADINGS, *(_cells(layer) for layer in report.layers)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))] for line in lines)
    footer = f"errors and rotation against {report.reference}"
    if report.truth is not None:
        footer += f"; matches within {report.match_threshold:.3g} pixels of the true place"
    return "\n".join([*("  ".join(cells).rstrip() for cells in aligned), footer])


def _cells(layer: Layer) -> tuple[str, ...]:
    accuracy, rotation = layer.accuracy, layer.pose.rotation_degrees
    numbers = (*(f"{error:.4f}" for error in layer.errors), "–" if accuracy is None else f"{accuracy:.1%}")
    return (layer_name(layer.layer_id), *numbers, "–" if rotation is None else f"{rotation:.2f}")
