"""The studies by their name on the command line and in files, and what each needs."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from und3rstand_jax.analysis.studies.epipolar import study as epipolar
from und3rstand_jax.analysis.studies.heads import study as heads
from und3rstand_jax.analysis.studies.inputs import study as inputs
from und3rstand_jax.analysis.studies.knock_out import study as knock_out
from und3rstand_jax.analysis.studies.layers import study as layers
from und3rstand_jax.analysis.studies.lens import study as lens
from und3rstand_jax.analysis.studies.patching import study as patching
from und3rstand_jax.analysis.studies.similarity import study as similarity
from und3rstand_jax.analysis.studies.study import Cost, Setting, Study

Need: TypeAlias = Literal["head", "probes", "twins", "control", "epipolar"]
"""The model's own head; probes on its layers; pairs that share view 1; probes on random weights; probes for the fundamental matrix."""


class Entry(NamedTuple):
    """A study.

    Attributes:
        run: the study.
        cost: an estimate of what the study will take.
        needs: what it cannot do without.
        wants: what it can do without, and is better with.
        pairs_only: why it takes only pairs; "" if it takes sets of more views too.
    """

    run: Callable[[Setting], Study]
    cost: Callable[[Setting], Cost]
    needs: frozenset[Need] = frozenset()
    wants: frozenset[Need] = frozenset()
    pairs_only: str = ""


_HEAD: frozenset[Need] = frozenset({"head"})

STUDIES: Mapping[str, Entry] = {
    "layers": Entry(layers.layers, layers.cost, frozenset({"probes"}), frozenset({"control"})),
    "heads": Entry(heads.heads, heads.cost, pairs_only="it asks where in the other view a head looks"),
    "knock-out": Entry(
        knock_out.knock_out,
        knock_out.cost,
        _HEAD,
        pairs_only="it ranks heads by where in the other view they look, and asks what view 2 loses without them",
    ),
    "patching": Entry(
        patching.patching,
        patching.cost,
        _HEAD | {"twins"},
        pairs_only="it asks which stream carries view 2's place, with pairs that differ only in view 2",
    ),
    "lens": Entry(lens.lens, lens.cost, _HEAD, frozenset({"probes"})),
    "similarity": Entry(similarity.similarity, similarity.cost, pairs_only="it compares the tokens of two views that see the same place"),
    "epipolar": Entry(epipolar.epipolar, epipolar.cost, frozenset({"epipolar"}), pairs_only="a fundamental matrix relates two views"),
    "inputs": Entry(inputs.inputs, inputs.cost, _HEAD, pairs_only="it swaps, covers and repeats the views of a pair"),
}
"""In the order of the page that shows all."""
