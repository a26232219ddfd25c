"""Options for training probes on tokens kept from a frozen backbone's passes; see `und3rstand_jax.train.kept_task`.

The text under a field is its help. Nothing here imports JAX, so that `--help` is fast.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from und3rstand_jax.support.option_kinds import Real, Whole
from und3rstand_jax.train.options import PUBLISHED_BACKBONE, RunOptions


@dataclasses.dataclass(frozen=True)
class EpipolarOptions(RunOptions):
    """Trains epipolar probes on the averaged tokens of a frozen model's layers, or of one with random weights as a control.

    The backbone runs once over a fixed number of training pairs, whose averaged tokens are kept; steps draw their batches from these.
    """

    backbone: str = PUBLISHED_BACKBONE
    """Backbone to probe: hub id, PyTorch folder or file, or converted checkpoint."""
    fresh: int | None = None
    """Seed of random weights to use in place of the backbone's, as a control."""
    layers: str | None = None
    """Layers to probe; by default those of the part in which views meet."""
    hidden: Whole = 256
    """Width of a probe's hidden layer."""
    pairs: Whole = 1024
    """Training pairs, which are used again and again, in order."""
    correspondences: Whole = 128
    """Maximum number of correspondences of a pair that the loss uses."""
    at_once: Whole = 16
    """Pairs that one device runs through the backbone at once."""
    out: Path = Path("epipolar_run")
    """Output folder of the run."""

    steps: Whole = 300
    """Number of optimiser steps."""
    batch_size: int | None = 64
    """Pairs per step, over all devices."""
    augment: bool = False
    """Augment training images; the probes see each pair's tokens many times, always with the same augmentation."""
    learning_rate: Real = 2e-3
    """Peak learning rate."""
    weight_decay: Real = 1.0
    """Weight decay. Far above that of pointmap probes, which never see a pair twice."""
    validate_every: Whole = 100
    """Steps between validations."""
    save_every: Whole = 100
    """Steps between checkpoints."""
    log_every: Whole = 20
    """Steps between entries of the log."""


@dataclasses.dataclass(frozen=True)
class PoseOptions(RunOptions):
    """Trains a linear probe for cameras on the camera token of every chosen layer of a frozen model that has such a token (a VGGT).

    Each probe reads the camera token of one view after the first and gives that view's camera in view 1's frame. The backbone runs once
    over a fixed number of training sets, whose tokens are kept; the steps draw their batches from these. The report at the end has the
    errors of every layer in degrees, beside those of one constant camera for all. A run that was interrupted resumes when the same command
    is given again.
    """

    layers: Annotated[str, tyro.conf.arg(metavar="PATTERNS")] = "all"
    """Layers to probe, as comma-separated ids or shell-style patterns. all: every layer of the blocks in which views meet."""
    backbone: Annotated[str, tyro.conf.arg(metavar="SOURCE")] = "facebook/VGGT-1B"
    """Backbone to probe: hub id, PyTorch folder or file, or converted checkpoint."""
    fresh: Annotated[int | None, tyro.conf.arg(metavar="SEED", help_behavior_hint="(default: the backbone's own weights)")] = None
    """Seed of random weights to use instead of the backbone's, as a control."""
    views: Whole = 2
    """Views in a set, the same in all data. A VGGT takes any number; at least 2 are needed, since probes read those after the first."""
    pairs: Whole = 1024
    """Number of training sets of views, which are used again and again, in order."""
    at_once: Whole = 4
    """Sets that one device runs through the backbone at once."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("pose_run")
    """Output folder of the run, on the first host."""

    steps: Whole = 300
    """Number of optimiser steps."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 64)")] = 64
    """Sets per step, over all devices."""
    augment: bool = False
    """Augment training images. The probes see each set's tokens many times, always with the same augmentation."""
    learning_rate: Real = 2e-3
    """Peak learning rate, reached after warm-up."""
    weight_decay: Real = 1.0
    """Weight decay, far above that of pointmap probes, which never see a set twice."""
    validate_every: Whole = 100
    """Steps between validations."""
    save_every: Whole = 100
    """Steps between checkpoints."""
    log_every: Whole = 20
    """Steps between entries of the log."""
