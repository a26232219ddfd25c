"""What heads are used for in the reports of `tests.page_cases`: numbers at random, and the last layer, bent, without the costliest."""

import functools

import numpy as np

from tests.page_cases import small_report
from und3rstand_jax.analysis.head_use import DISPLACEMENT, ERROR, Head, HeadUse, WithoutHead
from und3rstand_jax.analysis.view_set import Attention
from und3rstand_jax.geometry.cameras import ViewGeometry
from und3rstand_jax.report.page import page_text


def make_use(report, kept=3, seed=0):
    """Of a report with attention."""
    rng = np.random.default_rng(seed)
    shape = 2, len(report.attention), len(report.attention[0].weights[0])
    has_truth = report.truth is not None
    drawn = {attention: rng.normal(size=(*shape, 2)) for attention in ("cross_attn", "self_attn")}
    cost = {attention: values if has_truth else np.abs(values) for attention, values in drawn.items()}
    order = np.argsort(-np.stack(list(cost.values())).mean(axis=-1), axis=None)[:kept]
    heads = []
    for index in order:
        attention, view, block, head = np.unravel_index(index, (2, *shape))
        heads.append(Head(("cross_attn", "self_attn")[attention], int(view) + 1, int(block), int(head)))
    own = report.layers[-1]
    without = []
    for number, head in enumerate(heads, start=1):
        views = tuple(ViewGeometry(np.float32(view.points + 0.1 * number), view.confidence) for view in own.views)
        without.append(WithoutHead(head, views, np.diag([1.0, 1, 1, 1])))
    tokens = [rows * columns for rows, columns in report.grids]
    selves = [
        Attention.to_itself(block, [rng.dirichlet(np.full(count, 0.3), (shape[2], count)).astype(np.float32) for count in tokens])
        for block in range(shape[1])
    ]
    return HeadUse(
        measure=ERROR if has_truth else DISPLACEMENT,
        cost=cost,
        unedited=(0.5, 0.25) if has_truth else None,
        sink={attention: rng.random(shape) for attention in cost},
        mass=rng.random(shape) if has_truth else None,
        elsewhere=rng.random(shape) if has_truth else None,
        even=(0.1, 0.2) if has_truth else None,
        self_attention=tuple(selves),
        without=tuple(without),
    )


def make_lens(report):
    """Worse than the layers, by the layer."""
    return {layer.layer_id: (1.0, float("inf")) for layer in report.layers[:-1]}


@functools.cache
def small_use():
    return make_use(small_report())


@functools.cache
def small_page_of_uses():
    return page_text(small_report(), small_use(), make_lens(small_report()))
