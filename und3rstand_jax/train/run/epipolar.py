"""Epipolar probes on a backbone or on its control: trained by the same loop as everything else, and read back if they exist."""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp

from und3rstand_jax.checkpoint.trees import unflatten
from und3rstand_jax.probes.epipolar import EpipolarProbes
from und3rstand_jax.train.epipolar_task import EpipolarTask
from und3rstand_jax.train.kept_options import EpipolarOptions
from und3rstand_jax.train.run.training import make_task, train

_logger = logging.getLogger(__name__)


def train_epipolar(
    options: EpipolarOptions, command: str = "the same command", farewell: Callable[[str], None] = _logger.warning
) -> EpipolarProbes | None:
    """Trains epipolar probes in the folder `options.out`, resumes an interrupted run there, or reads the probes of a finished one.

    Args:
        options: the run's options; with `fresh`, the control is trained, on a backbone with freshly drawn weights.
        command: what the user typed, to say how to resume.
        farewell: shows a last line, from a signal handler, when a request to stop ends the process immediately.

    Returns:
        The probes; None if the process was asked to stop before the end. All work is then saved, and the same call resumes it.

    Raises:
        UserError: an option, the data, the backbone or the folder cannot be used, or the folder contains another run.
        OSError: files cannot be written.
    """
    task = make_task(options)
    assert isinstance(task, EpipolarTask)
    found = None if options.overwrite else _finished(task)
    if found is None:
        train(options, command, farewell)
        found = _finished(task)
    return found


def _finished(task: EpipolarTask) -> EpipolarProbes | None:
    params = task.finished()
    return None if params is None else EpipolarProbes(task.probes, jax.tree.map(jnp.asarray, unflatten(params)))
