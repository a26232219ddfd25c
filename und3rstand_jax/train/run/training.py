"""A training run from options to results.

options ─▶ task ─▶ folder, state or checkpoint ─▶ loop ─▶ results
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from und3rstand_jax.data.loader import open_sources
from und3rstand_jax.loading import converted_checkpoint
from und3rstand_jax.support.progress import timed
from und3rstand_jax.train.architecture import config_of, starting_point
from und3rstand_jax.train.backbone_task import BackboneTask
from und3rstand_jax.train.epipolar_task import EpipolarTask
from und3rstand_jax.train.kept_options import EpipolarOptions, PoseOptions
from und3rstand_jax.train.options import BackboneOptions, RunOptions, TrainOptions
from und3rstand_jax.train.pose_task import PoseTask
from und3rstand_jax.train.probes_task import ProbesTask
from und3rstand_jax.train.run.checkpoints import Checkpoints, Record
from und3rstand_jax.train.run.folder import CHECKPOINTS, run_folder
from und3rstand_jax.train.run.loop import Data, Loop
from und3rstand_jax.train.run.processes import Interruption, agreed_options, from_first, interruption, is_first, join, wait_for_all
from und3rstand_jax.train.step.data_parallel import first, replicate
from und3rstand_jax.train.task import State, Task

_logger = logging.getLogger(__name__)


class Ending(NamedTuple):
    """How a run ended: a text for the user, which summarises the results or says how to resume, and whether all steps are done."""

    text: str
    is_finished: bool


def train(options: RunOptions, command: str, farewell: Callable[[str], None]) -> Ending | None:
    """Trains, or resumes training, and finally writes what was trained and how accurate it is.

    Args:
        options: as given.
        command: what the user typed, to say how to resume.
        farewell: shows a last line, from a signal handler, when a request to stop ends the process immediately.

    Returns:
        How it ended; a run that was asked to stop is not finished. None on all hosts but the first.

    Raises:
        UserError: an option, the data, the backbone or the run's folder cannot be used.
        OSError: files cannot be written.
    """
    join(options)
    resume = f"everything is saved. To resume: {command}"
    with interruption(lambda: farewell(f"stopped; {resume}")) as stop:
        task = make_task(options)
        data = Data(open_sources(task.feed.specs, "train"), open_sources(task.val_feed.specs, "val"))
        with contextlib.ExitStack() as stack:
            checkpoints = None
            if is_first():
                # From here on the folder belongs to the run: all checks that could refuse it are done.
                stack.enter_context(run_folder(task.options, task.identity))
                # However this ends, a checkpoint that is being written is completed.
                checkpoints = stack.enter_context(Checkpoints(task.options.out / CHECKPOINTS, task.options.keep))
            if jax.process_count() == 1 and (summary := task.done()) is not None:
                return Ending(summary, True)
            wait_for_all("folder")
            state, step = _train(task, data, checkpoints, stop)
            ending = None
            if checkpoints is not None and (step < task.options.steps or stop.requested):
                ending = Ending(f"stopped after step {step} of {task.options.steps}; {resume}", False)
            elif checkpoints is not None:
                state = first(state)
                if task.options.export == "best" and (best := checkpoints.best()) is not None and best != step:
                    state, step = checkpoints.read(best, state).state, best
                with timed("writing the results"):
                    ending = Ending(task.finish(state, step, data.val), True)
        wait_for_all("end")
    return ending


def make_task(options: RunOptions) -> Task[Any]:
    """The task that the options define. Nothing is loaded yet, but sources are converted on first use.

    Raises:
        UserError: an option or a checkpoint cannot be used.
    """
    place = (jax.device_count(), jax.process_index(), jax.process_count())
    options = agreed_options(options)
    if isinstance(options, BackboneOptions):
        config, start = starting_point(options)
        return BackboneTask.create(options, config, *place, start)
    assert isinstance(options, EpipolarOptions | PoseOptions | TrainOptions)
    source = converted_checkpoint(options.backbone)
    config = config_of(source)
    if isinstance(options, EpipolarOptions):
        return EpipolarTask.create(options, config, *place, source)
    if isinstance(options, PoseOptions):
        return PoseTask.create(options, config, *place, source)
    return ProbesTask.create(options, config, *place, source)


def _train(task: Task[State], data: Data, checkpoints: Checkpoints | None, stop: Interruption) -> tuple[State, int]:
    """Runs the loop from the newest checkpoint, or from the start; returns the state, on every device, and its steps."""
    options = task.options
    state = jax.device_get(task.initial_state())
    record: Record = {}
    if checkpoints is not None and (newest := checkpoints.newest()) is not None:
        saved = checkpoints.read(newest, state)
        state, record = saved.state, saved.record
        del saved  # no copy of the state should stay on the host
    state = replicate(from_first(state))
    step = int(first(state.step))
    if is_first():
        for source in dict.fromkeys(source for source in (*data.train, *data.val) if source is not None):
            for note in source.notes:
                _logger.info("%s: %s", source.name, note)
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
        begins = f"resuming after step {step}" if step else "from the start"
        _logger.info("%s, %d %s per step on %s", task.description(), options.batch_size, task.feed.things, devices)
        _logger.info("%s, to step %d; output folder: %s", begins, options.steps, options.out)
    if step < options.steps:
        loop = Loop(task, data, checkpoints, step, record)
        with stop.finishing(), loop.closing():
            state, step = loop.run(state, step, stop)
    return state, step
