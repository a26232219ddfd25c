"""An addition to the study of heads, for models that make descriptors: which heads look where the descriptors match.

pairs ─▶ descriptors ─▶ of each token, the pixel most similar to its middle one ─▶ how often a head's strongest key lies there
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from und3rstand_jax.analysis.descriptor_places import descriptor_head, places_by_descriptors
from und3rstand_jax.analysis.steps import kinds_of
from und3rstand_jax.analysis.studies.study import Record, Setting, mean_in, mean_of, over_pairs, pairs_at_once, share_text
from und3rstand_jax.analysis.true_place_attention import BothPlaces, TruePlaces, both_true_places, stacked_places, strongest_in
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.model.sites import WEIGHTS

NEAR = "near_descriptor"
MEANING = {
    NEAR: "where the model makes descriptors: share of queries whose strongest key is the token, or one of the eight around it, of the "
    "pixel most similar to the query's middle one; of queries where the way back ends less than half a token from there"
}

RIGHT = "right_by_descriptors"
"""For every pair and both views, the share of tokens that descriptors place within one token of the true place."""


def measure_agreement(setting: Setting, bytes_a_pair: int) -> dict[str, Float[np.ndarray, "S 2 ..."]]:
    """`cross_attn/near_descriptor` (S, 2, blocks, heads) and `RIGHT` (S, 2), pair by pair; empty without descriptors.

    Also empty if the attention between the views reads a view's own tokens too.

    Args:
        setting: the study's.
        bytes_a_pair: bytes of a pair's attention weights.
    """
    config, head = setting.backbone.config, descriptor_head(setting.backbone.config)
    if head is None or any(config.reads(block.across) != "others" for block in config.blocks):
        return {}
    names = tuple(f"{block.across}.{WEIGHTS}" for block in config.blocks)

    def compute(some: range) -> dict[str, np.ndarray]:
        pairs = setting.pairs.some(some)
        output = setting.backbone(*pairs.views, capture=(), head=head)
        placed = [places_by_descriptors(output, index, setting.grids) for index in range(len(some))]
        true = [both_true_places(truth, setting.grids) for truth in pairs.truths]
        near = _near(setting.backbone.module, names, setting.backbone.params, *pairs.views, stacked_places(placed))
        return {f"{kinds_of(config).across}/{NEAR}": np.asarray(near), RIGHT: np.array([*map(_share_right, placed, true)])}

    return over_pairs(setting, "heads and descriptors", compute, pairs_at_once(setting, bytes_a_pair))


def findings(records: Sequence[Record], by_pair: Mapping[str, np.ndarray], across: str) -> list[str]:
    """How often descriptors find the true place, and which head of the attention between the views (`across`) agrees most with them."""
    if RIGHT not in by_pair:
        return []
    found = []
    for view in (1, 2):
        of_view = [record for record in records if record["attention"] == across and record["view"] == view]
        own = [record for record in of_view if mean_in(record, NEAR).mean >= 0]
        if not own:
            found.append(f"View {view}: no token has a place by its descriptor.")
            continue
        best = max(own, key=lambda record: mean_in(record, NEAR).mean)
        right = share_text(mean_of(by_pair[RIGHT][:, view - 1]))
        found.append(
            f"View {view}: descriptors place {right} of the tokens that can be checked within one token of the true place. The head whose "
            f"strongest key agrees with them most often (block {best['block']}, head {best['head']}; chosen on these pairs) does so for "
            f"{share_text(mean_in(best, NEAR))} of the queries."
        )
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _near(
    module: MultiViewModel, names: tuple[str, ...], params: Any, view1: Array, view2: Array, placed: tuple
) -> Float[Array, "B 2 blocks heads"]:
    output = cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=names, head=False))

    def of_view(view: int) -> Float[Array, "B blocks heads"]:
        near, seen = placed[view].near, placed[view].seen
        return jnp.stack([strongest_in(jnp.asarray(output[name][view]), near, seen) for name in names], axis=1)

    return jnp.stack(tuple(map(of_view, (0, 1))), axis=1)


def _share_right(placed: BothPlaces, true: BothPlaces) -> list[float]:
    """The share of right places, among each view's tokens that have a place by their descriptors and a true one."""

    def of_view(found: TruePlaces, truth: TruePlaces) -> float:
        known = found.seen & truth.seen
        return float(truth.near[known, found.token[known]].mean()) if known.any() else np.nan

    return [*map(of_view, placed, true)]
