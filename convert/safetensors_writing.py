"""Writes safetensors files."""

import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors, contiguous ones, with the permissions that a new file has; safetensors would keep it from all but its owner.

    Raises:
        OSError: the file cannot be written.
        safetensors.SafetensorError: the same, in the library's words.
    """
    from safetensors.numpy import save_file

    file.touch()
    permissions = stat.S_IMODE(file.stat().st_mode)
    save_file(dict(tensors), file, None if metadata is None else dict(metadata))
    file.chmod(permissions)
