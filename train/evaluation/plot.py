"""The figure that shows at which layer geometry appears: errors of points and poses."""

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from train.evaluation.results import Evaluation, LayerResult, PoseResult
from und3rstand_jax.layer_plot import Panel, Series, panels_figure


def _pose(of: Callable[[PoseResult], float]) -> Callable[[LayerResult], float]:
    return lambda result: math.nan if result.pose is None else of(result.pose)


_POINTS: Panel[LayerResult] = Panel(
    "Error of each layer's points",
    "distance in the ground truth's unit,\nscale and depth shift taken out",
    (Series("view 1", lambda result: result.view1.invariant, True), Series("view 2", lambda result: result.view2.invariant, False)),
)
_POSE: Panel[LayerResult] = Panel(
    "Error of the second camera's pose that each layer's points imply",
    "angle in degrees, median over pairs",
    (
        Series("rotation", _pose(lambda pose: pose.rotation_degrees), True),
        Series("direction of translation", _pose(lambda pose: pose.translation_degrees), False),
    ),
    greatest=180,
)


def plot_layers(path: Path, evaluation: Evaluation) -> None:
    """Writes `layers_figure` as PNG."""
    layers_figure(evaluation).savefig(path)


def layers_figure(evaluation: Evaluation) -> Figure:
    """Errors of both views' points and, where poses were found, of view 2's pose: a panel each, a marker a layer."""
    panels = [_POINTS, _POSE] if any(result.pose for result in evaluation.layers) else [_POINTS]
    return panels_figure(panels, evaluation.layers, evaluation.head)
