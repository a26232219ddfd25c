"""The studies by the name that the command line and the files have for them, and what each needs."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from und3rstand_jax.analysis.studies.heads import cost as heads_cost
from und3rstand_jax.analysis.studies.heads import heads
from und3rstand_jax.analysis.studies.layers import cost as layers_cost
from und3rstand_jax.analysis.studies.layers import layers
from und3rstand_jax.analysis.studies.study import Cost, Setting, Study

Need: TypeAlias = Literal["head", "probes", "twins", "control", "epipolar"]
"""The model's own head; probes on its layers; pairs that share view 1; probes on random weights; probes for the fundamental matrix."""


class Entry(NamedTuple):
    """A study.

    Attributes:
        run: the study.
        cost: what it will take.
        needs: what it cannot do without.
        wants: what it can do without, and is better with.
    """

    run: Callable[[Setting], Study]
    cost: Callable[[Setting], Cost]
    needs: frozenset[Need] = frozenset()
    wants: frozenset[Need] = frozenset()


STUDIES: Mapping[str, Entry] = {
    "layers": Entry(layers, layers_cost, frozenset({"probes"}), frozenset({"control"})),
    "heads": Entry(heads, heads_cost),
}
"""In the order of the page of all."""
