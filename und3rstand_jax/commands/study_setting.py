"""What studies are made of: the model, held-out pairs and their twins, and probes that are trained first."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from und3rstand_jax.analysis.pair_measures import held_out_pairs
from und3rstand_jax.analysis.studies.catalogue import Entry
from und3rstand_jax.analysis.studies.study import Control, EpipolarSet, Setting
from und3rstand_jax.analysis.twins import twins_of
from und3rstand_jax.commands.study_options import StudyOptions
from und3rstand_jax.data.loader import Feed, held_out, open_sources
from und3rstand_jax.data.specification import SYNTHETIC, DataSpec
from und3rstand_jax.report.checkpoint import load_model
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.support.text import size_text
from und3rstand_jax.train.control import BATCH_SIZE, train_control, train_epipolar_set
from und3rstand_jax.train.options import EpipolarOptions

TRAINED = ("control", "epipolar_probes")
"""Folders of runs beside unfinished studies."""

_logger = logging.getLogger(__name__)


def setting_of(options: StudyOptions, specs: tuple[DataSpec, ...], folder: Path, with_twins: bool) -> Setting:
    """The model, the held-out pairs of some data and, `with_twins`, theirs; without what has to be trained.

    Raises:
        UserError: the checkpoint, the data or the resolution cannot be used.
    """
    backbone, probes = load_model(folder, options.dtype, progress=True)
    height, width = backbone.config.img_size
    shape = parse_image_size(options.resolution or f"{width}x{height}", backbone.config.patch_size, "--resolution")
    feed = Feed(specs, (shape,), min(options.batch_size, options.pairs), options.seed, crop_jitter=False, workers=options.workers)
    pairs = held_out_pairs(feed, options.pairs, progress=True)
    return Setting(
        backbone,
        probes,
        pairs,
        twins_of(feed, pairs, progress=True) if with_twins else None,
        seed=options.seed,
        alignment=None if options.alignment == "usual" else options.alignment,
        batch_size=options.batch_size,
        progress=True,
    )


def places_of(specs: tuple[DataSpec, ...], options: StudyOptions, setting: Setting) -> list[list[int]]:
    """Of every pair the number of its source in --data and its own there; for rendered scenes that of the scene."""
    feed = Feed(specs, (setting.backbone.config.img_size,), 1, options.seed)
    return [list(place) for place in held_out(feed, open_sources(specs, "val"), options.pairs)]


def with_trained(setting: Setting, options: StudyOptions, folder: Path, place: Path, entries: Mapping[str, Entry]) -> Setting:
    """The setting with the probes that these studies want trained first.

    Args:
        setting: without them.
        options: of the command.
        folder: the converted checkpoint.
        place: where unfinished results are kept; runs are in folders `TRAINED` there.
        entries: the studies.

    Raises:
        KeyboardInterrupt: training was asked to stop; what was done is kept.
    """
    wanted = {need for entry in entries.values() for need in entry.needs | entry.wants}
    if "control" in wanted and options.control_steps:
        setting = dataclasses.replace(setting, control=_control(options, folder, place / TRAINED[0], setting))
    if "epipolar" in wanted:
        setting = dataclasses.replace(setting, epipolar=_epipolar(options, folder, place / TRAINED[1], setting))
    return setting


def _control(options: StudyOptions, folder: Path, place: Path, setting: Setting) -> Control:
    assert setting.probes is not None, "studies with a control read probes"
    pairs = 2 * options.control_steps * BATCH_SIZE
    _logger.info("control: probes are trained on the model and on random weights, %d forward and probe passes of a pair", pairs)
    layers, data = ",".join(setting.probes.layer_ids), options.data or (SYNTHETIC,)
    return train_control(folder, place, options.control_steps, layers, data, options.seed, _again(place))


def _epipolar(options: StudyOptions, folder: Path, place: Path, setting: Setting) -> EpipolarSet:
    _logger.info("epipolar: probes are trained on the model and on random weights, %d forward passes of a pair", 2 * options.epipolar_pairs)
    height, width = setting.pairs.views[0].shape[1:3]
    run = EpipolarOptions(
        backbone=str(folder),
        data=options.data or (SYNTHETIC,),
        resolution=(f"{width}x{height}",),
        pairs=options.epipolar_pairs,
        steps=options.epipolar_steps,
        at_once=options.batch_size,
        seed=options.seed,
        dtype=options.dtype,
        workers=options.workers,
    )
    return train_epipolar_set(run, place, setting.backbone.config, _again(place))


def _again(place: Path) -> str:
    return f"the same command goes on where it was; {place.parent} holds what is done"


def has_what_it_needs(name: str, entry: Entry, setting: Setting, asked_for: bool) -> bool:
    """Whether a study can be made; one that was asked for by name and cannot is an error."""
    lacking = {
        "head": setting.backbone.config.head_type is None and "a backbone with its head",
        "probes": setting.probes is None and "probes on the decoder's layers (train them with python -m train --layers all)",
        "twins": setting.twins is None and "pairs that share view 1, which rendered scenes have (--data synthetic)",
    }
    needs = [text for need in entry.needs if (text := lacking.get(need))]
    if not needs:
        return True
    if asked_for:
        raise CheckpointError(f"the study {name} needs {' and '.join(needs)}")
    _logger.info("left out: %s, which needs %s", name, " and ".join(needs))
    return False


def tell_cost(runnable: Mapping[str, Entry], setting: Setting) -> None:
    """Says beforehand what every study will take."""
    for name, entry in runnable.items():
        passes, memory, disk = entry.cost(setting)
        _logger.info("%s: about %d forward passes of a pair, %s of memory, %s on disk", name, passes, size_text(memory), size_text(disk))
