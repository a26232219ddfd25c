"""`python -m train` and `python -m train backbone`: from options to a folder with what was trained and what it is worth."""

import contextlib
import sys
from typing import Any

import jax

from und3rstand_jax.data.loader import open_sources
from und3rstand_jax.loading import converted_checkpoint
from und3rstand_jax.support.machine import give_back_freed_memory
from und3rstand_jax.train.architecture import architecture, check_start, config_of
from und3rstand_jax.train.options import BackboneOptions, RunOptions, TrainOptions
from und3rstand_jax.train.run.backbone_job import TRAINS_BACKBONE, BackboneJob
from und3rstand_jax.train.run.checkpoints import Checkpoints
from und3rstand_jax.train.run.folder import CHECKPOINTS, TRAINS_PROBES, open_folder
from und3rstand_jax.train.run.hosts import agreed_options, from_first, is_first, join, wait_for_all
from und3rstand_jax.train.run.interruption import Interruption, interruption
from und3rstand_jax.train.run.job import Job
from und3rstand_jax.train.run.loop import Data, Loop
from und3rstand_jax.train.run.metrics_log import MetricsLog, Progress
from und3rstand_jax.train.run.probes_job import ProbesJob
from und3rstand_jax.train.step.data_parallel import first, replicate
from und3rstand_jax.train.task import set_up, set_up_backbone


def train(options: RunOptions, command: str) -> None:
    """Trains, or goes on training, and writes at the end what was trained and what it is worth.

    Args:
        options: as given.
        command: what the user typed, to say how to go on.

    Raises:
        UserError: an option, the data, the backbone or the run's folder cannot be used.
        OSError: files cannot be written.
    """
    join(options)
    with interruption(f"stopped; everything is saved. To go on: {command}") as stop:
        _train(options, command, stop)


def _train(options: RunOptions, command: str, stop: Interruption) -> None:
    job = _job(options)
    setup = job.setup
    data = Data(open_sources(setup.feed.specs, "train"), open_sources(setup.val_feed.specs, "val"))
    # From here on the folder is the run's: whatever can be refused has been.
    if is_first():
        open_folder(setup.options, job.identity)
    wait_for_all("folder")
    # However this ends, a checkpoint that is being written is written to its end.
    with Checkpoints(setup.options.out / CHECKPOINTS, setup.options.keep) if is_first() else contextlib.nullcontext() as checkpoints:
        _train_and_finish(job, data, checkpoints, command, stop)
    wait_for_all("end")


def _job(options: RunOptions) -> Job:
    """What the options ask to train, nothing loaded yet."""
    place = (jax.device_count(), jax.process_index(), jax.process_count())
    if isinstance(options, BackboneOptions):
        complete = agreed_options(options, TRAINS_BACKBONE)
        check_start(complete)
        source = None if complete.start is None else converted_checkpoint(complete.start)
        config = architecture(complete) if source is None else config_of(source, "--start")
        return BackboneJob(set_up_backbone(complete, config, *place), source)
    assert isinstance(options, TrainOptions)
    source = converted_checkpoint(options.backbone)
    return ProbesJob(set_up(agreed_options(options, TRAINS_PROBES), config_of(source), *place), source)


def _train_and_finish(job: Job, data: Data, checkpoints: Checkpoints | None, command: str, stop: Interruption) -> None:
    state, record = _start(job, checkpoints)
    step, steps = int(first(state.step)), job.setup.options.steps
    _announce(job, data, step)
    if step < steps:
        state, step = _run(job, data, state, step, record, checkpoints, stop)
    if checkpoints is not None:
        if step < steps or stop.told:
            print(f"stopped after step {step} of {steps}; everything is saved. To go on: {command}", flush=True)
        else:
            job.finish(data.val, checkpoints, first(state))


def _start(job: Job, checkpoints: Checkpoints | None) -> tuple[Any, dict[str, Any]]:
    """The state to go on from, on every device, and the record that came with it; no copy is left on the host."""
    state = jax.device_get(job.initial_state())
    record: dict[str, Any] = {}
    if checkpoints is not None and (newest := checkpoints.newest()) is not None:
        saved = checkpoints.read(newest, state)
        state, record = saved.state, saved.record
    return replicate(from_first(state)), record


def _run(
    job: Job, data: Data, state: Any, step: int, record: dict[str, Any], checkpoints: Checkpoints | None, stop: Interruption
) -> tuple[Any, int]:
    """Trains the state on, which is given away; returns the new one, on every device, and the steps it has behind it."""
    options = job.setup.options
    log = MetricsLog(options.out, step) if is_first() else None
    progress = Progress(options.steps, step, is_first())
    fixed = replicate(job.fixed())
    give_back_freed_memory()
    loop = Loop(job, data, fixed, checkpoints, log, progress)
    with stop.finishing():
        try:
            state, step = loop.run(state, step, record, stop)
        finally:
            progress.close()
            if log is not None:
                log.close()
            if checkpoints is not None:
                checkpoints.wait()
    return state, step


def _announce(job: Job, data: Data, done: int) -> None:
    if not is_first():
        return
    for source in dict.fromkeys(source for source in (*data.train, *data.val) if source is not None):
        for note in source.notes:
            print(f"{source.name}: {note}", file=sys.stderr)
    options = job.setup.options
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
    print(
        f"{job.announcement()}, {options.batch_size} pairs a step on {devices}, "
        f"{'going on after step ' + str(done) if done else 'from the start'} to step {options.steps}; everything goes to {options.out}",
        file=sys.stderr,
        flush=True,
    )
