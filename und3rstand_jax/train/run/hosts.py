"""Several processes as one run: how they find each other, and what the first tells the others."""

import dataclasses
import json
from typing import TypeVar

import jax
import numpy as np

from und3rstand_jax.support.errors import UserError
from und3rstand_jax.train.options import RunOptions
from und3rstand_jax.train.run.config_file import option_values, typed_options
from und3rstand_jax.train.run.folder import earlier_options

T = TypeVar("T")


Options = TypeVar("Options", bound=RunOptions)


_LONGEST = 2**16  # bytes of all options as text


def join(options: RunOptions) -> None:
    """Connects this process with the others of the run; before anything else is asked of JAX.

    Raises:
        UserError: half of what is needed was given.
    """
    given = (options.coordinator, options.processes, options.process)
    if all(value is None for value in given):
        if options.distributed:
            jax.distributed.initialize()
        return
    if any(value is None for value in given):
        raise UserError("--coordinator, --processes and --process go together; on a TPU pod or under Slurm --distributed alone will do")
    jax.distributed.initialize(options.coordinator, options.processes, options.process)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def from_first(tree: T) -> T:
    """The first process's values of a tree of arrays, on every process."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def agreed_options(options: Options, trains: str) -> Options:
    """The options, with what an earlier run in the same folder decided: of several hosts the first alone need have the folder."""
    if jax.process_count() == 1:
        return earlier_options(options, trains)
    text = json.dumps(option_values(earlier_options(options, trains))) if is_first() else ""
    letters = np.zeros(_LONGEST, np.uint8)
    letters[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
    told = bytes(np.asarray(from_first(letters)).astype(np.uint8)).rstrip(b"\0").decode()
    return dataclasses.replace(options, **typed_options(json.loads(told), "the first process's options", type(options)))


def wait_for_all(name: str) -> None:
    """Returns once every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
