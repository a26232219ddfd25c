"""The training loop: a batch, a step, and at intervals a log entry, a validation, a checkpoint."""

import collections
import contextlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, NamedTuple

import jax
import numpy as np

from und3rstand_jax.data.loader import Delivery, Sources, training_batches
from und3rstand_jax.data.records import Batch, Shape
from und3rstand_jax.model.stack import Params
from und3rstand_jax.support.errors import OutputError, TrainingError
from und3rstand_jax.support.files import open_to_append
from und3rstand_jax.support.machine import give_back_freed_memory
from und3rstand_jax.support.progress import timed
from und3rstand_jax.support.text import printable
from und3rstand_jax.train.run.checkpoints import Checkpoints, Record
from und3rstand_jax.train.run.metrics_log import LossWindow, MetricsLog, Progress, keep_lines
from und3rstand_jax.train.run.processes import Interruption, is_first
from und3rstand_jax.train.run.validation import Validation, mean_error
from und3rstand_jax.train.step.data_parallel import first, parallel, replicate, split
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, schedule
from und3rstand_jax.train.task import Losses, State, Step, Task

_IN_FLIGHT = 2  # steps handed to the devices before the first of them is waited for

_logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """Opened sources of a run's training and held-out pairs."""

    train: Sources
    val: Sources


