"""The inputs of studies: the model, held-out pairs and their twins, and probes that are trained first."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import jax

from und3rstand_jax.analysis.held_out import held_out_pairs, twins_of
from und3rstand_jax.analysis.studies.catalogue import Entry
from und3rstand_jax.analysis.studies.study import Control, EpipolarSet, Setting
from und3rstand_jax.commands.study_options import StudyOptions
from und3rstand_jax.data.loader import Feed, held_out, open_sources
from und3rstand_jax.data.specification import SYNTHETIC, DataSpec
from und3rstand_jax.report.checkpoint import load_model
from und3rstand_jax.support.errors import CheckpointError, DataError, OptionError
from und3rstand_jax.support.option_values import parse_image_size
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.text import size_text
from und3rstand_jax.train.control import BATCH_SIZE, control_options, train_control, train_epipolar_set
from und3rstand_jax.train.kept_options import EpipolarOptions
from und3rstand_jax.train.options import TrainOptions

TRAINED = ("control", "epipolar_probes")
"""Folders of training runs beside unfinished studies."""

_logger = logging.getLogger(__name__)


def setting_of(options: StudyOptions, specs: tuple[DataSpec, ...], folder: Path, with_twins: bool) -> Setting:
    """The model, the data's held-out pairs and, if `with_twins`, their twins; without the probes that have to be trained.

    Raises:
        UserError: the checkpoint, the data or the resolution cannot be used.
    """
    with timed("loading %s", options.checkpoint):
        backbone, probes = load_model(folder, options.dtype, progress=True)
    height, width = backbone.config.img_size
    shape = parse_image_size(options.resolution or f"{width}x{height}", backbone.config.patch_size, "--resolution")
    feed = Feed(specs, (shape,), min(options.batch_size, options.pairs), options.seed, crop_jitter=False, workers=options.workers)
    pairs = held_out_pairs(feed, options.pairs, progress=True)
    if len(pairs.truths) < 2:
        raise DataError("a study needs at least two held-out pairs, one as the other's control; found one; give more data")
    return Setting(
        backbone,
        probes,
        pairs,
        twins_of(feed, pairs, progress=True) if with_twins else None,
        seed=options.seed,
        alignment=options.alignment,
        batch_size=options.batch_size,
        progress=True,
    )


def places_of(specs: tuple[DataSpec, ...], options: StudyOptions, setting: Setting) -> list[list[int]]:
    """For every pair, the index of its source in --data and its own index there; for rendered scenes, the scene's number."""
    feed = Feed(specs, (setting.backbone.config.img_size,), 1, options.seed)
    return [list(place) for place in held_out(feed, open_sources(specs, "val"), options.pairs)]


def with_trained(setting: Setting, options: StudyOptions, folder: Path, place: Path, entries: Mapping[str, Entry]) -> Setting:
    """The setting with the probes that these studies need, which are trained first.

    Args:
        setting: the setting without them.
        options: the command's options.
        folder: the converted checkpoint.
        place: where unfinished results are kept; runs are in the folders `TRAINED` there.
        entries: the studies.

    Raises:
        KeyboardInterrupt: training was asked to stop; the work done so far is kept.
    """
    wanted = {need for entry in entries.values() for need in entry.needs | entry.wants}
    if "control" in wanted and options.control_steps:
        setting = dataclasses.replace(setting, control=_control(options, folder, place / TRAINED[0], setting))
    if "epipolar" in wanted:
        setting = dataclasses.replace(setting, epipolar=_epipolar(options, folder, place / TRAINED[1], setting))
    return setting


def _control(options: StudyOptions, folder: Path, place: Path, setting: Setting) -> Control:
    assert setting.probes is not None, "studies with a control read probes"
    height, width = setting.pairs.views[0].shape[1:3]
    run = TrainOptions(
        backbone=str(folder),
        layers=",".join(setting.probes.layer_ids),
        data=options.data or (SYNTHETIC,),
        views=options.views,
        resolution=(f"{width}x{height}",),
        seed=options.seed,
        dtype=options.dtype,
        workers=options.workers,
    )
    return train_control(control_options(run, options.control_steps), place, setting.backbone.config, _again(place))


def _epipolar(options: StudyOptions, folder: Path, place: Path, setting: Setting) -> EpipolarSet:
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
    return f"give the same command again; the work so far is in {place.parent}"


def has_what_it_needs(name: str, entry: Entry, setting: Setting, asked_for: bool) -> bool:
    """Whether a study can run.

    Raises:
        CheckpointError: it cannot, and was asked for by name.
    """
    lacking = {
        "head": not setting.backbone.config.heads and "a backbone with its head",
        "probes": setting.probes is None and "probes on its layers (train them with python -m train --layers all)",
        "twins": setting.twins is None and "pairs that share view 1, which rendered scenes have (--data synthetic)",
    }
    needs = [text for need in entry.needs if (text := lacking.get(need))]
    if not needs:
        return True
    if asked_for:
        raise CheckpointError(f"the study {name} needs {' and '.join(needs)}")
    _logger.info("skipping %s: it needs %s", name, " and ".join(needs))
    return False


def takes_views(name: str, entry: Entry, views: int, asked_for: bool) -> bool:
    """Whether a study can run on sets of this many views.

    Raises:
        OptionError: it is for pairs only, and was asked for by name.
    """
    if views == 2 or not entry.pairs_only:
        return True
    if asked_for:
        raise OptionError(f"--views {views}: the study {name} is for pairs only, since {entry.pairs_only}; omit --views")
    _logger.info("skipping %s: it is for pairs only, since %s", name, entry.pairs_only)
    return False


def tell_cost(runnable: Mapping[str, Entry], setting: Setting, options: StudyOptions) -> None:
    """Logs beforehand what training and every study will take."""
    wanted = {need for entry in runnable.values() for need in entry.needs | entry.wants}
    if "control" in wanted and options.control_steps and setting.probes is not None:
        model, probes = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (setting.backbone.params, setting.probes.params))
        passes = 2 * options.control_steps * BATCH_SIZE
        # Three checkpoints of each of two runs, each with two moments, and the probes at the end.
        disk = size_text(model + 20 * probes)
        _logger.info("control of layers: trains probes first, about %d forward passes of a pair and %s on disk", passes, disk)
    if "epipolar" in wanted:
        _logger.info("epipolar: trains probes first, about %d forward passes of a pair", 2 * options.epipolar_pairs)
    for name, entry in runnable.items():
        passes, memory, disk_bytes = entry.cost(setting)
        _logger.info(
            "%s: about %d forward passes of a pair, %s of memory, %s on disk", name, passes, size_text(memory), size_text(disk_bytes)
        )
