"""The checkpoints of a run, written asynchronously: the newest few and the best one, each complete or absent.

Orbax's v1 interface cannot write them (as of 0.12.8): its `training.Checkpointer` refuses `active_processes`, so the first of
several hosts cannot write alone.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np
from typing_extensions import TypedDict

from und3rstand_jax.checkpoint.trees import single_process_options
from und3rstand_jax.support.documents import checked
from und3rstand_jax.support.errors import CheckpointError, UserError
from und3rstand_jax.support.files import own_folder
from und3rstand_jax.support.text import one_line

ERROR = "error"  # the metric that is lowest in the best checkpoint

_REMEDY = "remove it to resume from the one before, or start again with --overwrite"

T = TypeVar("T")


class WindowRecord(TypedDict):
    """Losses since the last line of the log: number of steps, and sums by layer and name."""

    steps: int
    sums: dict[str, dict[str, float]]


class Record(TypedDict, total=False):
    """What a checkpoint contains besides the state, as plain values; the position in the data is the step times the batch size.

    `step` and `pairs` say how far the run has got, `window` the losses since the last line of the log. `frozen` is the step at which
    each frozen row was frozen, `unreadable` the number of pairs that could not be read, `validation_due` whether the validation after this
    step was cut short.
    """

    step: int
    pairs: int
    window: WindowRecord
    frozen: dict[str, int]
    unreadable: int
    validation_due: bool


@dataclasses.dataclass(frozen=True)
class Saved(Generic[T]):
    """A checkpoint as read back: the state as NumPy arrays, and the record saved with it."""

    state: T
    record: Record


class Checkpoints:
    """Orbax checkpoints of one process: a run on several hosts keeps them on its first host."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or creates the folder. The newest `keep` checkpoints are kept, and the one with the lowest error.

        Raises:
            CheckpointError: the folder's contents are damaged, or not those of a run.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, preservation_policy

        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[ERROR], n=1, reverse=True, keep_checkpoints_without_metrics=False
        )
        own_folder(folder)
        with _readable(folder):
            self._manager = ocp.CheckpointManager(
                folder.resolve(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=AnyPreservationPolicy([preservation_policy.LatestN(n=keep), best]),
                    # Without it Orbax would not save the errors, and a resumed run would not know its best checkpoint.
                    best_fn=lambda metrics: metrics[ERROR],
                    best_mode="min",
                    enable_async_checkpointing=True,
                    # Removes what a killed process left half written.
                    cleanup_tmp_directories=True,
                    create=False,
                    multiprocessing_options=single_process_options(),
                ),
                item_names=("state", "record"),
            )

    def save(self, step: int, state: object, record: Record, error: float | None) -> None:
        """Starts writing the state after `step` steps; returns as soon as the caller may change its arguments again.

        Args:
            step: number of steps done.
            state: a tree of arrays.
            record: see `Record`.
            error: validation error, if there was a validation after this step.

        Raises:
            OSError: this checkpoint, or the one before, could not be written.
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))
        metrics = None if error is None or not np.isfinite(error) else {ERROR: error}
        with _system_errors():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def newest(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation error; None if none was validated."""
        with _readable(f"the errors of checkpoints in {self._manager.directory}"):
            errors = {step: float(metrics[ERROR]) for step in self._manager.all_steps() if (metrics := self._manager.metrics(step))}
        return min(errors, key=lambda step: (errors[step], step)) if errors else None

    def read(self, step: int, like: T) -> Saved[T]:
        """Reads a checkpoint into the structure of `like`.

        Raises:
            CheckpointError: it is damaged, or its arrays are not those of `like`.
        """
        import orbax.checkpoint as ocp

        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=like, restore_args=as_numpy), record=ocp.args.JsonRestore())
        name = f"checkpoint {step} in {self._manager.directory}"
        with _readable(name):
            read = self._manager.restore(step, args=args)
        return Saved(read["state"], checked(read["record"], name, Record, CheckpointError, _REMEDY))

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: something could not be written.
        """
        with _system_errors():
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is written, and stops the writers.

        Raises:
            OSError: something could not be written.
        """
        with _system_errors():
            self._manager.close()


@contextlib.contextmanager
def _readable(what: object) -> Iterator[None]:
    """Turns the errors that Orbax raises for damaged files into a CheckpointError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"{what} cannot be read ({one_line(error, 200)}); {_REMEDY}") from error


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Turns the ValueErrors into which TensorStore converts the system's errors back into OSErrors."""
    try:
        yield
    except ValueError as error:
        raise OSError(f"a checkpoint could not be written: {one_line(error)}") from error
