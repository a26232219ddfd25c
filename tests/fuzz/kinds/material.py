"""What seeds are made of: the smallest checkpoints and data sets, as files in memory, made once in a process."""

import functools
import io
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny
from tests.fuzz.contract import Files, files_in
from tests.make_checkpoint import probe_state_dict, save_hub_folder

SMALL = {"enc_embed_dim": 8, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 8, "dec_depth": 1, "dec_num_heads": 2}
CONFIG: dict[str, Any] = tiny.CONFIG | SMALL
LAYERS = ("decoder.0.self_attn", "decoder.0.cross_attn", "decoder.0.mlp")


def made(write: Callable[[Path], object]) -> Files:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return files_in(Path(folder))


def backbone_tensors() -> dict[str, np.ndarray]:
    """A DUSt3R of eight channels and one block each, under the original's names."""
    return tiny.backbone_tensors(CONFIG)


def probe_tensors() -> dict[str, np.ndarray]:
    """A probe for each of its decoder's layers."""
    return probe_state_dict(CONFIG["dec_embed_dim"], 8, len(LAYERS), tiny.SEED)


@functools.cache
def source() -> Files:
    """Backbone and probes in one folder, as on the hub."""
    config = CONFIG | {"probes": {"activation": "gelu", "layer_ids": list(LAYERS), "norm_epsilon": 1e-5}}
    return made(lambda folder: save_hub_folder(folder, backbone_tensors() | probe_tensors(), config))


@functools.cache
def converted() -> Files:
    """The same, converted."""
    from tests.conversion import converted

    def write(folder: Path) -> None:
        logging.disable()  # the command's report of what it found
        try:
            with tempfile.TemporaryDirectory() as place:
                save_hub_folder(Path(place), backbone_tensors() | probe_tensors(), CONFIG)
                converted(place, folder / "checkpoint")
        finally:
            logging.disable(logging.NOTSET)

    return made(write)


def saved(array: np.ndarray) -> bytes:
    """An array as an `.npy` file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archive(arrays: Mapping[str, np.ndarray], compressed: bool = False) -> bytes:
    """Arrays as an `.npz` file."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()
