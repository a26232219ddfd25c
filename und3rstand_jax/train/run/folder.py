"""The folder of a run: which run it is, and whether the options at hand go on with it.

config.yaml     every option, as the run uses it          checkpoints/    the newest and the best states
run.json        what was trained on what                  metrics.jsonl   losses and validations       tensorboard/
probes/         the trained probes with their backbone    metrics.json, layers.csv, layers.png         the evaluation at the end
skipped.txt     pairs that could not be read, if any
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from und3rstand_jax.data.specification import parse_data
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.train.options import CHANGEABLE, NOT_PART_OF_A_RUN, RunOptions
from und3rstand_jax.train.run.config_file import option_values, read_config, write_config

CONFIG, RECORD, CHECKPOINTS, PROBES = "config.yaml", "run.json", "checkpoints", "probes"


FORMAT = "und3rstand_jax training run"


TRAINS, TRAINS_PROBES = "trains", "probes"  # the record's word for what a run trains; without it, probes


Options = TypeVar("Options", bound=RunOptions)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return _record(folder).get("format") == FORMAT


def earlier_options(options: Options, trains: str = TRAINS_PROBES) -> Options:
    """The options with what an earlier run in the same folder decided where these leave it open (a batch size by default, say)."""
    if options.overwrite or not is_run(options.out) or not (options.out / CONFIG).exists():
        return options
    _check_kind(options.out, trains)
    earlier = read_config(options.out / CONFIG, type(options))
    open_fields = [field.name for field in dataclasses.fields(options) if getattr(options, field.name) in (None, ())]
    return dataclasses.replace(options, **{name: earlier[name] for name in open_fields if name in earlier})


def open_folder(options: RunOptions, record: Mapping[str, Any]) -> None:
    """Makes the folder of a new run, or checks that the options are those of the run that is there.

    Args:
        options: complete, with nothing left open.
        record: what else a run must have in common with its checkpoints; plain values.

    Raises:
        UserError: the folder holds something else, or another run; the message names the options that differ.
    """
    folder = options.out
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must name a folder")
    if is_run(folder):
        if not options.overwrite and (folder / CONFIG).exists():
            _check_same(folder, options, record)
            write_config(folder / CONFIG, option_values(options))
            return
        _check_apart(folder, options)
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something that is no training run; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    # First, since it is what makes the folder a run: a kill from here on leaves one that can be started again.
    replace_text(folder / RECORD, json.dumps({"format": FORMAT, **record}, indent=1) + "\n")
    write_config(folder / CONFIG, option_values(options))


def _check_apart(folder: Path, options: RunOptions) -> None:
    """Refuses to remove a run that holds what the new one is to be made of."""
    roots = [spec.root for spec in (*parse_data(options.data), *parse_data(options.val_data)) if spec.root is not None]
    for path in (*_checkpoints_named(options), *roots):
        if path.exists() and folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"--overwrite would remove {path}, which the new run needs; choose another --out")


def _check_same(folder: Path, options: RunOptions, record: Mapping[str, Any]) -> None:
    _check_kind(folder, record.get(TRAINS, TRAINS_PROBES))
    # An option that did not exist when the run was started has the value that leaves everything as it was.
    earlier = {field.name: field.default for field in dataclasses.fields(options)} | read_config(folder / CONFIG, type(options))
    fixed = [field.name for field in dataclasses.fields(options) if field.name not in (*NOT_PART_OF_A_RUN, *CHANGEABLE)]
    differing = [
        f"--{name.replace('_', '-')} {_told(earlier.get(name))} (now {_told(getattr(options, name))})"
        for name in fixed
        if earlier.get(name) != getattr(options, name)
    ]
    if differing:
        raise UserError(
            f"{folder} was started with {', '.join(differing)}: give the same to go on, another --out for another run, or --overwrite"
        )
    changed = [key for key, value in json.loads(json.dumps(record)).items() if _record(folder).get(key) != value]
    if changed:
        raise UserError(
            f"{folder} was started on another checkpoint than {' and '.join(map(str, _checkpoints_named(options)))} is now "
            f"({', '.join(changed)} differ): give the same, another --out, or --overwrite"
        )


def _check_kind(folder: Path, trains: str) -> None:
    """Refuses to go on with a run that trains something else."""
    earlier = _record(folder).get(TRAINS, TRAINS_PROBES)
    if earlier != trains:
        raise UserError(f"{folder} holds a run that trains {earlier}, not {trains}; choose another --out, or --overwrite")


def _checkpoints_named(options: RunOptions) -> list[Path]:
    """What the options name as the checkpoint that a run is built on."""
    return [Path(value) for name in ("backbone", "start") if (value := getattr(options, name, None)) is not None]


def _record(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(f"{folder / RECORD} is damaged ({error}); start anew with another --out") from error
    return content if isinstance(content, dict) else {}


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
