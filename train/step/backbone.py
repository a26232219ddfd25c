"""The frozen backbone's parameters as the step takes them."""

from collections.abc import Mapping
from typing import Any


def trunk_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder and decoder of a DUSt3R's parameter tree. Probes read its layers, never the heads: these need not lie on every device."""
    return {name: part for name, part in params.items() if not name.startswith("head")}
