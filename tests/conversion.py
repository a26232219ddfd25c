"""Checkpoints on disk in the layouts that the original's come in, and their conversion with the real command."""

import argparse
import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from und3rstand_jax.commands.convert import main


def converted(source: Path | str, out: Path, *options: str) -> Path:
    """`python -m convert --repo source --out out`, which must succeed."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["--repo", str(source), "--out", str(out), *options]) == 0
    return out


def args_string(config: Mapping[str, Any], name: str = "AsymmetricCroCo3DStereo") -> str:
    """The call that a `.pth` holds for this config."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def save_pth(file: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], name: str = "AsymmetricCroCo3DStereo") -> Path:
    """A training checkpoint as the original saves it: the weights, and the model's call in a Namespace."""
    import torch

    model = {key: torch.from_numpy(np.ascontiguousarray(tensor)) for key, tensor in tensors.items()}
    args = argparse.Namespace(model=args_string(config, name), lr=1e-4)
    torch.save({"args": args, "model": model, "epoch": 3}, file)
    return file


def flip_a_bit(chunk: Path) -> None:
    """Changes a value of a small leaf on disk as a failing disk does, so that it still reads: its chunk is stored uncompressed."""
    content = bytearray(chunk.read_bytes())
    content[-3] ^= 0x10
    chunk.write_bytes(content)
