"""What stands in folders of results beside the results: markers, the record of a lock, that of a cache's entry."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.contract import Files, Kind

_MARKERS = ("run.json", "report.json", "metrics.json", "two_views.json")


def _marker_seeds() -> Sequence[Files]:
    formats = ("pointmaps", "report", "evaluation", "two views")
    words = [{"format": f"und3rstand_jax {word}", "version": 1, "files": ["a.npz", "b/c.png"]} for word in formats]
    return [{name: json.dumps(word).encode() for name, word in zip(_MARKERS, words, strict=True)} | {"a.npz": b"", "b/c.png": b""}]


def _check_folders(folder: Path) -> None:
    """All that `--overwrite` looks at."""
    from und3rstand_jax.analysis import evaluation_files, two_views
    from und3rstand_jax.report import edited_files, numbers, pointmap_files
    from und3rstand_jax.support.errors import OutputError
    from und3rstand_jax.support.output_folder import check_output_folder
    from und3rstand_jax.support.results import result_of
    from und3rstand_jax.train.run.folder import is_run

    two_views.is_two_views(folder / "two_views.json")
    is_run(folder)
    marked = (
        (pointmap_files.FORMAT, pointmap_files.RECORD),
        (edited_files.FORMAT, edited_files.RECORD),
        (numbers.FORMAT, numbers.NUMBERS),
        (evaluation_files.FORMAT, evaluation_files.METRICS),
    )
    refused = 0
    for format, marker in marked:
        try:
            check_output_folder(folder, True, result_of(format, marker))
        except OutputError:
            refused += 1
    # Each kind of result finds the markers of the others beside its own.
    assert refused == len(marked)


def _lock_seeds() -> Sequence[Files]:
    return [{".lock": json.dumps({"host": "here", "namespace": "1", "process": 1, "started": "2026-01-01 00:00:00 +0000"}).encode()}]


def _hold(folder: Path) -> None:
    """Whatever the file of a lock says, it is held while the system's lock is, and free after that."""
    import fcntl

    from und3rstand_jax.support.errors import OutputError
    from und3rstand_jax.support.locks import locked

    with (folder / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        try:
            locked(folder / ".lock", "a folder").__enter__()
        except OutputError as error:
            assert "a folder is in use by" in str(error) and str(error).isprintable()
        else:
            raise AssertionError("two hold it")
    with locked(folder / ".lock", "a folder"):
        assert (folder / ".lock").stat().st_size > 10


KINDS = (
    Kind("result markers", _marker_seeds, _check_folders, _MARKERS),
    Kind("lock", _lock_seeds, _hold),
)
