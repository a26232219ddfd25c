"""`python -m train`: from options to a folder with trained probes and what they are worth."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax

from train.data.loader import open_sources
from train.options import TrainOptions
from train.run.checkpoints import Checkpoints
from train.run.ending import finish
from train.run.folder import CHECKPOINTS, open_folder
from train.run.freed_memory import give_back_freed_memory
from train.run.hosts import agreed_options, from_first, is_first, join, wait_for_all
from train.run.interruption import Interruption, Stopped, interruption
from train.run.loop import Data, Loop
from train.run.metrics_log import MetricsLog
from train.run.progress import Progress
from train.setup import Setup, config_of, set_up
from train.step.backbone import trunk_params
from train.step.data_parallel import first, replicate
from train.step.state import ProbesState, initial_state
from und3rstand_jax.checkpoint import read_checkpoint_info
from und3rstand_jax.loading import converted_checkpoint, load_backbone


def train(options: TrainOptions, command: str) -> None:
    """Trains, or goes on training, and evaluates at the end.

    Args:
        options: as given.
        command: what the user typed, to say how to go on.

    Raises:
        UserError: an option, the data, the backbone or the run's folder cannot be used.
        OSError: files cannot be written.
    """
    join(options)
    with interruption() as stop:
        try:
            _train(options, command, stop)
        except Stopped:
            print(f"stopped; everything is saved. To go on: {command}", flush=True)


def _train(options: TrainOptions, command: str, stop: Interruption) -> None:
    source = converted_checkpoint(options.backbone)
    setup = set_up(agreed_options(options), config_of(source), jax.device_count(), jax.process_index(), jax.process_count())
    data = Data(open_sources(setup.feed.specs, "train"), open_sources(setup.val_feed.specs, "val"))
    # From here on the folder is the run's: whatever can be refused has been.
    if is_first():
        open_folder(setup.options, _identity(setup, read_checkpoint_info(source).provenance["backbone"]))
    wait_for_all("folder")
    # However this ends, a checkpoint that is being written is written to its end.
    with Checkpoints(setup.options.out / CHECKPOINTS, setup.options.keep) if is_first() else contextlib.nullcontext() as checkpoints:
        _train_and_finish(setup, data, source, checkpoints, command, stop)
    wait_for_all("end")


def _train_and_finish(setup: Setup, data: Data, source: Path, checkpoints: Checkpoints | None, command: str, stop: Interruption) -> None:
    state, record = _start(setup, checkpoints)
    step = int(first(state.step))
    _announce(setup, data, step)
    if step < setup.options.steps:
        state, step = _run(setup, data, source, state, step, record, checkpoints, stop)
    if checkpoints is not None:
        checkpoints.wait()
        if step < setup.options.steps or stop.told:
            print(f"stopped after step {step} of {setup.options.steps}; everything is saved. To go on: {command}", flush=True)
        else:
            finish(setup, data.val, source, checkpoints, first(state))


def _start(setup: Setup, checkpoints: Checkpoints | None) -> tuple[ProbesState, dict[str, Any]]:
    """The state to go on from, on every device, and the record that came with it; no copy is left on the host."""
    state: ProbesState = jax.device_get(initial_state(setup.probes, setup.recipe, setup.options.seed))
    record: dict[str, Any] = {}
    if checkpoints is not None and (newest := checkpoints.newest()) is not None:
        saved = checkpoints.read(newest, state)
        state, record = saved.state, saved.record
    return replicate(from_first(state)), record


def _run(
    setup: Setup,
    data: Data,
    source: Path,
    state: ProbesState,
    step: int,
    record: dict[str, Any],
    checkpoints: Checkpoints | None,
    stop: Interruption,
) -> tuple[ProbesState, int]:
    """Trains the state on, which is given away; returns the new one, on every device, and the steps it has behind it."""
    log = MetricsLog(setup.options.out, step) if is_first() else None
    progress = Progress(setup.options.steps, step, is_first())
    backbone = replicate(_trunk(setup, source))
    give_back_freed_memory()
    loop = Loop(setup, data, backbone, checkpoints, log, progress)
    with stop.finishing():
        state, step = loop.run(state, step, record, stop)
    progress.close()
    if log is not None:
        log.close()
    return state, step


def _trunk(setup: Setup, source: Path) -> Any:
    return trunk_params(load_backbone(source, dtype=setup.options.dtype, attention=setup.options.attention).params)


def _identity(setup: Setup, provenance: dict[str, Any]) -> dict[str, Any]:
    """What a run and its checkpoints are tied to besides the options."""
    return {"layers": list(setup.probes.layer_ids), "backbone": repr(setup.backbone), "backbone_sha256": provenance["sha256"]}


def _announce(setup: Setup, data: Data, done: int) -> None:
    if not is_first():
        return
    for source in dict.fromkeys(source for source in (*data.train, *data.val) if source is not None):
        for note in source.notes:
            print(f"{source.name}: {note}", file=sys.stderr)
    options, layers = setup.options, setup.probes.layer_ids
    span = layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}"
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
    print(
        f"{len(layers)} layers ({span}) of {options.backbone}, {options.batch_size} pairs a step on {devices}, "
        f"{'going on after step ' + str(done) if done else 'from the start'} to step {options.steps}; everything goes to {options.out}",
        file=sys.stderr,
        flush=True,
    )
