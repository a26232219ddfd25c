"""Depth and confidence of every layer beside the views."""

from pathlib import Path

from und3rstand_jax.contact_sheet import ContactSheet
from und3rstand_jax.report.content import Report, ViewGeometry, layer_name


def write_depth_sheet(path: Path, report: Report) -> None:
    """Writes the contact sheet of all layers as PNG."""
    sheet = ContactSheet(*report.images, rows=len(report.layers), title=f"What each layer knows of {report.title}")
    for layer in report.layers:
        sheet.add_row(layer_name(layer.layer_id), *(_prediction(view) for view in layer.views))
    sheet.write(path)


def _prediction(view: ViewGeometry) -> dict[str, object]:
    return {"pts3d": view.points} | ({} if view.confidence is None else {"conf": view.confidence})
