"""The numbers of a report: files for other programs, `report.json` and `arrays.npz`, and a table for the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from und3rstand_jax.analysis.head_use import HeadUse
from und3rstand_jax.analysis.steps import words_of
from und3rstand_jax.analysis.view_set import Layer, SetAnalysis, median_angles
from und3rstand_jax.geometry.matching import Correspondences
from und3rstand_jax.geometry.pose import Pose, PoseEstimate
from und3rstand_jax.model.layer_ids import layer_name
from und3rstand_jax.report.page_use import use_numbers
from und3rstand_jax.support.results import marked
from und3rstand_jax.support.text import JsonObject, strict_json, text_table

NUMBERS, ARRAYS = "report.json", "arrays.npz"
FORMAT = "und3rstand_jax report"

_MEANING = {
    "errors": (
        "of each view, from view 1 on: mean distance between the layer's points and the reference's, the pointmaps of all views first "
        "divided by their mean distance to the origin over all views' valid pixels (DUSt3R's regression loss); no unit"
    ),
    "accuracy": "share of the matches with a known true place in a later view that lie within match_threshold_pixels of it",
    "matches": "pixels of a grid of view 1 whose point and a point of a later view are each other's nearest neighbours; in all later views",
    "matches_known": "matches whose true place is known: visible in the later view, at a depth that agrees within 2 %",
    "matches_by_view": "the same numbers for view 1 with each later view alone",
    "poses": "of every view after the first, by its number",
    "camera_to_view1": "the view's camera in view 1's frame, by PnP on the layer's points of that view; translation in the points' unit",
    "camera2_to_1": "camera_to_view1 of view 2",
    "own_poses": "as poses, but from the model's camera head instead of PnP, in the unit of the head's points; null without a camera head",
    "rotation_degrees": "angle between a camera's rotation and the reference's; for a layer, the median over the later views",
    "translation_degrees": (
        "angle between the directions of their translations, null where the two cameras are at the same place; for a layer, the median "
        "over the later views"
    ),
    "lens_errors": "errors, as above, of the points that the model's own head reads from the layer's tokens, all later layers left out; "
    "null where not measured",
    "uses": "for every attention head of the decoders; see its own meaning; null where not measured",
    "reference": "what errors and angles are measured against",
    "frame": "all points: camera of view 1, x right, y down, z forward; layers in the model's own unit, ground truth in metres",
    "seconds": "wall-clock time by stage; forward includes compilation",
}


def _keys(analysis: SetAnalysis) -> dict[str, str]:
    """The keys of `arrays.npz` and their meaning."""
    views = len(analysis.images)
    every, later = range(1, views + 1), range(2, views + 1)

    def each(*names: str, of: range = every) -> str:
        return ", ".join(name.format(view) for view in of for name in names)

    by_view = "(L, V - 1) by later view, NaN where unknown"
    keys = {
        "layer_ids": "(L,) names of the layers; the model's own head is head",
        "errors": "(L, V) as in report.json",
        "accuracies": "(L,), NaN where unknown",
        "rotation_degrees, translation_degrees": "(L,), NaN where unknown; the median over the later views",
        "accuracies_by_view, rotation_degrees_by_view, translation_degrees_by_view": by_view,
        each("image{}"): "(H, W, 3) 8-bit RGB",
        each("LAYER/points{}"): "(H, W, 3) in view 1's frame",
        each("LAYER/confidence{}"): "(H, W), if the layer has a confidence",
        each("LAYER/camera{}_to_1", of=later): "(4, 4), where a pose was found",
        "LAYER/matches1, LAYER/matches2": "(K, 2) x, y of matched pixels in view 1 and in view 2",
        "LAYER/offsets": "(K,) pixels between the match and the true place in view 2, NaN where it is not visible; only with ground truth",
        each("attention/BLOCK/from_view{}"): _attention_text(analysis),
        each("truth/points{}", "truth/valid{}"): "(H, W, 3) and (H, W); only with ground truth",
        each("truth/camera{}_to_1", of=later): "(4, 4); only with ground truth",
    }
    if analysis.own_poses is not None:
        keys[each("own/camera{}_to_1", of=later)] = "(4, 4) by the model's camera head, where it is finite"
    if views > 2:
        more = range(3, views + 1)
        keys[each("LAYER/matches1_{0}", "LAYER/matches{0}", of=more)] = "(K, 2) x, y of matched pixels in view 1 and in that later view"
        keys[each("LAYER/offsets{}", of=more)] = "(K,) as LAYER/offsets, in that later view"
    return keys


def _attention_text(analysis: SetAnalysis) -> str:
    words = f"(heads, N, M) {words_of(analysis.attention_kind)} weights in float16"
    if analysis.pool == 1 and not analysis.special_tokens:
        return f"{words}: a view's N tokens over the tokens of all other views, one view's after another's, row by row over their grids"
    side = analysis.pool
    cells = f"; N and M are cells of {side}×{side} patches, over keys summed, over queries averaged" if side > 1 else ""
    return (
        f"{words}: a view's N patches over the patches of all views, its own too, one view's after another's, row by row over their "
        f"grids{cells}. What is missing from 1 goes to the {analysis.special_tokens} special tokens of each view"
    )


def write_numbers(
    path: Path, analysis: SetAnalysis, use: HeadUse | None = None, lens: Mapping[str, tuple[float, ...]] | None = None
) -> None:
    """Writes `report.json`: strict JSON, in which NaN is null and an infinity a string. It lists the files beside it, so it comes last.

    Raises:
        OSError: the file cannot be written.
    """
    layers = [_layer_numbers(layer, lens or {}) for layer in analysis.layers]
    content = {
        **marked(path.parent, FORMAT, path.name),
        "title": analysis.title,
        "reference": analysis.reference,
        "match_threshold_pixels": analysis.match_threshold,
        "grids": analysis.grids,
        "true_camera2_to_1": None if analysis.true_poses is None else analysis.true_poses[1].tolist(),
        "true_poses": None if analysis.true_poses is None else _numbered(analysis.true_poses[1:]),
        "layers": layers,
        "own_poses": None if analysis.own_poses is None else _pose_numbers(analysis.own_poses),
        "uses": None if use is None else use_numbers(use),
        "meaning": _MEANING,
        "arrays": {"file": ARRAYS, "keys": _keys(analysis)},
        "facts": analysis.record,
    }
    text = json.dumps(strict_json(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 contains surrogates, which UTF-8 cannot encode; backslash escapes of them are valid JSON.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _layer_numbers(layer: Layer, lens: Mapping[str, tuple[float, ...]]) -> JsonObject:
    by_view = [
        {"view": view, "matches": len(found.pixels1), "matches_known": _known(found), "accuracy": accuracy}
        for view, (found, accuracy) in enumerate(zip(layer.correspondences, layer.accuracies, strict=True), start=2)
    ]
    known = [_known(found) for found in layer.correspondences]
    poses = _pose_numbers(layer.poses)
    return {
        "layer": layer.layer_id,
        "errors": layer.errors,
        "accuracy": layer.accuracy,
        "matches": sum(len(found.pixels1) for found in layer.correspondences),
        "matches_known": None if None in known else sum(count for count in known if count is not None),
        "matches_by_view": by_view,
        "camera2_to_1": poses[0]["camera_to_view1"],
        "rotation_degrees": layer.rotation_degrees,
        "translation_degrees": layer.translation_degrees,
        "poses": poses,
        "lens_errors": lens.get(layer.layer_id),
    }


def _pose_numbers(poses: Sequence[PoseEstimate]) -> list[JsonObject]:
    return [
        {**camera, "rotation_degrees": pose.rotation_degrees, "translation_degrees": pose.translation_degrees}
        for camera, pose in zip(_numbered([pose.camera for pose in poses]), poses, strict=True)
    ]


def _known(found: Correspondences) -> int | None:
    """The number of matches with a known true place; None without ground truth."""
    return None if found.offsets is None else int((~np.isnan(found.offsets)).sum())


def _numbered(cameras: Sequence[Pose | None]) -> list[JsonObject]:
    """The cameras of views 2, 3, …, each with its view's number."""
    return [{"view": view, "camera_to_view1": None if pose is None else pose.tolist()} for view, pose in enumerate(cameras, start=2)]


