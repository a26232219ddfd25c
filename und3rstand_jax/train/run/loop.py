"""The loop: a batch, a step, and now and then a line of the log, a validation, a checkpoint."""

import collections
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from und3rstand_jax.data.loader import Delivery, Sources, training_batches
from und3rstand_jax.data.records import Shape
from und3rstand_jax.geometry.loss import PairLoss
from und3rstand_jax.support.errors import UserError
from und3rstand_jax.support.files import replace_text
from und3rstand_jax.support.machine import give_back_freed_memory
from und3rstand_jax.train.run.checkpoints import Checkpoints
from und3rstand_jax.train.run.interruption import Interruption
from und3rstand_jax.train.run.job import Job, Validation, by_name, mean_error
from und3rstand_jax.train.run.metrics_log import LossWindow, MetricsLog, Progress
from und3rstand_jax.train.step.data_parallel import first, parallel, split
from und3rstand_jax.train.step.optimizer import NOT_FROZEN, schedule

_IN_FLIGHT = 2  # steps handed to the devices before the first of them is waited for


@dataclasses.dataclass(frozen=True)
class Data:
    """Opened sources of the two feeds of a run."""

    train: Sources
    val: Sources


class Loop:
    """Trains from where the state is to the last step, or until told to stop.

    Checkpoints and logs are those of the first process; on the others both are None, and all else is the same.
    """

    def __init__(
        self, job: Job, data: Data, fixed: Any, checkpoints: Checkpoints | None, log: MetricsLog | None, progress: Progress
    ) -> None:
        """`fixed` is the job's, replicated."""
        self._job, self._setup, self._data, self._fixed = job, job.setup, data, fixed
        self._checkpoints, self._log, self._progress = checkpoints, log, progress
        self._programs: dict[Shape, Any] = {}
        self._validation = Validation(job, data.val)
        self._validation_due = False
        self._window = LossWindow()
        self._frozen: dict[str, int] = {}
        self._unreadable = 0
        self._since = time.monotonic()

    def run(self, state: Any, step: int, record: dict[str, Any], stop: Interruption) -> tuple[Any, int]:
        """Runs on.

        Args:
            state: replicated; given away.
            step: how many steps it has behind it.
            record: of the checkpoint it is from, empty at the start.
            stop: asked before every step.

        Returns:
            The state, and the steps it has behind it: fewer than all if it was told to stop. Either way it is saved.

        Raises:
            UserError: pairs cannot be read, or nothing is left that trains; the state is saved.
            OSError: a checkpoint cannot be written.
        """
        options = self._setup.options
        self._take_up(step, record)
        if self._validation_due:
            self._validate(step, state, stop)
        pending: collections.deque[tuple[int, Any]] = collections.deque()
        batches = training_batches(self._setup.feed, self._data.train, step)
        saved = step
        while step < options.steps and not stop(step):
            delivery = next(batches)
            self._report_skipped(step, delivery)
            arguments = (state, self._fixed, split(delivery.batch))
            state, losses = self._program(delivery.shape, *arguments)(*arguments)
            del arguments
            step += 1
            pending.append((step, losses))
            ends = step == options.steps
            logs, validates = step % options.log_every == 0 or ends, step % options.validate_every == 0 or ends
            saves = validates or step % options.save_every == 0
            self._take_in(pending, 0 if logs or saves else _IN_FLIGHT)
            if logs:
                self._write_losses(step, state)
            if saves:
                self._save(step, state, self._validate(step, state, stop) if validates else None)
                saved = step
            if len(self._frozen) == len(self._job.order):
                self._save(step, state, None)
                raise UserError(
                    f"after step {step} nothing is left to train whose loss is finite; look at metrics.jsonl, try a lower --learning-rate"
                )
        self._take_in(pending, 0)
        if saved != step:
            self._save(step, state, None)
        return state, step

    def _take_up(self, step: int, record: dict[str, Any]) -> None:
        """Goes on from a checkpoint's record; what was listed as unreadable after it will be again."""
        if record:
            self._window = LossWindow(**record["window"])
            self._frozen = dict(record["frozen"])
            self._unreadable = record["unreadable"]
            self._validation_due = record["validation_due"]
        if self._unreadable_list.exists():
            lines = self._unreadable_list.read_text().splitlines(True)
            replace_text(self._unreadable_list, "".join(line for line in lines if int(line.split("\t")[0]) <= step))

    def _program(self, shape: Shape, *arguments: Any) -> Any:
        """The step for one shape, compiled when it is first asked for."""
        if shape not in self._programs:
            self._progress.say(f"compiling the step for {shape[1]}×{shape[0]} pixels")
            program = parallel(self._job.step(shape), donate=(0,))
            if jax.process_count() == 1:
                # Ahead of its first call, so that what compiling has freed is given back before the step needs memory.
                program = program.lower(*arguments).compile()
                give_back_freed_memory()
            self._programs[shape] = program
        return self._programs[shape]

    def _take_in(self, pending: collections.deque[tuple[int, Any]], left: int) -> None:
        """Waits for steps until only `left` are under way, and adds their losses to the window."""
        while len(pending) > left:
            _, losses = pending.popleft()
            self._window.add(self._by_name({name: first(loss) for name, loss in losses.items()}))
            self._progress.step()

    def _by_name(self, losses: Any) -> dict[str, PairLoss]:
        return by_name(self._job, losses, lambda stack, index: PairLoss(*(values[index] for values in stack)))

    def _write_losses(self, step: int, state: Any) -> None:
        options = self._setup.options
        steps, means = self._window.steps, self._window.means()
        now = time.monotonic()
        rate, self._since = steps * (options.batch_size or 0) / max(now - self._since, 1e-9), now
        finite = [values["total"] for values in means.values() if math.isfinite(values["total"])]
        self._progress.figures(step, float(np.mean(finite)) if finite else math.nan, rate)
        self._report_frozen(step, state)
        if self._log is not None:
            rates = {"pairs_per_second": rate, "learning_rate": float(schedule(self._setup.recipe)(step - 1))}
            self._log.losses(step, means, rates | {"unreadable": self._unreadable})
            self._log.flush()

    def _report_frozen(self, step: int, state: Any) -> None:
        for name, at in by_name(self._job, self._job.frozen_at(state), lambda steps, index: int(steps[index])).items():
            if at != NOT_FROZEN and name not in self._frozen:
                self._frozen[name] = at
                others = ", the others go on" if len(self._job.order) > 1 else ""
                text = f"{name}: loss or gradient not finite in step {at + 1}; frozen at the last good parameters{others}"
                self._progress.say(text)
                if self._log is not None:
                    self._log.event(step, text)

    def _validate(self, step: int, state: Any, stop: Interruption) -> float | None:
        """The mean error; None if the run was told to stop, which then leaves the validation to the next."""
        self._progress.say(f"validating after step {step}")
        errors = self._validation(self._fixed, state.params, stop, lambda delivery: self._report_skipped(step - 1, delivery))
        self._validation_due = errors is None
        self._since = time.monotonic()
        if errors is None:
            return None
        if self._log is not None:
            self._log.validation(step, errors)
            self._log.flush()
        return mean_error(errors)

    def _save(self, step: int, state: Any, error: float | None) -> None:
        self._report_frozen(step, state)
        if self._checkpoints is None:
            return
        record = {
            "step": step,
            "pairs": step * (self._setup.options.batch_size or 0),
            "window": self._window.record(),
            "frozen": self._frozen,
            "unreadable": self._unreadable,
            "validation_due": self._validation_due,
        }
        # A copy of our own: the next step takes the state's memory while this is still being written.
        self._checkpoints.save(step, first(state), record, error)

    def _report_skipped(self, step: int, delivery: Delivery) -> None:
        """Names what this host could not read in its own file, the first of it on stderr too."""
        if not delivery.skipped:
            return
        file = self._unreadable_list
        if self._unreadable == 0:
            print(f"cannot read {delivery.skipped[0][1]}: another pair takes its place; {file} lists all such", file=sys.stderr, flush=True)
        self._unreadable += len(delivery.skipped)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.writelines(f"{step + 1}\t{source}\t{told}\n" for source, told in delivery.skipped)

    @property
    def _unreadable_list(self) -> Path:
        """A line for each pair that this host could not read: step, source, reason."""
        return self._setup.options.out / f"skipped{jax.process_index() or ''}.txt"
