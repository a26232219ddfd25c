"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from und3rstand_jax.errors import UserError


def check_output_folder(folder: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuses a folder that may not be written, before any work is done for it.

    Args:
        folder: where results are to go. Missing or empty is fine.
        overwrite: whether an earlier result there may be replaced.
        is_ours: whether a folder is an earlier result; anything else is never replaced.

    Raises:
        UserError: the path is a file, or holds something that may not be replaced.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must name a folder")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{folder} is not empty; choose another --out, or give --overwrite to replace it")
    if not is_ours(folder):
        raise UserError(f"{folder} holds no earlier result and is not replaced; choose another --out")


@contextlib.contextmanager
def output_folder(folder: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` and moves it there when the block ends without an exception.

    Arguments and errors are those of `check_output_folder`. A failed block leaves nothing behind; a killed one leaves
    `.NAME.partial-…`, never a half-written `folder`.
    """
    check_output_folder(folder, overwrite, is_ours)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(folder, "partial")
    partial.mkdir()
    try:
        yield partial
        check_output_folder(folder, overwrite, is_ours)
        _move_into_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _move_into_place(partial: Path, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        earlier = _sibling(folder, "earlier")
        os.rename(folder, earlier)
        os.rename(partial, folder)
        shutil.rmtree(earlier)
    else:
        # A rename replaces an empty folder in one step, and only an empty one.
        os.rename(partial, folder)


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}-{uuid.uuid4().hex[:8]}")