def write_arrays(path: Path, analysis: SetAnalysis) -> None:
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
        "rotation_degrees": np.array([layer.rotation_degrees for layer in layers], np.float64),
        "translation_degrees": np.array([layer.translation_degrees for layer in layers], np.float64),
        "accuracies_by_view": np.array([layer.accuracies for layer in layers], np.float64),
        "rotation_degrees_by_view": np.array([[pose.rotation_degrees for pose in layer.poses] for layer in layers], np.float64),
        "translation_degrees_by_view": np.array([[pose.translation_degrees for pose in layer.poses] for layer in layers], np.float64),
        **{f"image{view}": image for view, image in enumerate(analysis.images, start=1)},
    }
    for layer in layers:
        arrays |= {f"{layer.layer_id}/{name}": array for name, array in _layer_arrays(layer).items() if array is not None}
    for block in analysis.attention:
        for view, weights in enumerate(block.weights, start=1):
            arrays[f"attention/{block.block}/from_view{view}"] = weights.astype(np.float16)
    if analysis.truth is not None:
        for view, true in enumerate(analysis.truth, start=1):
            arrays |= {f"truth/points{view}": true.points, f"truth/valid{view}": true.valid}
    for view, pose in enumerate(analysis.own_poses or (), start=2):
        arrays |= {} if pose.camera is None else {f"own/camera{view}_to_1": pose.camera}
    if analysis.true_poses is not None:
        arrays |= {f"truth/camera{view}_to_1": pose for view, pose in enumerate(analysis.true_poses[1:], start=2)}
    np.savez(path, allow_pickle=False, **arrays)


