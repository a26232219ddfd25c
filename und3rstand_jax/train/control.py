"""The control for probes: the same probes, trained in the same way, on the model and on a backbone with random weights.

The study of layers uses pointmap probes, the study of the fundamental matrix epipolar probes.

What probes achieve on random weights, they compute themselves (control tasks, Hewitt & Liang 2019). Only the improvement of the model's
probes over these comes from what the model has learned.
"""

import dataclasses
import logging
from pathlib import Path

from und3rstand_jax.analysis.studies.study import Control, EpipolarSet
from und3rstand_jax.checkpoint.format import is_checkpoint
from und3rstand_jax.loading import load_backbone_and_probe
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.train.kept_options import EpipolarOptions
from und3rstand_jax.train.options import TrainOptions
from und3rstand_jax.train.probes_task import PROBES
from und3rstand_jax.train.run.epipolar import train_epipolar
from und3rstand_jax.train.run.training import train
from und3rstand_jax.train.trained import write_trained_backbone

BATCH_SIZE = 8

_logger = logging.getLogger(__name__)


def train_control(run: TrainOptions, folder: Path, config: ModelConfig, command: str) -> Control:
    """Trains probes on the model and on random weights, or resumes an interrupted training.

    Args:
        run: the run on the model, a converted checkpoint; see `control_options`. Its seed also draws the random weights.
        folder: where the runs are kept.
        config: the model's architecture.
        command: what the user typed, to say how to resume.

    Raises:
        KeyboardInterrupt: the process was asked to stop; the work done so far is kept.
        UserError: the data or the checkpoint cannot be used, or the folder contains runs with other options.
    """
    random = folder / f"random_{run.seed}"
    if not is_checkpoint(random):
        # Training in this package has no initialisation of its own: a run from scratch begins with Flax's.
        write_trained_backbone(random, config, random_backbone(config, run.seed).params, {"steps": 0, "seed": run.seed}, overwrite=True)
    trained = {}
    for name, backbone in (("on_model", run.backbone), ("on_random", str(random))):
        options = dataclasses.replace(run, backbone=backbone, out=folder / name)
        _logger.info("control: probes %s", name.replace("_", " "))
        # A finished run is checked to have these options, and left as it is.
        train(options, command, _logger.warning)
        if not is_checkpoint(options.out / PROBES):
            raise KeyboardInterrupt
        trained[name] = load_backbone_and_probe(options.out / PROBES, dtype=run.dtype)
    how = (
        f"{run.steps} steps of {run.batch_size} pairs of {' '.join(run.resolution)} pixels, "
        f"learning rate {run.learning_rate:g} to {run.final_learning_rate:g}, seed {run.seed}"
    )
    return Control(trained["on_random"][0], trained["on_random"][1], trained["on_model"][1], how)


def control_options(run: TrainOptions, steps: int) -> TrainOptions:
    """The run with the settings of the pocket model's own probes, but with fewer steps and pairs."""
    return dataclasses.replace(
        run,
        steps=steps,
        batch_size=BATCH_SIZE,
        augment=False,
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        validate_every=steps,
        val_pairs=BATCH_SIZE,
        save_every=max(1, steps // 4),
    )


def train_epipolar_set(run: EpipolarOptions, folder: Path, config: ModelConfig, command: str) -> EpipolarSet:
    """Trains epipolar probes on the model and on random weights, or resumes an interrupted training.

    Args:
        run: the run on the model; its seed also draws the random weights.
        folder: where the runs are kept.
        config: the model's architecture.
        command: what the user typed, to say how to resume.

    Raises:
        KeyboardInterrupt: the process was asked to stop; the work done so far is kept.
        UserError: the data or the checkpoint cannot be used.
    """
    trained = []
    for name, fresh in (("on_model", None), ("on_random", run.seed)):
        found = train_epipolar(dataclasses.replace(run, out=folder / name, fresh=fresh), command, _logger.warning)
        if found is None:
            raise KeyboardInterrupt
        trained.append(found)
    return EpipolarSet(trained[0], trained[1], random_backbone(config, run.seed, run.dtype))
