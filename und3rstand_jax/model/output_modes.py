"""The output activations of points and confidences, as configs state them."""

import math
from typing import Any, Literal

Mode = tuple[str, float, float]
"""An output activation as DUSt3R writes it: (name, lower bound, upper bound)."""

StoredMode = tuple[str, float | Literal["inf", "-inf"], float | Literal["inf", "-inf"]]
"""The same in strict JSON, which has no infinity."""

OUTPUT_MODES = {"depth_mode": ("exp", "square", "linear"), "conf_mode": ("exp", "sigmoid")}
"""The output activations of points and of confidences -> their names."""


def parse_mode(output: str, value: Any) -> Mode:
    """The activation of an output ("depth_mode" or "conf_mode") from [name, lower bound, upper bound].

    Raises:
        ValueError: it is not supported. The message says what is, to follow "… is not supported; expected".
    """
    try:
        name, low, high = value
        mode = (str(name), float(low), float(high))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("(name, lower bound, upper bound)") from None
    names = OUTPUT_MODES[output]
    if mode[0] not in names:
        raise ValueError(f"(one of {', '.join(names)}; lower bound; upper bound)")
    if not mode[1] < mode[2]:
        raise ValueError("a lower bound below the upper one")
    if mode[0] == "sigmoid" and not (math.isfinite(mode[1]) and math.isfinite(mode[2])):
        raise ValueError("two finite bounds for a sigmoid, such as (sigmoid, 0, 1)")
    if output == "depth_mode" and mode[1:] != (-math.inf, math.inf):
        raise ValueError("(name, -inf, inf): bounds on the depth are not supported")
    return mode


def mode_faults(config: object) -> list[str]:
    """What is wrong with the output activations of a config, backbone's or probes', if anything."""
    faults = []
    for output in OUTPUT_MODES:
        mode = getattr(config, output)
        try:
            parse_mode(output, mode)
        except ValueError as error:
            faults.append(f"{output} {mode!r} is not supported; expected {error}")
    return faults
