"""Partial results of a long measurement, so that an interrupted one resumes where it stopped.

A folder beside the final result holds a file for each finished piece, and the options that the pieces depend on: pieces computed with
other options are never mixed in.
"""

import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import OutputError, UserError
from und3rstand_jax.support.files import fresh_file, open_own, own_folder, replace_text
from und3rstand_jax.support.output_folder import check_place
from und3rstand_jax.support.text import JsonObject, to_json

_QUESTION = "question.json"

_PREFIX = "array/"  # so that no name clashes with an argument of savez


class Pieces:
    """The pieces of one measurement, each a mapping from names to arrays."""

    def __init__(self, folder: Path, question: JsonObject) -> None:
        """Checks the folder, which is created with the first piece.

        Args:
            folder: the folder of the unfinished measurement.
            question: everything that the pieces depend on, as plain values.

        Raises:
            OutputError: it holds pieces of another measurement, or is not a folder of pieces.
        """
        check_place(folder)
        self.folder = folder
        self._question = to_json(question)
        if not folder.exists() or not os.listdir(folder):
            return
        try:
            held = to_json(read_json(folder / _QUESTION, dict[str, Any], UserError))
        except UserError as error:
            raise OutputError(f"{folder} holds something other than an unfinished measurement; move it elsewhere") from error
        if held != self._question:
            raise OutputError(
                f"{folder} holds an unfinished measurement with other options; give those again to finish it, or remove that folder"
            )

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """A finished piece; None if it is not finished, or its file is damaged."""
        try:
            with open_own(self._file(name)) as stream, np.load(stream, allow_pickle=False) as content:
                return {name.removeprefix(_PREFIX): values for name, values in content.items()}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Stores a piece, whole or not at all."""
        own_folder(self.folder)
        replace_text(self.folder / _QUESTION, self._question)
        with fresh_file(self._file(name), "wb") as stream:
            np.savez(stream, allow_pickle=False, **{f"{_PREFIX}{name}": values for name, values in arrays.items()})

    def remove(self) -> None:
        """Removes all pieces, once the result is complete. Other files in the folder stay."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            for file in (*self.folder.glob("*.npz"), self.folder / _QUESTION):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"
