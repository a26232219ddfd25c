"""The figures of the study of layers: errors, matches and rotation over the layers, and the control's errors."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from und3rstand_jax.analysis.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.analysis.pair_measures import MATCHES, view_names
from und3rstand_jax.analysis.studies.study import Record, mean_in
from und3rstand_jax.model.layer_ids import HEAD


class _Point(NamedTuple):
    """A record in the form that the plots of layers take."""

    layer_id: str
    record: Record

    def of(self, name: str) -> float:
        """A mean; NaN where there is none."""
        return mean_in(self.record, name).mean


def _drawn(records: Sequence[Record], panels: Sequence[Panel[_Point]]) -> Figure:
    points = [_Point(str(record["layer"]), record) for record in records]
    head = next((point for point in points if point.layer_id == HEAD), None)
    return panels_figure(panels, [point for point in points if point.layer_id != HEAD], head)


def _series(label: str, name: str, is_filled: bool = True) -> Series[_Point]:
    return Series(label, lambda point: point.of(name), is_filled)


def _error_unit(views: int) -> str:
    return f"distance, in units of the {'pair' if views == 2 else 'set'}'s\nmean distance to camera 1"


def layers_figure(records: Sequence[Record], views: int) -> Figure:
    """Errors of every view, right matches and rotation, layer by layer."""
    other, poses = ("view 2", "view 2's pose") if views == 2 else ("the later view", "the later views' poses")
    points = tuple(_series(f"view {number}", name, number == 1) for number, name in enumerate(view_names(views), start=1))
    return _drawn(
        records,
        [
            Panel("Point error", _error_unit(views), points),
            Panel(f"Right matches, of those whose true place {other} sees", "share", (_series("right", MATCHES),), is_share=True),
            Panel(f"Rotation error of {poses}", "degrees, median", (_series("rotation", "rotation_median"),), greatest=180.0),
        ],
    )


def control_figure(records: Sequence[Record], views: int) -> Figure:
    """Every view's error by probes trained in one way, on the model and on random weights."""
    title = "View {}: probes trained in one way, on two backbones"
    return _drawn(
        [record for record in records if record["layer"] != HEAD],
        [
            Panel(
                title.format(view),
                _error_unit(views),
                (_series("the model", f"same{view}"), _series("random weights", f"random{view}", False)),
            )
            for view in range(1, views + 1)
        ],
    )
