"""Epipolar probes on a backbone or on its control, trained by the loop that trains everything else, and read back when they are there."""

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
    """Trains epipolar probes in the folder `options.out`, resumes what was interrupted there, or reads what is finished.

    Args:
        options: of the run; `fresh` trains the control, on a backbone with freshly drawn weights.
        command: what the user typed, to say how to resume.
        farewell: shows a last line, from a signal handler, when a request to stop ends the process on the spot.

    Returns:
        The probes; None if the process was asked to stop meanwhile: all that was done is saved, and the same call goes on with it.

    Raises:
        UserError: an option, the data, the backbone or the folder cannot be used, or the folder holds another run.
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
