"""The control of probes: the same probes, trained in the same way, on the model and on a backbone with random weights.

Pointmap probes for the study of layers, epipolar probes for that of the fundamental matrix.

What probes can do on random weights they do by themselves (control tasks, Hewitt & Liang 2019): only what the model's do better is read
from what it has learned.
"""

import dataclasses
import logging
from pathlib import Path

from und3rstand_jax.analysis.studies.study import Control, EpipolarSet
from und3rstand_jax.checkpoint.format import is_checkpoint
from und3rstand_jax.loading import load_backbone, load_backbone_and_probe
from und3rstand_jax.model.backbone import random_backbone
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.train.options import EpipolarOptions, TrainOptions
from und3rstand_jax.train.probes_task import PROBES
from und3rstand_jax.train.run.epipolar import train_epipolar
from und3rstand_jax.train.run.training import train
from und3rstand_jax.train.trained import write_trained_backbone

BATCH_SIZE = 8

_LEARNING_RATE, _LAST_LEARNING_RATE = 2e-3, 2e-5

_logger = logging.getLogger(__name__)


def train_control(checkpoint: Path, folder: Path, steps: int, layers: str, data: tuple[str, ...], seed: int, command: str) -> Control:
    """Trains probes on the model and on random weights, or goes on where that was interrupted.

    Args:
        checkpoint: a converted checkpoint with the model.
        folder: where the runs are kept.
        steps: of `BATCH_SIZE` pairs on one device.
        layers: to probe, by pattern.
        data: as in training.
        seed: of the weights, the probes and the pairs.
        command: what the user typed, to say how to go on.

    Raises:
        KeyboardInterrupt: it was asked to stop; what was done is kept.
        UserError: the data or the checkpoint cannot be used.
    """
    random = folder / "random"
    config = load_backbone(checkpoint).config
    if not is_checkpoint(random):
        # The recipe of this package's training has no special initialisation: Flax's is what a run from scratch begins with.
        write_trained_backbone(random, config, random_backbone(config, seed).params, {"steps": 0, "seed": seed}, overwrite=True)
    trained = {}
    for name, backbone in (("on_model", checkpoint), ("on_random", random)):
        options = control_options(config, backbone, folder / name, steps, layers, data, seed)
        if not is_checkpoint(options.out / PROBES):
            _logger.info("control: probes %s", name.replace("_", " "))
            train(options, command, _logger.warning)
        if not is_checkpoint(options.out / PROBES):
            raise KeyboardInterrupt
        trained[name] = load_backbone_and_probe(options.out / PROBES)
    how = f"{steps} steps of {BATCH_SIZE} pairs, learning rate {_LEARNING_RATE:g} to {_LAST_LEARNING_RATE:g}, seed {seed}"
    return Control(trained["on_random"][0], trained["on_random"][1], trained["on_model"][1], how)


def control_options(
    config: BackboneConfig, backbone: Path, out: Path, steps: int, layers: str, data: tuple[str, ...], seed: int
) -> TrainOptions:
    """The run of one of the two: as the pocket model's own probes were trained, with fewer steps."""
    height, width = config.img_size
    options = TrainOptions(layers=layers, backbone=str(backbone))
    return dataclasses.replace(
        options,
        out=out,
        data=data,
        steps=steps,
        batch_size=BATCH_SIZE,
        resolution=(f"{width}x{height}",),
        augment=False,
        learning_rate=_LEARNING_RATE,
        final_learning_rate=_LAST_LEARNING_RATE,
        validate_every=steps,
        val_pairs=BATCH_SIZE,
        save_every=max(1, steps // 4),
        seed=seed,
    )


def train_epipolar_set(run: EpipolarOptions, folder: Path, config: BackboneConfig, command: str) -> EpipolarSet:
    """Trains epipolar probes on the model and on random weights, or goes on where that was interrupted.

    Args:
        run: on the model; its seed is that of the random weights too.
        folder: where the runs are kept.
        config: of the model.
        command: what the user typed, to say how to go on.

    Raises:
        KeyboardInterrupt: it was asked to stop; what was done is kept.
        UserError: the data or the checkpoint cannot be used.
    """
    trained = []
    for name, fresh in (("on_model", None), ("on_random", run.seed)):
        found = train_epipolar(dataclasses.replace(run, out=folder / name, fresh=fresh), command, _logger.warning)
        if found is None:
            raise KeyboardInterrupt
        trained.append(found)
    return EpipolarSet(trained[0], trained[1], random_backbone(config, run.seed))
