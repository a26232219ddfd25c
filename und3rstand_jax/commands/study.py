"""`python -m und3rstand_jax study`: experiments on what a checkpoint's layers and heads do."""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from und3rstand_jax.commands.streams import show, show_json
from und3rstand_jax.commands.study_options import StudyOptions
from und3rstand_jax.support.errors import CheckpointError, OptionError
from und3rstand_jax.support.option_values import check_seed
from und3rstand_jax.support.text import printable

if TYPE_CHECKING:
    from und3rstand_jax.analysis.studies.catalogue import Entry
    from und3rstand_jax.analysis.studies.study import Study
    from und3rstand_jax.data.specification import DataSpec
    from und3rstand_jax.support.pieces import Pieces

ALL = "all"

BEGUN = "begun"
"""The first piece, which is empty: once it is written, the unfinished folder, trained probes included, belongs to these options alone."""

_NOT_ASKED = ("name", "out", "overwrite", "quiet", "json", "debug", "workers", "batch_size")
"""Options that affect no number."""

_logger = logging.getLogger(__name__)


def study(options: StudyOptions) -> None:
    """Runs the studies, writes their files and prints findings and tables.

    Raises:
        UserError: an option, the checkpoint or the data cannot be used.
    """
    # Imported here because they bring in JAX, which --help does not need.
    from und3rstand_jax.analysis.studies.catalogue import STUDIES
    from und3rstand_jax.analysis.studies.study_files import FORMAT, RECORD
    from und3rstand_jax.commands.study_setting import takes_views
    from und3rstand_jax.data.specification import SYNTHETIC, parse_data
    from und3rstand_jax.report.checkpoint import checkpoint_provenance, find_backbone
    from und3rstand_jax.report.views import check_count
    from und3rstand_jax.support.locks import locked
    from und3rstand_jax.support.output_folder import check_output_folder
    from und3rstand_jax.support.pieces import Pieces
    from und3rstand_jax.support.results import check_apart, result_of
    from und3rstand_jax.support.versions import own_version

    # Everything that can be refused without the weights is checked before they are loaded.
    if options.name not in (*STUDIES, ALL):
        raise OptionError(f"there is no study {options.name!r}; there are {', '.join(STUDIES)}, and {ALL}")
    if options.pairs < 2 or options.batch_size < 1:
        raise OptionError(
            "--pairs must be at least 2 (each pair's control is another pair) and --batch-size at least 1; "
            f"found {options.pairs} and {options.batch_size}"
        )
    if options.control_steps < 0 or min(options.epipolar_steps, options.epipolar_pairs) < 1:
        raise OptionError(
            "--control-steps must be at least 0, --epipolar-steps and --epipolar-pairs at least 1; found "
            f"{options.control_steps}, {options.epipolar_steps} and {options.epipolar_pairs}"
        )
    check_seed(options.seed)
    data = options.data or (SYNTHETIC,)
    specs = parse_data(data, views=options.views)
    chosen = {name: entry for name, entry in STUDIES.items() if options.name in (name, ALL)}
    chosen = {name: entry for name, entry in chosen.items() if takes_views(name, entry, options.views, options.name != ALL)}
    check_apart(options.out, [Path(options.checkpoint)], [spec.root for spec in specs if spec.root is not None])
    check_output_folder(options.out, options.overwrite, result_of(FORMAT, RECORD))
    folder, info, config = find_backbone(options.checkpoint, progress=True)
    check_count(options.views, config, info.probes if any("probes" in entry.needs | entry.wants for entry in chosen.values()) else None)
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_ASKED} | {"data": list(data)}
    facts = asked | {"provenance": checkpoint_provenance(options.checkpoint, info)}
    out = options.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.study.lock"), str(options.out)):
        unfinished = out.with_name(f"{out.name}.unfinished")
        # The same pieces for all studies: what two of them measure is measured once, and probes trained for other options are refused too.
        # Unfinished studies of earlier versions, which were all of pairs, can be resumed.
        of_pieces = {name: value for name, value in facts.items() if (name, value) != ("views", 2)}
        pieces = Pieces(unfinished / "parts", of_pieces | {"version": own_version()})
        _run_and_write(options, chosen, specs, folder, facts, unfinished, pieces)


def _run_and_write(
    options: StudyOptions,
    chosen: "Mapping[str, Entry]",
    specs: "tuple[DataSpec, ...]",
    folder: Path,
    facts: dict[str, Any],
    unfinished: Path,
    pieces: "Pieces",
) -> None:
    from und3rstand_jax.analysis.studies.study_files import FORMAT, RECORD, format_study, write_study
    from und3rstand_jax.commands.study_setting import TRAINED, has_what_it_needs, places_of, setting_of, tell_cost, with_trained
    from und3rstand_jax.geometry.alignment import ALIGNMENT_MEANING
    from und3rstand_jax.report.study_page import PAGE, study_page
    from und3rstand_jax.support.machine import machine_facts
    from und3rstand_jax.support.output_folder import output_folder
    from und3rstand_jax.support.progress import timed
    from und3rstand_jax.support.results import marked, result_of
    from und3rstand_jax.support.text import to_json

    setting = setting_of(options, specs, folder, any("twins" in entry.needs for entry in chosen.values()))
    runnable = {name: entry for name, entry in chosen.items() if has_what_it_needs(name, entry, setting, options.name != ALL)}
    if not runnable:
        raise CheckpointError("no study can run on this checkpoint and data; the messages above say what each needs")
    facts = facts | {"held_out": places_of(specs, options, setting), **machine_facts()}
    alignment = f"{setting.alignment}: {ALIGNMENT_MEANING[setting.alignment]}"
    _logger.info("alignment of points by %s", alignment)
    tell_cost(runnable, setting, options)
    pieces.write(BEGUN, {})
    setting = with_trained(dataclasses.replace(setting, pieces=pieces), options, folder, unfinished, runnable)
    studies: list[Study] = []
    for name, entry in runnable.items():
        with timed("running %s", name):
            studies.append(entry.run(setting))
        if not options.json:
            show(f"{format_study(studies[-1])}\n")
    with timed("writing %s", options.out), output_folder(options.out, options.overwrite, result_of(FORMAT, RECORD)) as partial:
        for found in studies:
            write_study(partial, found, facts)
        shown = {
            "checkpoint": options.checkpoint,
            "pairs": f"{setting.count} held-out {setting.things} of {', '.join(facts['data'])}, seed {options.seed}",
            "alignment": alignment,
            "±": "standard error over pairs",
        }
        (partial / PAGE).write_text(study_page(studies, f"Studies of {Path(options.checkpoint).name}", shown), encoding="ascii")
        record = {"studies": [found.name for found in studies], **facts}
        (partial / RECORD).write_text(to_json({**marked(partial, FORMAT, RECORD), **record}), encoding="utf-8")
    pieces.remove()
    for trained in TRAINED:
        shutil.rmtree(unfinished / trained, ignore_errors=True)
    with contextlib.suppress(OSError):  # nothing was kept, or somebody else's file is in it
        unfinished.rmdir()
    if options.json:
        show_json({"studies": {found.name: json.loads((options.out / f"{found.name}.json").read_text("utf-8")) for found in studies}})
    else:
        show(f"page: {printable(options.out / PAGE)}")
