"""A study as JSON, as CSV, as text to print, and its figures as PNG and SVG."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from typing_extensions import TypedDict

from und3rstand_jax.analysis.studies.study import Mean, Record, Study
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import DataError
from und3rstand_jax.support.text import JsonObject, text_table, to_json

FORMAT, RECORD = "und3rstand_jax studies", "studies.json"
"""For a folder of studies, the name of its format and the file that lists what is in it."""

VERSION = 1

SUFFIXES = ("png", "svg")

_DPI = 150


class MeanDocument(TypedDict):
    """A mean and its standard error; "inf" where it is infinite, null where there is none."""

    mean: float | str | None
    error: float | str | None


class StudyDocument(TypedDict):
    """The content of NAME.json; see `Study`, whose `by_pair` is `pairs` here."""

    format: str
    version: int
    study: str
    title: str
    findings: list[str]
    meaning: dict[str, str]
    facts: dict[str, Any]
    records: list[dict[str, str | int | float | MeanDocument | None]]
    pairs: dict[str, list[Any]]


def read_study(file: Path) -> StudyDocument:
    """A study from its JSON.

    Raises:
        DataError: the file is not a study's, or is of another version.
    """
    content = read_json(file, StudyDocument, DataError)
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise DataError(f"{file}: expected {FORMAT}, version {VERSION}; found {content['format']}, version {content['version']}")
    return content


def write_study(folder: Path, study: Study, facts: JsonObject) -> None:
    """Writes NAME.json, NAME.csv and the figures.

    Args:
        folder: an existing one.
        study: what was found.
        facts: what it was run on and with: checkpoint, data, options, versions.
    """
    # On one line: indented, with one number per line, every pair's values would take several times the space.
    (folder / f"{study.name}.json").write_text(f"{to_json(as_json(study, facts), indent=None)}\n", encoding="utf-8")
    (folder / f"{study.name}.csv").write_text(as_csv(study), encoding="utf-8")
    # With a random salt and a date, the same numbers would make a different SVG every time.
    with rc_context({"svg.hashsalt": study.name}):
        for end, figure in study.figures.items():
            for suffix in SUFFIXES:
                figure.savefig(folder / figure_file(study, end, suffix), dpi=_DPI, metadata={"Date": None} if suffix == "svg" else None)


def figure_file(study: Study, end: str, suffix: str) -> str:
    """The name of a figure's file."""
    return f"{study.name}{f'_{end}' if end else ''}.{suffix}"


def as_json(study: Study, facts: JsonObject) -> JsonObject:
    """Everything, unrounded: a mean is {"mean": …, "error": …}, its standard error over pairs."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "study": study.name,
        "title": study.title,
        "findings": list(study.findings),
        "meaning": dict(study.meaning),
        "facts": {**facts, **study.facts},
        "records": [{name: _plain(cell) for name, cell in record.items()} for record in study.records],
        "pairs": {name: _shortest(values) for name, values in study.by_pair.items()},
    }


def as_csv(study: Study) -> str:
    """A line for each record; a mean has two columns, NAME and NAME_error."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for record in study.records for name, _ in _columns(record)))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(_columns(record)) for record in study.records)
    return text.getvalue()


def format_study(study: Study) -> str:
    """The findings, then the tables, as plain text."""
    tables = [f"{table.title}\n{text_table(table.columns, table.rows, numbers_from=1, indent=2)}" for table in study.tables]
    findings = "\n".join(f"- {finding}" for finding in study.findings)
    return "\n\n".join([f"{study.name}: {study.title}", *([findings] if findings else []), *tables])


def _columns(record: Record) -> Iterator[tuple[str, Any]]:
    for name, cell in record.items():
        if isinstance(cell, Mean):
            yield from ((name, cell.mean), (f"{name}_error", cell.error))
        else:
            yield name, "" if cell is None else cell


def _shortest(values: Float[np.ndarray, "S ..."]) -> Any:
    """Nested lists of the shortest decimals that round to the same numbers in the array's own precision."""
    return np.asarray(values).astype(str).astype(np.float64).tolist()


def _plain(cell: object) -> object:
    return cell._asdict() if isinstance(cell, Mean) else cell
