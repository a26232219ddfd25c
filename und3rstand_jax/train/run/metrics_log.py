"""Losses and validations of every layer and view, as lines of JSON and for TensorBoard.

How far a run is, on stderr: a bar on a terminal, a line now and then in a log.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from und3rstand_jax.geometry.loss import PairLoss
from und3rstand_jax.support.files import replace_text, strict_json

JSONL, TENSORBOARD = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """Writes both. A run that goes on from a checkpoint first takes back what was written after it."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens the logs of a run that has done `step` steps."""
        from tensorboardX import SummaryWriter

        self._file = folder / JSONL
        if self._file.exists():
            replace_text(self._file, "".join(line for line in self._file.read_text().splitlines(True) if _is_before(line, step)))
        self._lines = self._file.open("a")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1 if step else None)

    def losses(self, step: int, layers: Mapping[str, Mapping[str, float]], facts: Mapping[str, float]) -> None:
        """Mean losses of each layer over the steps since the last line, and figures of the run as a whole."""
        self._write({"step": step, **facts, "layers": layers})
        for layer, values in layers.items():
            for name, value in values.items():
                self._board.add_scalar(f"{name}/{layer}", value, step)
        for name, value in facts.items():
            self._board.add_scalar(f"run/{name}", value, step)

    def validation(self, step: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """Test metric of each layer and view on held-out pairs."""
        self._write({"step": step, "validation": layers})
        for layer, values in layers.items():
            for view, value in values.items():
                self._board.add_scalar(f"validation_{view}/{layer}", value, step)

    def event(self, step: int, text: str) -> None:
        """Something that happened once, such as a probe frozen."""
        self._write({"step": step, "event": text})
        self._board.add_text("events", text, step)

    def flush(self) -> None:
        """Puts on disk what was written so far."""
        self._lines.flush()
        self._board.flush()

    def close(self) -> None:
        """Ends both."""
        self._lines.close()
        self._board.close()

    def _write(self, content: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps(strict_json(content), allow_nan=False) + "\n")


class LossWindow:
    """Sums of losses since the last line of the log. Plain floats, so that a checkpoint carries them on exactly."""

    def __init__(self, steps: int = 0, sums: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Empty, or as `record` gave it."""
        self.steps = steps
        self._sums = {layer: dict(values) for layer, values in (sums or {}).items()}

    def add(self, losses: Mapping[str, PairLoss]) -> None:
        """One step's losses of every layer."""
        self.steps += 1
        for layer, loss in losses.items():
            held = self._sums.setdefault(layer, dict.fromkeys(PairLoss._fields, 0.0))
            for name, value in zip(PairLoss._fields, loss, strict=True):
                held[name] += float(value)

    def means(self) -> dict[str, dict[str, float]]:
        """Means over the steps of the window; it is empty afterwards."""
        means = {layer: {name: total / self.steps for name, total in values.items()} for layer, values in self._sums.items()}
        self.steps, self._sums = 0, {}
        return means

    def record(self) -> dict[str, Any]:
        """What the window holds, as plain values."""
        return {"steps": self.steps, "sums": self._sums}


def _is_before(line: str, step: int) -> bool:
    """Whether a line belongs to the steps done; a line cut short by a kill does not."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError):
        return False


_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Steps done, loss, pairs a second and time left."""

    def __init__(self, steps: int, done: int, shown: bool) -> None:
        """`shown` on the one process that talks."""
        self._bar = tqdm(total=steps, initial=done, unit="step", desc="training", disable=None if shown else True, dynamic_ncols=True)
        # In a log a bar's carriage returns would run into each other.
        self._lines = shown and not sys.stderr.isatty()
        self._steps, self._done, self._told, self._start = steps, done, 0.0, time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self._bar.update()

    def figures(self, step: int, loss: float, pairs_per_second: float) -> None:
        """The newest figures, after `step` steps."""
        self._bar.set_postfix_str(f"loss {loss:.4f}, {pairs_per_second:.3g} pairs/s")
        now = time.monotonic()
        if self._lines and (now - self._told > _SECONDS_BETWEEN_LINES or step == self._steps):
            self._told = now
            self.say(f"step {step} of {self._steps}: loss {loss:.4f}, {pairs_per_second:.3g} pairs/s, {self._left(step)} left")

    def _left(self, step: int) -> str:
        seconds = (time.monotonic() - self._start) / max(step - self._done, 1) * (self._steps - step)
        return tqdm.format_interval(seconds)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._bar.disable:
            tqdm.write(text, file=sys.stderr)
        elif self._lines:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar, which stays."""
        self._bar.close()
