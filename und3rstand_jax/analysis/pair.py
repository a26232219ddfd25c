"""What a report is made of. Everything here is a plain NumPy array or a plain value: computing it and showing it are apart.

checkpoint + two images ─▶ measure ─▶ Report ─▶ numbers (JSON, npz), figures (PNG, SVG), page (HTML)

One forward pass, and all that a report says of it.

views ─▶ model, once ─▶ tokens ─▶ each layer's probe ─▶ points ─┬─▶ errors
              ├──────▶ the head ──────────────────────▶ points ─┼─▶ pose of view 2
              └──────▶ cross-attention weights                  └─▶ matches between the views
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth, centred_intrinsics, focal_length
from und3rstand_jax.geometry.matching import THRESHOLD, Correspondences, correspondences, match_accuracy, true_places
from und3rstand_jax.geometry.metrics import point_errors
from und3rstand_jax.geometry.pose import PoseEstimate, pose_against, second_camera
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.model.output import pair
from und3rstand_jax.model.pointmap import Pointmap
from und3rstand_jax.probes.probes import Probes
from und3rstand_jax.support.progress import Stopwatch

GROUND_TRUTH, OWN_POINTMAPS = "ground truth", "the model's own final pointmaps"
"""What layers may be measured against, as `Report.reference` calls it."""


def layer_name(layer_id: str) -> str:
    """A layer as texts call it."""
    return "the model's own head" if layer_id == HEAD else layer_id


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer's (or the head's) view of the pair.

    Attributes:
        layer_id: as in `und3rstand_jax.model.layer_ids`, or its HEAD.
        views: both views' geometry.
        errors: normalised point error of each view: mean distance between its points and the reference's after each pair of pointmaps is
            divided by its mean distance to the origin (DUSt3R's regression loss). `Report.reference` says what that is.
        pose: of view 2.
        correspondences: between the views.
        accuracy: share of the correspondences with a known true place that lie within `Report.match_threshold` pixels of it; None
            without ground truth, or where no match has a known place.
    """

    layer_id: str
    views: tuple[ViewGeometry, ViewGeometry]
    errors: tuple[float, float]
    pose: PoseEstimate
    correspondences: Correspondences
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Attention:
    """Post-softmax cross-attention of one decoder block: for every head and every token of a view, weights over the other's tokens.

    `from_view1`: (heads, N1, N2), rows sum to 1; `from_view2`: (heads, N2, N1). Tokens are row-major over the `grids`.
    """

    block: int
    from_view1: Float[np.ndarray, "heads N1 N2"]
    from_view2: Float[np.ndarray, "heads N2 N1"]


@dataclasses.dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        title: what was looked at, in a line.
        images: both views, RGB.
        grids: (rows, columns) of each view's tokens.
        layers: in network order; the model's own head last, where it has one.
        attention: of every decoder block, in order.
        truth: of both views, where the images were rendered.
        true_pose: view 2's camera in view 1's frame, where known.
        intrinsics: of both views' cameras in pixels, pixel centres at integers: the true ones where they are known, else those that
            poses were found with: the focal length by the reference's points of view 1, for both views, since view 2's points, in view
            1's frame, tell none of its own. None where nothing tells a focal length; then there are no poses either.
        reference: what `Layer.errors` are measured against: GROUND_TRUTH; without it OWN_POINTMAPS, the head's; without a head "the last
            probed layer's pointmaps (ID)".
        match_threshold: pixels.
        facts: what was run: checkpoint, provenance, layers, seconds, versions; plain JSON values, nested.
    """

    title: str
    images: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]
    grids: tuple[tuple[int, int], tuple[int, int]]
    layers: tuple[Layer, ...]
    attention: tuple[Attention, ...]
    truth: tuple[ViewTruth, ViewTruth] | None
    true_pose: Float[np.ndarray, "4 4"] | None
    intrinsics: tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]] | None
    reference: str
    match_threshold: float
    facts: Mapping[str, Any]


Views = tuple[ViewGeometry, ViewGeometry]


class _Reference(NamedTuple):
    """What layers are measured against, and how it is called; `intrinsics` are of both views, None where nothing tells them."""

    name: str
    points: tuple[ViewTruth, ViewTruth]
    pose: Float[np.ndarray, "4 4"] | None
    intrinsics: tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]] | None
    facts: Mapping[str, Any]

    @property
    def scene_size(self) -> float:
        """Mean distance of the known points to view 1's camera."""
        distances = np.concatenate([np.linalg.norm(view.points[view.valid], axis=-1) for view in self.points])
        return float(distances.mean()) if distances.size else 0.0


