"""The numbers of a report: as files for other programs, `report.json` and `arrays.npz`, and as a table for the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from und3rstand_jax.analysis.head_use import HeadUse
from und3rstand_jax.analysis.pair import PairAnalysis
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.report.page_use import use_numbers
from und3rstand_jax.support.results import marked
from und3rstand_jax.support.text import strict_json, text_table

NUMBERS, ARRAYS = "report.json", "arrays.npz"
FORMAT = "und3rstand_jax report"

_MEANING = {
    "errors": (
        "of view 1 and view 2: mean distance between the layer's points and the reference's, each pair of pointmaps first divided by its "
        "mean distance to the origin over both views' valid pixels (DUSt3R's regression loss); no unit"
    ),
    "accuracy": "share of the matches with a known true place in view 2 that lie within match_threshold_pixels of it",
    "matches": "pixels of a grid of view 1 whose point and a point of view 2 are each other's nearest neighbours",
    "matches_known": "matches whose true place in view 2 is known: visible there, at a depth that agrees within 2 %",
    "camera2_to_1": "view 2's camera in view 1's frame, by PnP on the layer's points of view 2; translation in the unit of the points",
    "rotation_degrees": "angle between that camera's rotation and the reference's",
    "translation_degrees": "angle between the directions of their translations; null where the two cameras are at the same place",
    "lens_errors": "errors, as above, of the points that the model's own head reads from the layer's tokens, all later decoder steps left "
    "out; null where not measured",
    "uses": "of every attention head of the decoders, see its own meaning; null where not measured",
    "reference": "what errors and angles are measured against",
    "frame": "all points: camera of view 1, x right, y down, z forward; layers in the model's own unit, ground truth in metres",
    "seconds": "wall-clock time by stage; forward includes compilation",
}

_KEYS = {
    "layer_ids": "(L,) names of the layers; the model's own head is head",
    "errors": "(L, 2) as in report.json",
    "accuracies": "(L,), NaN where unknown",
    "rotation_degrees, translation_degrees": "(L,), NaN where unknown",
    "image1, image2": "(H, W, 3) 8-bit RGB",
    "LAYER/points1, LAYER/points2": "(H, W, 3) in view 1's frame",
    "LAYER/confidence1, LAYER/confidence2": "(H, W), if the layer has a confidence",
    "LAYER/camera2_to_1": "(4, 4), where a pose was found",
    "LAYER/matches1, LAYER/matches2": "(K, 2) x, y of matched pixels",
    "LAYER/offsets": "(K,) pixels between the match and the true place in view 2, NaN where it is not visible; only with ground truth",
    "attention/BLOCK/from_view1": "(heads, N1, N2) cross-attention weights in float16, tokens row by row over grids[0] and grids[1]",
    "attention/BLOCK/from_view2": "(heads, N2, N1)",
    "truth/points1, truth/points2, truth/valid1, truth/valid2": "(H, W, 3) and (H, W); only with ground truth",
    "truth/camera2_to_1": "(4, 4); only with ground truth",
}


def write_numbers(
    path: Path, analysis: PairAnalysis, use: HeadUse | None = None, lens: Mapping[str, tuple[float, ...]] | None = None
) -> None:
    """Writes `report.json`: strict JSON, in which NaN is null and an infinity a string. It lists the files beside it, so it comes last.

    Raises:
        OSError: the file cannot be written.
    """
    layers = []
    for layer in analysis.layers:
        camera, offsets = layer.pose.camera2_to_1, layer.correspondences.offsets
        layers.append(
            {
                "layer": layer.layer_id,
                "errors": layer.errors,
                "accuracy": layer.accuracy,
                "matches": len(layer.correspondences.pixels1),
                "matches_known": None if offsets is None else int((~np.isnan(offsets)).sum()),
                "camera2_to_1": None if camera is None else camera.tolist(),
                "rotation_degrees": layer.pose.rotation_degrees,
                "translation_degrees": layer.pose.translation_degrees,
                "lens_errors": (lens or {}).get(layer.layer_id),
            }
        )
    content = {
        **marked(path.parent, FORMAT, path.name),
        "title": analysis.title,
        "reference": analysis.reference,
        "match_threshold_pixels": analysis.match_threshold,
        "grids": analysis.grids,
        "true_camera2_to_1": None if analysis.true_pose is None else analysis.true_pose.tolist(),
        "layers": layers,
        "uses": None if use is None else use_numbers(use),
        "meaning": _MEANING,
        "arrays": {"file": ARRAYS, "keys": _KEYS},
        "facts": analysis.record,
    }
    text = json.dumps(strict_json(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 contains surrogates, which UTF-8 cannot encode; backslash escapes of them are valid JSON.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_arrays(path: Path, analysis: PairAnalysis) -> None:
    """Writes `arrays.npz`, whose keys `report.json` explains.

    Raises:
        OSError: the file cannot be written.
    """
    layers = analysis.layers
    # As float64, None becomes NaN.
    arrays = {
        "layer_ids": np.array([layer.layer_id for layer in layers]),
        "errors": np.array([layer.errors for layer in layers]),
        "accuracies": np.array([layer.accuracy for layer in layers], np.float64),
        "rotation_degrees": np.array([layer.pose.rotation_degrees for layer in layers], np.float64),
        "translation_degrees": np.array([layer.pose.translation_degrees for layer in layers], np.float64),
        "image1": analysis.images[0],
        "image2": analysis.images[1],
    }
    for layer in layers:
        matches = layer.correspondences
        found = {"matches1": matches.pixels1, "matches2": matches.pixels2, "offsets": matches.offsets}
        found["camera2_to_1"] = layer.pose.camera2_to_1
        for view, geometry in enumerate(layer.views, start=1):
            found |= {f"points{view}": geometry.points, f"confidence{view}": geometry.confidence}
        arrays |= {f"{layer.layer_id}/{name}": array for name, array in found.items() if array is not None}
    for block in analysis.attention:
        arrays[f"attention/{block.block}/from_view1"] = block.from_view1.astype(np.float16)
        arrays[f"attention/{block.block}/from_view2"] = block.from_view2.astype(np.float16)
    if analysis.truth is not None:
        for view, true in enumerate(analysis.truth, start=1):
            arrays |= {f"truth/points{view}": true.points, f"truth/valid{view}": true.valid}
    if analysis.true_pose is not None:
        arrays["truth/camera2_to_1"] = analysis.true_pose
    np.savez(path, allow_pickle=False, **arrays)


def format_table(analysis: PairAnalysis) -> str:
    """A line per layer: point errors of both views, accuracy of matches, rotation error of view 2; a dash for what is unknown."""
    rows = []
    for layer in analysis.layers:
        accuracy, rotation = layer.accuracy, layer.pose.rotation_degrees
        errors = (f"{error:.4f}" for error in layer.errors)
        known = "–" if accuracy is None else f"{accuracy:.1%}", "–" if rotation is None else f"{rotation:.2f}"
        rows.append((layer_name(layer.layer_id), *errors, *known))
    table = text_table(("layer", "error\nview 1", "error\nview 2", "match\naccuracy", "rotation\n°"), rows, numbers_from=1)
    footer = f"errors and rotation against {analysis.reference}"
    if analysis.truth is not None:
        footer += f"; matches within {analysis.match_threshold:.3g} pixels of the true place"
    return f"{table}\n{footer}"
