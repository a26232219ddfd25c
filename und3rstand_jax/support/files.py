"""Small files of text and JSON, written whole or not at all."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def strict_json(value: Any) -> Any:
    """A copy of nested data as strict JSON has it.

    NaN becomes None and an infinity "inf" or "-inf"; tuples become lists, NumPy's scalars Python's, keys strings.
    """
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def to_json(value: Any, indent: int | None = 1) -> str:
    """Strict JSON text of nested data (see `strict_json`), ending in a newline where it is indented."""
    text = json.dumps(strict_json(value), indent=indent, allow_nan=False)
    return text if indent is None else f"{text}\n"


def replace_text(file: Path, text: str) -> None:
    """Writes a file whole or not at all; one that says the same already is left alone."""
    if file.exists() and file.read_text() == text:
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    os.replace(partial, file)
