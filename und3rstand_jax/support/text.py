"""Text: printable strings, aligned tables, one-line messages, strict JSON."""

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]
"""Nested values that `strict_json` takes, by name."""


# Direction marks, which reorder what is seen, are format characters (Cf), as is the soft hyphen; str.isprintable is False for all of them.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")  # to the last @: a password may hold one
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def printable(text: object, keep: str = "") -> str:
    """Text that is safe to show on a terminal: escape sequences, line ends, direction marks and stray bytes are escaped.

    Names come from untrusted files, tensors and configs, and could otherwise rewrite the screen or fake a whole line. Secrets must not
    end up in a log: the credentials in a URL and the hub's tokens become ***.

    Args:
        text: of any origin.
        keep: characters to leave alone, such as a line feed.
    """
    shown = _TOKEN.sub("hf_***", _CREDENTIALS.sub("***@", str(text)))
    if shown.isprintable():
        return shown
    return "".join(letter if letter.isprintable() or letter in keep else _escaped(letter) for letter in shown)


def _escaped(letter: str) -> str:
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte of a file's name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return repr(letter)[1:-1]


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None, indent: int = 0) -> str:
    """Rows under a head, in aligned columns with two spaces between them, as plain text without trailing spaces.

    Args:
        head: the columns' titles; empty for a table without a head. A title may have several lines.
        rows: cells, as many in each row as there are columns.
        numbers_from: the first of the right-aligned columns, which hold numbers; by default there are none.
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
        table.add_row(*(Text(printable(cell)) for cell in row))
    out = io.StringIO()
    # Wide enough for any table: a log or a file has no width to fit into, and a terminal wraps by itself. In a notebook, rich would show
    # the table below the cell and write nothing.
    Console(file=out, width=10_000, color_system=None, legacy_windows=False, force_jupyter=False).print(table)
    return "\n".join((" " * indent + line).rstrip() for line in out.getvalue().splitlines())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *(map(printable, row) for row in rows)))


def one_line(message: object, longest: int = 300) -> str:
    """Any message as one line of at most `longest` characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def number_text(value: float) -> str:
    """A number for a message, however large it is."""
    return f"{value:.12g}" if abs(value) < 1e300 else "a number of more than 300 digits"


def size_text(count: int) -> str:
    """A number of bytes for a message."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{round(count / size, 1):g} {unit}"
    return f"{round(count / 2**10, 1):g} KiB"


def listed(texts: Iterable[object], between: str = ", ", most: int = 10, longest: int = 200) -> str:
    """The first of many texts in one line, and how many more there are: a stranger's file must not make a message arbitrarily long.

    Args:
        texts: what to list.
        between: what separates them.
        most: how many are shown.
        longest: the most characters of each; longer ones lose their middle.
    """
    held = [str(text) for text in texts]
    shown = [text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}" for text in held[:most]]
    return between.join([*shown, *([f"and {len(held) - most:,} more"] if len(held) > most else [])])


def strict_json(value: Any) -> Any:
    """A copy of nested data in which everything has a form in strict JSON.

    NaN becomes None and an infinity "inf" or "-inf"; tuples become lists, NumPy's scalars Python's, keys strings.
    """
    import numpy as np  # here to keep --help quick

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
