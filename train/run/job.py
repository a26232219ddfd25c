"""What a run trains, as the loop sees it: probes on a frozen backbone, or the backbone itself."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from train.data.loader import Sources
from train.data.records import Shape
from train.run.checkpoints import Checkpoints
from train.setup import Setup


class Job(Protocol):
    """A thing to train. Losses, errors and `frozen_at` come as stacked rows under the names of `rows`."""

    @property
    def setup(self) -> Setup:
        """What every run is made of."""
        ...

    @property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a stack -> what each of its rows belongs to, as logs call it: a layer id, or the model's head."""
        ...

    @property
    def order(self) -> tuple[str, ...]:
        """All that the rows belong to, in the order of logs."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What a run and its checkpoints are tied to besides the options; plain values."""
        ...

    def announcement(self) -> str:
        """What is trained on what, for the first line of a run."""
        ...

    def initial_state(self) -> Any:
        """The state before the first step: a named tuple with `step` and `params`."""
        ...

    def fixed(self) -> Any:
        """Parameters that every step reads and none changes."""
        ...

    def step(self, shape: Shape) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
        """(state, fixed, batch) -> (next state, losses), for batches of this shape, on one device of several."""
        ...

    def errors(self) -> Callable[[Any, Any, Any], Any]:
        """(parameters, fixed, batch) -> error of every row, pair and view, each stack (L, B, 2)."""
        ...

    def frozen_at(self, state: Any) -> Mapping[str, np.ndarray]:
        """Of a replicated state, the step in which each row was frozen, NOT_FROZEN for one that trains."""
        ...

    def finish(self, sources: Sources, checkpoints: Checkpoints, state: Any) -> None:
        """Writes what the run is for; `state` is the last, as NumPy arrays."""
        ...


def by_name(job: Job, stacks: Mapping[str, Any], row: Callable[[Any, int], Any]) -> dict[str, Any]:
    """`row(stack, index)` of every row, in the order of logs."""
    found = {name: row(stacks[stack], index) for stack, names in job.rows.items() for index, name in enumerate(names)}
    return {name: found[name] for name in job.order}
