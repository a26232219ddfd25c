"""The matches of two views by a model's descriptors, as files in one folder.

matches.npz               xy1, xy2 (K, 2) int32: (x, y) of each match in both views; confidence (K,) if the model gives any; for a
                          scene, offset (K,): pixels of view 2 from the true place, NaN where view 2 does not see it
matches.png, matches.svg  up to sixty of them, drawn between the views
matches.json              what was run, the number of matches, and how many of them are correct
"""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np

from und3rstand_jax.analysis.descriptor_places import DESCRIPTORS
from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.geometry.descriptor_matches import Matches, check_matching, match
from und3rstand_jax.geometry.matching import THRESHOLD, Correspondences, match_accuracy, matched, true_places
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import Head, head_of
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.report.checkpoint import checkpoint_provenance, find_backbone, load_model
from und3rstand_jax.report.match_figure import Row, matches_figure
from und3rstand_jax.report.options import MatchOptions
from und3rstand_jax.report.views import check_count, check_known_count, check_view_options, make_inputs, open_photos, view_count
from und3rstand_jax.support.errors import CheckpointError
from und3rstand_jax.support.machine import machine_facts
from und3rstand_jax.support.output_folder import check_output_folder, output_folder
from und3rstand_jax.support.progress import Stopwatch
from und3rstand_jax.support.results import check_apart, marked, result_of
from und3rstand_jax.support.text import JsonObject, to_json

RECORD, ARRAYS, FIGURE = "matches.json", "matches.npz", "matches"
FORMAT = "und3rstand_jax matches"

_KIND = result_of(FORMAT, RECORD)
_CHOICES = ("seeds", "tolerance", "both_ways", "both_orders", "border")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Found:
    """The matches that were found.

    Attributes:
        matches: the views' matches.
        correspondences: the same matches, with their distances from the true places if there is ground truth.
        threshold: pixels within which a match is correct.
        accuracy: share of correct matches among those with a known true place; None if there are none.
    """

    matches: Matches
    correspondences: Correspondences
    threshold: float
    accuracy: float | None

    def __str__(self) -> str:
        right = "" if self.accuracy is None else f", {self.accuracy:.1%} of those that can be checked within {self.threshold:.3g} pixels"
        return f"{len(self.matches)} matches{right}"


def write_matches(options: MatchOptions, progress: bool = False) -> Found:
    """Runs the model, matches its descriptors and writes the folder of files, which appears complete or not at all.

    Args:
        options: the command's options.
        progress: whether a terminal shows progress bars, including that of a conversion.

    Raises:
        OptionError: the options contradict each other, are out of range, or name a scene or size that does not exist.
        ImageError: a photo cannot be read.
        CheckpointError: the checkpoint cannot be loaded, or its model computes no descriptors.
        OutputError: the folder may not be written.
        OSError: a file cannot be written.
    """
    check_view_options(options, only_pairs=True)
    check_matching(options.seeds, options.tolerance, options.border, options.both_ways or options.both_orders)
    stopwatch = Stopwatch()
    # Everything that can be refused early is checked before the checkpoint: converting one may download gigabytes.
    check_apart(options.out, [*options.images, Path(options.checkpoint)])
    check_known_count(options)
    check_output_folder(options.out, options.overwrite, _KIND)
    photos = open_photos(options)
    folder, info, config = find_backbone(options.checkpoint, progress)
    check_count(view_count(options), config, None)
    head = _descriptor_head(config)
    with stopwatch.time("images"):
        inputs = make_inputs(options, photos, config)
    with output_folder(options.out, options.overwrite, _KIND) as partial:
        _logger.info("loading %s", options.checkpoint)
        with stopwatch.time("load"):
            model, _ = load_model(folder, options.dtype)
        found = _find(model, head, inputs, options, stopwatch, progress)
        arrays = {"xy1": found.matches.pixels1.astype(np.int32), "xy2": found.matches.pixels2.astype(np.int32)}
        for name, values in (("confidence", found.matches.confidence), ("offset", found.correspondences.offsets)):
            if values is not None:
                arrays[name] = values.astype(np.float32)
        np.savez(partial / ARRAYS, allow_pickle=False, **arrays)
        figure = matches_figure(inputs.images, [Row(inputs.title, found.correspondences, found.accuracy)], found.threshold)
        for kind in ("png", "svg"):
            figure.savefig(partial / f"{FIGURE}.{kind}")
        record: JsonObject = {
            **marked(partial, FORMAT, RECORD),
            "checkpoint": checkpoint_provenance(options.checkpoint, info),
            **inputs.provenance,
            "matching": {name: getattr(options, name) for name in _CHOICES},
            "matches": len(found.matches),
            "correct_within_pixels": found.threshold,
            "correct_of_those_that_can_be_checked": found.accuracy,
            "arrays": ARRAYS,
            "dtype": options.dtype,
            "seconds": dict(stopwatch.seconds),
            **machine_facts(),
        }
        (partial / RECORD).write_text(to_json(record, indent=2), encoding="utf-8")
    _logger.info("wrote %s in %.1f s", options.out, sum(stopwatch.seconds.values()))
    return found


def _descriptor_head(config: ModelConfig) -> Head:
    head = head_of(DESCRIPTORS, config)
    if head is None:
        raise CheckpointError("this checkpoint's model computes no descriptors; match needs one that does, such as a MASt3R")
    return head


def _find(model: Backbone, head: Head, inputs: Inputs, options: MatchOptions, stopwatch: Stopwatch, progress: bool) -> Found:
    # The other order begins with the same encoding.
    encoded = ("encoder.norm",) if options.both_orders else ()
    with stopwatch.time("model"):
        # Otherwise the confidence is that of the points.
        heads = head.name if "desc_conf" in head.outputs else True
        output = jax.block_until_ready(model(*inputs.views, capture=encoded, head=heads))
        swapped = None
        if options.both_orders:
            turned = BackboneOutput({layer: output[layer][::-1] for layer in encoded}, output.image_sizes[::-1])
            swapped = jax.block_until_ready(model(start=turned, capture=(), head=heads))
    with stopwatch.time("matching"):
        matches = match(
            output,
            seeds=options.seeds,
            tolerance=options.tolerance,
            both_ways=options.both_ways,
            swapped=swapped,
            border=options.border,
            progress=progress,
        )
    truth = inputs.truth
    places = None if truth is None else true_places(truth.views, truth.pose, truth.intrinsics[1])
    correspondences = matched(matches.pixels1, matches.pixels2, places)
    threshold = THRESHOLD * inputs.sizes[1][1]
    return Found(matches, correspondences, threshold, match_accuracy(correspondences, threshold))
