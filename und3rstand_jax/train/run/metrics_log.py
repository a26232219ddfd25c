"""A run's reports on its progress: metrics.jsonl, TensorBoard, and a progress bar, or lines if stderr is not a terminal."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm
from typing_extensions import TypedDict

from und3rstand_jax.support.documents import json_lines, parse_json, read_text
from und3rstand_jax.support.errors import OutputError, UserError
from und3rstand_jax.support.files import open_to_append, own_folder, replace_text
from und3rstand_jax.support.progress import is_quiet
from und3rstand_jax.support.text import to_json
from und3rstand_jax.train.learning_curve import LOG
from und3rstand_jax.train.run.checkpoints import WindowRecord
from und3rstand_jax.train.step.optimizer import Loss

TENSORBOARD = "tensorboard"

_SECONDS_BETWEEN_LINES = 10.0

_logger = logging.getLogger(__name__)


class _Entry(TypedDict):
    step: int


def keep_lines(file: Path, is_kept: Callable[[str], bool]) -> None:
    """Keeps only those lines of a log that `is_kept` accepts. An unreadable line, such as one cut short by a kill, is removed."""
    kept = []
    for _, line in json_lines(read_text(file, OutputError, "remove it", largest=2**40)):
        with contextlib.suppress(UserError):
            if is_kept(line):
                kept.append(f"{line}\n")
    replace_text(file, "".join(kept))


def _step_of(line: str, file: Path) -> int:
    return parse_json(line, str(file), _Entry, OutputError)["step"]


class MetricsLog:
    """Losses and validation errors of every layer and view, written as lines of JSON and for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens the logs of a run that has done `step` steps, and removes entries of later steps, written before an interruption."""
        from tensorboardX import SummaryWriter

        self._file = folder / LOG
        if self._file.exists():
            keep_lines(self._file, lambda line: _step_of(line, self._file) <= step)
        self._lines = open_to_append(self._file)
        self._board = SummaryWriter(str(own_folder(folder / TENSORBOARD)), purge_step=step + 1 if step else None)

    def losses(self, step: int, layers: Mapping[str, Mapping[str, float]], facts: Mapping[str, float]) -> None:
        """Logs mean losses of each layer over the steps since the previous entry, and figures for the run as a whole."""
        self._write({"step": step, **facts, "layers": layers})
        for layer, values in layers.items():
            for name, value in values.items():
                self._board.add_scalar(f"{name}/{layer}", value, step)
        for name, value in facts.items():
            self._board.add_scalar(f"run/{name}", value, step)
        self.flush()

    def validation(self, step: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """Logs the error of each layer and view on held-out pairs."""
        self._write({"step": step, "validation": layers})
        for layer, values in layers.items():
            for view, value in values.items():
                self._board.add_scalar(f"validation_{view}/{layer}", value, step)
        self.flush()

    def event(self, step: int, text: str) -> None:
        """Logs something that happened once, such as the freezing of a probe."""
        self._write({"step": step, "event": text})
        self._board.add_text("events", text, step)

    def flush(self) -> None:
        """Writes everything to disk."""
        self._lines.flush()
        self._board.flush()

    def close(self) -> None:
        """Closes both logs."""
        self._lines.close()
        self._board.close()

    def _write(self, content: Mapping[str, object]) -> None:
        self._lines.write(to_json(content, indent=None) + "\n")


class LossWindow:
    """Sums of losses since the last entry of the log. Plain floats, so that a checkpoint stores them exactly."""

    def __init__(self, steps: int = 0, sums: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """An empty window, or one with the contents that `record` returned."""
        self.steps = steps
        self._sums = {layer: dict(values) for layer, values in (sums or {}).items()}

    def add(self, losses: Mapping[str, Loss]) -> None:
        """Adds the losses of a step, by layer."""
        self.steps += 1
        for layer, loss in losses.items():
            values = loss.named()
            held = self._sums.setdefault(layer, dict.fromkeys(values, 0.0))
            for name, value in values.items():
                held[name] += float(value)

    def means(self) -> dict[str, dict[str, float]]:
        """Means over the steps of the window, which is empty afterwards."""
        means = {layer: {name: total / self.steps for name, total in values.items()} for layer, values in self._sums.items()}
        self.steps, self._sums = 0, {}
        return means

    def record(self) -> WindowRecord:
        """The contents of the window, as plain values."""
        return {"steps": self.steps, "sums": self._sums}


class Progress:
    """Shows steps done, loss, pairs (or sets) per second and time left, on stderr of the first process."""

    def __init__(self, steps: int, done: int, shown: bool, things: str = "pairs") -> None:
        """`shown` is true on the first process; `things` names what a batch consists of."""
        self._things = things
        self._bar = tqdm(
            total=steps, initial=done, unit="step", desc="training", disable=None if shown and not is_quiet() else True, dynamic_ncols=True
        )
        # In a log file, the bar's carriage returns would run into each other.
        self._lines = shown and not sys.stderr.isatty()
        self._steps, self._done, self._start = steps, done, time.monotonic()
        self._last_line = 0.0

    def advance(self) -> None:
        """Counts one more step."""
        self._bar.update()

    def figures(self, step: int, loss: float, pairs_per_second: float) -> None:
        """Shows the newest figures, after `step` steps."""
        figures = f"loss {loss:.4f}, {pairs_per_second:.3g} {self._things}/s"
        self._bar.set_postfix_str(figures)
        now = time.monotonic()
        if self._lines and (now - self._last_line > _SECONDS_BETWEEN_LINES or step == self._steps):
            self._last_line = now
            left = tqdm.format_interval((now - self._start) / max(step - self._done, 1) * (self._steps - step))
            _logger.info("step %d of %d: %s, %s left", step, self._steps, figures, left)

    def close(self) -> None:
        """Ends the bar, which stays visible."""
        self._bar.close()
