"""`python -m train`: from options to a folder with trained probes and what they are worth."""

import gc
import sys
from typing import Any

import jax

from train.options import TrainOptions
from train.run.checkpoints import Checkpoints
from train.run.ending import finish
from train.run.folder import CHECKPOINTS, earlier_options, open_folder
from train.run.hosts import from_first, is_first, join, wait_for_all
from train.run.interruption import interruption
from train.run.loop import Loop
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
    source = converted_checkpoint(options.backbone)
    setup = set_up(earlier_options(options), config_of(source), jax.device_count(), jax.process_index(), jax.process_count())
    out = setup.options.out
    if is_first():
        open_folder(setup.options, _identity(setup, read_checkpoint_info(source).provenance["backbone"]))
    wait_for_all("folder")
    checkpoints = Checkpoints(out / CHECKPOINTS, setup.options.keep) if is_first() else None
    state, record = _start(setup, checkpoints)
    done = int(state.step)
    _announce(setup, done)
    step = done
    if done < setup.options.steps:
        backbone = load_backbone(source, dtype=setup.options.dtype, attention=setup.options.attention)
        state, step = _run(setup, trunk_params(backbone.params), state, record, checkpoints)
        # The evaluation loads the model as any user would; until then its memory is free.
        del backbone
        gc.collect()
    if checkpoints is not None:
        checkpoints.wait()
        if step < setup.options.steps:
            print(f"stopped after step {step} of {setup.options.steps}; everything is saved. To go on: {command}", flush=True)
        else:
            finish(setup, source, checkpoints, state)
        checkpoints.close()
    wait_for_all("end")


def _start(setup: Setup, checkpoints: Checkpoints | None) -> tuple[ProbesState, dict[str, Any]]:
    """The state to go on from, the same on every host, and the record that came with it."""
    state: ProbesState = jax.device_get(initial_state(setup.probes, setup.recipe, setup.options.seed))
    record: dict[str, Any] = {}
    if checkpoints is not None and (newest := checkpoints.newest()) is not None:
        saved = checkpoints.read(newest, state)
        state, record = saved.state, saved.record
    return from_first(state), record


def _run(setup: Setup, trunk: Any, state: ProbesState, record: dict[str, Any], checkpoints: Checkpoints | None) -> tuple[ProbesState, int]:
    """Trains; returns the state and the steps it has behind it."""
    out, done = setup.options.out, int(state.step)
    log = MetricsLog(out, done) if is_first() else None
    progress = Progress(setup.options.steps, done, is_first())
    loop = Loop(setup, replicate(trunk), checkpoints, log, progress)
    replicated = replicate(state)
    with interruption() as stop:
        replicated, step = loop.run(replicated, done, record, stop)
    progress.close()
    if log is not None:
        log.close()
    return first(replicated), step


def _identity(setup: Setup, provenance: dict[str, Any]) -> dict[str, Any]:
    """What a run and its checkpoints are tied to besides the options."""
    return {"layers": list(setup.probes.layer_ids), "backbone": repr(setup.backbone), "backbone_sha256": provenance["sha256"]}


def _announce(setup: Setup, done: int) -> None:
    if not is_first():
        return
    options, layers = setup.options, setup.probes.layer_ids
    span = layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}"
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
    print(
        f"{len(layers)} layers ({span}) of {options.backbone}, {options.batch_size} pairs a step on {devices}, "
        f"{'going on after step ' + str(done) if done else 'from the start'} to step {options.steps}; everything goes to {options.out}",
        file=sys.stderr,
        flush=True,
    )
