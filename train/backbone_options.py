"""Every option of training a backbone."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.options import RunOptions


@dataclasses.dataclass(frozen=True)
class BackboneOptions(RunOptions):
    """Trains a DUSt3R itself, trunk and heads: from scratch, or on from a checkpoint with --start.

    The loop is that of the probes, with the same data, loss, checkpoints and devices. The run ends with DIR/backbone, a converted
    checkpoint; python -m convert --to-torch writes it in PyTorch's layout.
    Interrupted, by Ctrl-C, SIGTERM or worse, the same command goes on where the last checkpoint is.
    """

    start: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """Hub id, PyTorch folder or file, or converted checkpoint to go on from; the options of the architecture are then the checkpoint's."""
    fresh_confidence: bool = False
    """Begin with a confidence of 2 in every pixel in place of the checkpoint's: one that has sunk to its bound has no gradient left."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("backbone_run")
    """Folder of the run, on the first of several hosts; the others write there only what they could not read."""

    image_size: Annotated[str | None, tyro.conf.arg(metavar="WxH")] = None
    """Size of the images it is made for, in pixels, multiples of 16; 128x128 from scratch."""
    enc_depth: int | None = None
    """Encoder blocks; 4 from scratch."""
    enc_width: int | None = None
    """Channels of the encoder's tokens; 192 from scratch."""
    enc_heads: int | None = None
    """Heads of its attention; 3 from scratch."""
    dec_depth: int | None = None
    """Decoder blocks of each view; 8 from scratch."""
    dec_width: int | None = None
    """Channels of the decoder's tokens; 128 from scratch."""
    dec_heads: int | None = None
    """Heads of its attention; 4 from scratch."""
    mlp_ratio: int | None = None
    """Hidden channels of a block's MLP for each of its tokens' channels; 3 from scratch."""
    head: Literal["linear", "dpt"] | None = None
    """What turns tokens into pointmaps; linear from scratch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes the blocks' matrices and leaves the rest to AdamW."""
