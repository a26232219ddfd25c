"""The report as a table for the terminal."""

from und3rstand_jax.report.content import Layer, Report, layer_name

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
