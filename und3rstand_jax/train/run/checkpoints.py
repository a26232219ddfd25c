"""The run's checkpoints: asynchronous, the newest few and the best, each complete or not there at all."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from und3rstand_jax.support.errors import UserError

ERROR = "error"  # the metric that the best checkpoint has least of


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint as it is read back: the state as NumPy arrays, and the record that went with it."""

    state: Any
    record: dict[str, Any]


class Checkpoints:
    """Orbax checkpoints of one process: a run on several hosts keeps them on its first.

    A checkpoint holds the state and a record, a dict of plain values: step, validation error, what logs have gathered since their
    last line, and the position in the data, which is the step times the batch size.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or makes the folder; `keep` newest checkpoints stay, and the one with the least error."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, preservation_policy

        own = jax.process_index()
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[ERROR], n=1, reverse=True, keep_checkpoints_without_metrics=False
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([preservation_policy.LatestN(n=keep), best]),
                # Without it Orbax would not write the errors down, and a run that goes on would not know its best.
                best_fn=lambda metrics: metrics[ERROR],
                best_mode="min",
                enable_async_checkpointing=True,
                # What a killed process left half-written is of no use to anybody.
                cleanup_tmp_directories=True,
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
                ),
            ),
            item_names=("state", "record"),
        )

    def save(self, step: int, state: Any, record: dict[str, Any], error: float | None) -> None:
        """Starts to write the state after `step` steps; returns once nothing that the caller may change is read any more.

        Args:
            step: how many were done.
            state: a tree of arrays that stay as they are.
            record: plain values.
            error: validation error, where there was a validation just now.

        Raises:
            OSError: this checkpoint, or the one before, could not be written.
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))
        metrics = None if error is None or not np.isfinite(error) else {ERROR: error}
        with _told_of_the_disk():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def newest(self) -> int | None:
        """How many steps the newest checkpoint has behind it; None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The checkpoint with the least validation error; None if none was validated."""
        errors = {step: metrics[ERROR] for step in self._manager.all_steps() if (metrics := self._manager.metrics(step))}
        return min(errors, key=lambda step: (errors[step], step)) if errors else None

    def read(self, step: int, like: Any) -> Saved:
        """A checkpoint, in the structure of `like`.

        Raises:
            UserError: it is damaged, or holds other arrays than `like` does.
        """
        import orbax.checkpoint as ocp

        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=like, restore_args=as_numpy), record=ocp.args.JsonRestore())
        try:
            read = self._manager.restore(step, args=args)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {step} in {self._manager.directory} cannot be read ({reason}); remove it to go on from the one before, "
                "or start anew with --overwrite"
            ) from error
        return Saved(read["state"], read["record"])

    def wait(self) -> None:
        """Returns once everything is written.

        Raises:
            OSError: it could not be.
        """
        with _told_of_the_disk():
            self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Waits, and ends the writers."""
        self.close()

    def close(self) -> None:
        """Waits, and ends the writers.

        Raises:
            OSError: something could not be written.
        """
        with _told_of_the_disk():
            self._manager.close()


@contextlib.contextmanager
def _told_of_the_disk() -> Iterator[None]:
    """What TensorStore makes of the system's errors, as errors of the system again."""
    try:
        yield
    except ValueError as error:
        raise OSError(f"a checkpoint could not be written: {' '.join(str(error).split())[:300]}") from error
