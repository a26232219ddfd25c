"""Text: aligned tables, one-line messages, strict JSON, and small files written whole or not at all."""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

JsonObject: TypeAlias = Mapping[str, Any]
"""Nested values that `strict_json` takes, by name."""


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None, indent: int = 0) -> str:
    """Rows under a head, in aligned columns with two spaces between them, as plain text without trailing spaces.

    Args:
        head: the columns' titles; empty for a table without a head. A title may have several lines.
        rows: cells, as many in each row as there are columns.
        numbers_from: the first column that is aligned to the right, as numbers are; by default none is.
        indent: spaces before every line.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    columns = len(head) or max(map(len, rows), default=0)
    table = Table(box=None, show_header=bool(head), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for number in range(columns):
        right = numbers_from is not None and number >= numbers_from
        table.add_column(Text(head[number]) if head else "", justify="right" if right else "left", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    # Wide enough for any table: a log or a file has no width to fit into, and a terminal wraps by itself.
    Console(file=out, width=10_000, color_system=None, legacy_windows=False).print(table)
    return "\n".join((" " * indent + line).rstrip() for line in out.getvalue().splitlines())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def one_line(message: object, longest: int = 300) -> str:
    """A message of any shape as one line of at most so many characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def strict_json(value: Any) -> Any:
    """A copy of nested data in which everything has a form in strict JSON.

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
    """Writes a file whole or not at all; a file that holds this text already is left alone."""
    if file.exists() and file.read_text() == text:
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    os.replace(partial, file)