def _layer_arrays(layer: Layer) -> dict[str, np.ndarray | None]:
    """A layer's arrays, by their name after the layer's id; None where there is no such array."""
    arrays: dict[str, np.ndarray | None] = {}
    for view, geometry in enumerate(layer.views, start=1):
        arrays |= {f"points{view}": geometry.points, f"confidence{view}": geometry.confidence}
    for view, (found, pose) in enumerate(zip(layer.correspondences, layer.poses, strict=True), start=2):
        # For view 2, the names are those used for a pair.
        first, offsets = ("matches1", "offsets") if view == 2 else (f"matches1_{view}", f"offsets{view}")
        arrays |= {first: found.pixels1, f"matches{view}": found.pixels2, offsets: found.offsets, f"camera{view}_to_1": pose.camera}
    return arrays


def format_table(analysis: SetAnalysis) -> str:
    """A line per layer: point errors, accuracy of matches, rotation error; a dash for what is unknown.

    With more than two views, the errors are that of view 1 and the mean over the later ones, and the rotation is the median over them.
    """
    is_pair = len(analysis.images) == 2
    rows = []
    for layer in analysis.layers:
        errors = layer.errors if is_pair else (layer.errors[0], float(np.mean(layer.errors[1:])))
        accuracy, rotation = layer.accuracy, layer.rotation_degrees
        known = "–" if accuracy is None else f"{accuracy:.1%}", "–" if rotation is None else f"{rotation:.2f}"
        rows.append((layer_name(layer.layer_id), *(f"{error:.4f}" for error in errors), *known))
    later = "error\nview 2" if is_pair else f"error, mean\nviews 2–{len(analysis.images)}"
    of_rotation = "rotation\n°" if is_pair else "rotation\nmedian °"
    table = text_table(("layer", "error\nview 1", later, "match\naccuracy", of_rotation), rows, numbers_from=1)
    footer = f"errors and rotation against {analysis.reference}"
    if analysis.truth is not None:
        footer += f"; matches within {analysis.match_threshold:.3g} pixels of the true place"
    own_rotation, _ = median_angles(analysis.own_poses or ())
    if own_rotation is not None:
        footer += f"\nrotation by the model's camera head: {own_rotation:.2f}°"
    return f"{table}\n{footer}"
