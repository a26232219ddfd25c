"""What a data set on disk is to the code that crops and inspects it: a list of pairs, each of two views that can be read."""

from pathlib import Path
from typing import Literal, Protocol

from train.data.records import View

Split = Literal["train", "val"]


class ViewFiles(Protocol):
    """One view on disk."""

    @property
    def image(self) -> Path:
        """The photo, by which messages call the view."""
        ...

    def read(self) -> View:
        """The view as the files have it, neither cropped nor resized; camera in float64. Raises UnreadablePair."""
        ...


class Listing(Protocol):
    """The pairs of one split of a data set. Small: paths and index arrays."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was counted or left out when the list was made, a line each."""
        ...

    def __len__(self) -> int: ...

    def files(self, index: int) -> tuple[ViewFiles, ViewFiles]:
        """Where the two views of a pair are. Reads nothing."""
        ...


def found_in(folder: Path) -> str:
    """What there is at `folder`, in words, for messages about a wrong root."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return "that is a file"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    if not names:
        return "the folder is empty"
    return f"the folder holds {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
