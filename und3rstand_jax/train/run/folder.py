"""The folder of a run: which run it contains, and whether the given options resume it.

config.yaml     every option, as the run uses it             checkpoints/    the newest and the best states
run.json        what is trained, and on what                 metrics.jsonl   losses and validations       tensorboard/
skipped.txt     pairs that could not be read, if any         metrics.json    the figures at the end
probes/         the trained probes with their backbone and their model card, and their evaluation in layers.csv and layers.png
backbone/       or the trained backbone with its model card, and learning_curve.png
epipolar/       or the trained epipolar probes; until then, tokens/ contains what they are trained on
pose/           or the trained pose probes, and their errors in layers.csv; tokens/ as well
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from und3rstand_jax.checkpoint.format import checkpoint_files
from und3rstand_jax.checkpoint.trees import check_name
from und3rstand_jax.data.specification import parse_data
from und3rstand_jax.support.documents import read_json
from und3rstand_jax.support.errors import OutputError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.support.output_folder import check_place, is_passing, locked_output
from und3rstand_jax.support.results import VERSION, check_apart, check_own, files_in, remove_empty_folders
from und3rstand_jax.support.text import to_json
from und3rstand_jax.train.config_file import option_values, read_config, write_config
from und3rstand_jax.train.kept_options import EpipolarOptions, PoseOptions
from und3rstand_jax.train.options import CHANGEABLE, NOT_PART_OF_A_RUN, BackboneOptions, Options, RunOptions

CONFIG, RECORD, CHECKPOINTS = "config.yaml", "run.json", "checkpoints"
FORMAT = "und3rstand_jax training run"
TRAINS, PROBES = "trains", "probes"  # the record's entry for what a run trains; without it, probes
KINDS: tuple[tuple[type[RunOptions], str], ...] = (
    (BackboneOptions, "a backbone"),
    (EpipolarOptions, "epipolar probes"),
    (PoseOptions, "pose probes"),
)

# Subfolders that are results of their own list their files themselves. Hidden files are what a killed process was writing.
_WRITTEN = re.compile(
    r"config\.yaml|run\.json|metrics\.jsonl?|layers\.(csv|png)|learning_curve\.png|skipped\d*\.txt"
    r"|checkpoints/\d+(\.orbax-checkpoint-tmp[^/]*)?/((state|record|metrics)(\.orbax-checkpoint-tmp[^/]*)?/.+|_CHECKPOINT_METADATA"
    r"|commit_success\.txt)|(epipolar|pose|tokens)/(question\.json|[0-9a-f]{24}\.npz)|tensorboard/events\.out\.tfevents\.[^/]*|\.[^/]+\.partial-.*",
    re.DOTALL,
)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return _record(folder).get("format") == FORMAT


def resumed_options(options: Options) -> Options:
    """The options, with those left open (a default batch size, say) taken from an earlier run in the same folder.

    Raises:
        OutputError: that run trains something else.
    """
    if options.overwrite or not is_run(options.out) or not (options.out / CONFIG).exists():
        return options
    _check_kind(options)
    earlier = read_config(options.out / CONFIG, type(options))
    open_fields = [field.name for field in dataclasses.fields(options) if getattr(options, field.name) in (None, ())]
    return dataclasses.replace(options, **{name: earlier[name] for name in open_fields if name in earlier})


@contextlib.contextmanager
def run_folder(options: RunOptions, identity: Mapping[str, object]) -> Iterator[None]:
    """Creates the folder of a new run, or checks that the options resume the run in it. Inside, no other process may write to it.

    Args:
        options: complete options, with nothing left open.
        identity: what else must be the same when a run is resumed; plain values.

    Raises:
        OutputError: the folder contains something else or another run, or another process is using it. The message names the options that
            differ, or the other process.
    """
    folder = options.out
    check_name(folder)
    check_place(folder)
    roots = [spec.root for spec in (*parse_data(options.data), *parse_data(options.val_data)) if spec.root is not None]
    check_apart(folder, _checkpoints_named(options), roots)
    folder.mkdir(parents=True, exist_ok=True)
    with locked_output(folder):
        _open(options, identity)
        yield


def _open(options: RunOptions, identity: Mapping[str, object]) -> None:
    folder = options.out
    if is_run(folder):
        # Whoever made the folder may have planted them where a run writes.
        links = sorted(file for file in files_in(folder) if (folder / file).is_symlink())
        if links:
            raise OutputError(f"{folder / links[0]} is a symbolic link, which a run never writes: remove it, or choose another --out")
        if not options.overwrite and (folder / CONFIG).exists():
            _check_same(options, identity)
            write_config(folder / CONFIG, option_values(options))
            return
        own = run_files(folder)
        check_own(folder, own, is_passing)
        # The config goes first: without it, a run starts anew. The record stays: it makes the folder a run.
        for file in sorted(own, key=lambda file: (file != CONFIG, file)):
            if file != RECORD:
                (folder / file).unlink()
        remove_empty_folders(folder)
    elif not all(map(is_passing, os.listdir(folder))):
        raise OutputError(f"{folder} is not empty and not a training run; choose another --out")
    # The record comes first, since it makes the folder a run: if killed from here on, the run can be started again.
    trains = _trains(options)
    kind = {} if trains == PROBES else {TRAINS: trains}
    replace_text(folder / RECORD, to_json({"format": FORMAT, "version": VERSION} | kind | dict(identity)))
    write_config(folder / CONFIG, option_values(options))


def run_files(folder: Path) -> frozenset[str]:
    """The files below the folder of a run that a run writes, relative to it."""
    there = frozenset(files_in(folder))
    # The paths that a checkpoint lists may lead out of the folder: whoever made it wrote the list.
    listed = (f"{part}/{file}" for part in ("probes", "backbone") for file in checkpoint_files(folder / part) or ())
    return there.intersection([*filter(_WRITTEN.fullmatch, there), *listed])


def _check_same(options: RunOptions, identity: Mapping[str, object]) -> None:
    folder = options.out
    _check_kind(options)
    # A run older than an option counts as having its default, with which nothing changes.
    earlier = {field.name: field.default for field in dataclasses.fields(options)} | read_config(folder / CONFIG, type(options))
    differing = [
        f"--{field.name.replace('_', '-')} {_as_given(earlier[field.name])} (now {_as_given(getattr(options, field.name))})"
        for field in dataclasses.fields(options)
        if field.name not in (*NOT_PART_OF_A_RUN, *CHANGEABLE) and earlier[field.name] != getattr(options, field.name)
    ]
    if differing:
        raise OutputError(
            f"{folder} was started with {', '.join(differing)}: give the same options to resume it, another --out for another run, "
            "or --overwrite"
        )
    record = _record(folder)
    changed = [name for name, value in json.loads(json.dumps(identity)).items() if record.get(name) != value]
    if changed:
        raise OutputError(
            f"{' and '.join(map(str, _checkpoints_named(options)))} has changed since {folder} was started "
            f"({', '.join(changed)} differ): give the same checkpoint, another --out, or --overwrite"
        )


def _check_kind(options: RunOptions) -> None:
    earlier = _record(options.out).get(TRAINS, PROBES)
    wanted = _trains(options)
    if earlier != wanted:
        raise OutputError(f"{options.out} contains a run that trains {earlier}, not {wanted}; choose another --out, or --overwrite")


def _trains(options: RunOptions) -> str:
    return next((trains for kind, trains in KINDS if isinstance(options, kind)), PROBES)


def _checkpoints_named(options: RunOptions) -> list[Path]:
    """The checkpoints that a run is built on."""
    return [Path(value) for name in ("backbone", "start") if (value := getattr(options, name, None)) is not None]


def _record(folder: Path) -> Mapping[str, Any]:
    if not (folder / RECORD).exists():
        return {}
    return read_json(folder / RECORD, dict[str, Any], OutputError, "start again with another --out")


def _as_given(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