def measure(
    model: Backbone, probes: Probes | None, layers: Sequence[str], inputs: Inputs, facts: Mapping[str, Any], stopwatch: Stopwatch
) -> Report:
    """The report on a pair of views.

    The weights of all cross-attention are held at once: 4 bytes for each block, head, token and token of the other view (a DUSt3R
    takes 1.2 GB of them at 512×512, 0.7 GB at 512×384).

    Args:
        model: a backbone; its head runs where it has one.
        probes: on its layers; None where there are none.
        layers: which of them are read, in network order. Without layers there must be a head.
        inputs: the views.
        facts: what is to be said of where all this comes from.
        stopwatch: is told what each stage takes.
    """
    blocks = range(model.config.dec_depth)
    with stopwatch.time("forward"):
        capture = (*layers, *(_weights_id(block) for block in blocks))
        # JAX returns before it has computed; without waiting, the first layer would seem to take all the time.
        features = jax.block_until_ready(model(*inputs.views, capture=capture, head=model.config.head_type is not None))
    with stopwatch.time("probes"):
        read = dict(_progress("reading layers", _read(features, probes, layers), len(layers) + 1))
        attention = tuple(_attention(features, block) for block in blocks)
    del features

    reference = _truth(inputs) if inputs.truth is not None else _own_geometry(read)
    with stopwatch.time("errors"):
        errors = {layer: point_errors(views, reference.points) for layer, views in read.items()}
    with stopwatch.time("poses"):
        poses = dict(_progress("poses", _poses(read, reference), len(read)))
    width2 = inputs.sizes[1][1]
    with stopwatch.time("matches"):
        places = _true_places(inputs)
        found = ((layer, correspondences(views, places)) for layer, views in read.items())
        matches = dict(_progress("matches", found, len(read)))
    patch = model.config.patch_size
    return Report(
        title=inputs.title,
        images=inputs.images,
        grids=pair((height // patch, width // patch) for height, width in inputs.sizes),
        layers=tuple(
            Layer(layer, views, errors[layer], poses[layer], matches[layer], match_accuracy(matches[layer], THRESHOLD * width2))
            for layer, views in read.items()
        ),
        attention=attention,
        truth=inputs.truth,
        true_pose=inputs.true_pose,
        intrinsics=reference.intrinsics,
        reference=reference.name,
        match_threshold=THRESHOLD * width2,
        facts={**facts, **reference.facts},
    )


def _weights_id(block: int) -> str:
    return f"decoder.{block}.cross_attn.weights"


def _read(features: Any, probes: Probes | None, layers: Sequence[str]) -> Iterator[tuple[str, Views]]:
    """Every layer's pointmaps on the host, one layer after the other, the head's last."""
    if probes is not None:
        for layer in layers:
            yield layer, pair(map(_geometry, probes.read_layer(layer, features)))
    if features.pred1 is not None and features.pred2 is not None:
        yield HEAD, (_geometry(features.pred1), _geometry(features.pred2))


def _geometry(pointmap: Pointmap) -> ViewGeometry:
    confidence = np.asarray(pointmap["conf"][0], np.float32) if "conf" in pointmap else None
    return ViewGeometry(np.asarray(pointmap["pts3d"][0], np.float32), confidence)


def _attention(features: Any, block: int) -> Attention:
    one, two = (np.asarray(weights, np.float32)[0] for weights in features[_weights_id(block)])
    return Attention(block, one, two)


def _truth(inputs: Inputs) -> _Reference:
    assert inputs.truth is not None and inputs.intrinsics is not None
    facts = {"intrinsics": _intrinsics_facts(inputs.intrinsics)}
    return _Reference(GROUND_TRUTH, inputs.truth, inputs.true_pose, inputs.intrinsics, facts)


def _true_places(inputs: Inputs) -> Float[np.ndarray, "H1 W1 2"] | None:
    if inputs.truth is None:
        return None
    assert inputs.true_pose is not None and inputs.intrinsics is not None
    return true_places(inputs.truth, inputs.true_pose, inputs.intrinsics[1])


def _own_geometry(read: Mapping[str, Views]) -> _Reference:
    """The model's own last word: its head's pointmaps, or the last probed layer's where there is no head."""
    layer, views = list(read.items())[-1]
    name = OWN_POINTMAPS if layer == HEAD else f"the last probed layer's pointmaps ({layer})"
    points = pair(ViewTruth(view.points, np.isfinite(view.points).all(axis=-1)) for view in views)
    focal = focal_length(views[0].points, views[0].confidence)
    if focal is None:
        return _Reference(name, points, None, None, {"intrinsics": None})
    # One camera took both photos, is assumed: view 2's points lie in view 1's frame, so that its own focal length would take a pass
    # with the views swapped.
    cameras = pair(centred_intrinsics(focal, (view.points.shape[0], view.points.shape[1])) for view in views)
    facts = {"intrinsics": {**_intrinsics_facts(cameras), "estimated": f"focal length from view 1's points of {name}, for both views"}}
    return _Reference(name, points, second_camera(views[1], cameras[1]), cameras, facts)


def _intrinsics_facts(cameras: Any) -> dict[str, Any]:
    return {f"view{number}": camera.tolist() for number, camera in enumerate(cameras, start=1)}


def _poses(read: Mapping[str, Views], reference: _Reference) -> Iterator[tuple[str, PoseEstimate]]:
    size = reference.scene_size
    for layer, (_, view2) in read.items():
        camera = None if reference.intrinsics is None else second_camera(view2, reference.intrinsics[1])
        yield layer, pose_against(camera, reference.pose, size)


def _progress(what: str, items: Iterator[tuple[str, Any]], total: int) -> Iterator[tuple[str, Any]]:
    """A bar on stderr for what takes more than two seconds."""
    with tqdm(items, desc=what, unit="layer", total=total, delay=2, file=sys.stderr, leave=False) as bar:
        for name, item in bar:
            bar.set_postfix_str(name, refresh=False)
            yield name, item
