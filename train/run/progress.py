"""How far a run is, on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

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