class Loop(Generic[State]):
    """Trains from a given state to the last step, or until asked to stop.

    Only the first process has checkpoints and a metrics log; on the others both are None, and everything else is the same.
    """

    def __init__(self, task: Task[State], data: Data, checkpoints: Checkpoints | None, step: int, record: Record) -> None:
        """Continues after `step` steps, with the record of the checkpoint written then (empty at the start)."""
        self._task, self._data, self._checkpoints = task, data, checkpoints
        self._window = LossWindow(**record["window"]) if "window" in record else LossWindow()
        self._frozen: dict[str, int] = dict(record.get("frozen", {}))
        self._unreadable: int = record.get("unreadable", 0)
        self._validation_due: bool = record.get("validation_due", False)
        # One line for each pair that this host could not read: step, source, reason.
        self._unreadable_list: Path = task.options.out / f"skipped{jax.process_index() or ''}.txt"
        if self._unreadable_list.exists():
            # Pairs of later steps will come up again.
            keep_lines(self._unreadable_list, lambda line: _step_of(line) <= step)
        self._programs: dict[Shape, Step[State]] = {}
        self._validation = Validation(task, data.val)
        self._metrics = MetricsLog(task.options.out, step) if is_first() else None
        self._progress = Progress(task.options.steps, step, is_first(), "pairs" if task.feed.views == 2 else "sets")
        self._fixed = replicate(task.fixed())
        give_back_freed_memory()
        self._since = time.monotonic()

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Closes the logs on exit, and waits for checkpoints that are still being written."""
        try:
            yield
        finally:
            self._progress.close()
            if self._metrics is not None:
                self._metrics.close()
            if self._checkpoints is not None:
                self._checkpoints.wait()

    def run(self, state: State, step: int, stop: Interruption) -> tuple[State, int]:
        """Trains.

        Args:
            state: the state on every device; donated.
            step: number of steps already done.
            stop: checked before every step.

        Returns:
            The state, and the number of steps done: fewer than all if the run was asked to stop. Either way the state is saved.

        Raises:
            DataError: pairs cannot be read.
            TrainingError: every loss is non-finite; the state is saved.
            OSError: a checkpoint cannot be written.
        """
        options = self._task.options
        if self._validation_due:
            self._validate(step, state, stop)
        pending: collections.deque[Losses] = collections.deque()
        batches = training_batches(self._task.feed, self._data.train, step)
        saved = step
        while step < options.steps and not stop(step):
            delivery = next(batches)
            self._report_unreadable(step, delivery)
            batch = split(delivery.batch)
            program = self._program(delivery.shape, state, self._fixed, batch)
            state, losses = program(state, self._fixed, batch)
            del batch
            step += 1
            pending.append(losses)
            ends = step == options.steps
            logs, validates = step % options.log_every == 0 or ends, step % options.validate_every == 0 or ends
            saves = validates or step % options.save_every == 0
            self._take_in(pending, 0 if logs or saves else _IN_FLIGHT)
            if logs:
                self._log_losses(step, state)
            if saves:
                self._save(step, state, self._validate(step, state, stop) if validates else None)
                saved = step
            if len(self._frozen) == len(self._task.order):
                self._save(step, state, None)
                raise TrainingError(
                    f"training diverged: after step {step} every loss is non-finite; see metrics.jsonl, or try a lower --learning-rate"
                )
        self._take_in(pending, 0)
        if saved != step:
            self._save(step, state, None)
        return state, step

    def _program(self, shape: Shape, state: State, fixed: Params, batch: Batch) -> Step[State]:
        """The step for batches of one shape, compiled for the first such batch."""
        if shape not in self._programs:
            with timed("compiling the step for %d×%d pixels", shape[1], shape[0]) if is_first() else contextlib.nullcontext():
                program = parallel(self._task.step(shape), donate=(0,))
                self._programs[shape] = program
                if jax.process_count() == 1:
                    # Ahead of its first call, so that the memory used for compiling is returned before the step needs any.
                    self._programs[shape] = program.lower(state, fixed, batch).compile()
                    give_back_freed_memory()
        return self._programs[shape]

    def _take_in(self, pending: collections.deque[Losses], left: int) -> None:
        """Waits until only `left` steps are in flight, and adds the losses of the others to the window."""
        while len(pending) > left:
            self._window.add(self._task.by_row(first(pending.popleft())))
            self._progress.advance()

    def _log_losses(self, step: int, state: State) -> None:
        steps, means = self._window.steps, self._window.means()
        now = time.monotonic()
        rate, self._since = steps * self._task.feed.batch_size / max(now - self._since, 1e-9), now
        finite = [values["total"] for values in means.values() if math.isfinite(values["total"])]
        self._progress.figures(step, float(np.mean(finite)) if finite else math.nan, rate)
        self._report_frozen(step, state)
        if self._metrics is not None:
            learning_rate = float(schedule(self._task.recipe)(step - 1))
            facts = {"pairs_per_second": rate, "learning_rate": learning_rate, "unreadable": self._unreadable}
            self._metrics.losses(step, means, facts)

    def _report_frozen(self, step: int, state: State) -> None:
        frozen_at = jax.tree.map(np.atleast_1d, first(state.frozen_at))
        for name, at in self._task.by_row(frozen_at).items():
            if at != NOT_FROZEN and name not in self._frozen:
                self._frozen[name] = int(at)
                others = ", the others continue" if len(self._task.order) > 1 else ""
                text = f"{name}: loss or gradient not finite in step {at + 1}; frozen at the last good parameters{others}"
                if self._metrics is not None:
                    _logger.warning("%s", text)
                    self._metrics.event(step, text)

    def _validate(self, step: int, state: State, stop: Interruption) -> float | None:
        """The mean error; None if the run was asked to stop, which leaves the validation to the run that resumes it."""
        with timed("validating after step %d", step) if is_first() else contextlib.nullcontext():
            errors = self._validation(self._fixed, state.params, stop, lambda delivery: self._report_unreadable(step - 1, delivery))
        self._validation_due = errors is None
        self._since = time.monotonic()
        if errors is None:
            return None
        if self._metrics is not None:
            self._metrics.validation(step, errors)
        return mean_error(errors)

    def _save(self, step: int, state: State, error: float | None) -> None:
        self._report_frozen(step, state)
        if self._checkpoints is None:
            return
        record: Record = {
            "step": step,
            "pairs": step * self._task.feed.batch_size,
            "window": self._window.record(),
            "frozen": self._frozen,
            "unreadable": self._unreadable,
            "validation_due": self._validation_due,
        }
        # A separate copy: the next step reuses the state's memory while the copy is still being written.
        self._checkpoints.save(step, first(state), record, error)

    def _report_unreadable(self, step: int, delivery: Delivery) -> None:
        """Lists the sets that this host could not read, and shows the first of them."""
        if not delivery.skipped:
            return
        file = self._unreadable_list
        if self._unreadable == 0:
            thing = "pair" if self._task.feed.views == 2 else "set"
            told = "cannot read %s: another %s takes its place; %s lists all unreadable %ss"
            _logger.warning(told, delivery.skipped[0][1], thing, file, thing)
        self._unreadable += len(delivery.skipped)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_to_append(file) as lines:
            lines.writelines(f"{step + 1}\t{printable(source)}\t{printable(reason)}\n" for source, reason in delivery.skipped)


def _step_of(line: str) -> int:
    """The step of a line of skipped.txt."""
    number = line.partition("\t")[0]
    if not number.isascii() or not number.isdecimal() or len(number) > 18:
        raise OutputError("it does not begin with a step")
    return int(number)
