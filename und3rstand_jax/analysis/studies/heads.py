"""What every attention head of the decoders looks at: the true place, its own place, or a sink.

    pairs ─▶ attention weights of all blocks ─▶ of each head: matches, mass, entropy, distance, sink ─▶ means over pairs, a label

Per-head match scores are those of arXiv 2512.11508 for DUSt3R and VGGT; correspondence heads and sinks are the terms of "Understanding
Multi-View Transformers" (arXiv 2510.24907).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from matplotlib.figure import Figure

from und3rstand_jax.analysis.descriptor_places import descriptor_head
from und3rstand_jax.analysis.studies import heads_by_descriptors
from und3rstand_jax.analysis.studies.study import (
    Cost,
    Mean,
    Record,
    Setting,
    Study,
    Table,
    mean_in,
    mean_of,
    other_pair,
    over_pairs,
    pairs_at_once,
    share_text,
)
from und3rstand_jax.analysis.true_place_attention import both_true_places, over_queries, stacked_places, strongest_in
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.output import BackboneOutput, Grid, Grids

CROSS, SELF = "cross_attn", "self_attn"

SINK_TOKEN = "sink_token"
"""Of every pair, which key gets most of a head's attention; there is no mean of that."""

CORRESPONDENCE, POSITION, SINK, OTHER = "correspondence", "position", "sink", "other"

LEAST_EXCESS, LEAST_SINK, LEAST_OWN = 0.15, 0.15, 0.5

THRESHOLDS = {
    CORRESPONDENCE: f"its attention on the true place exceeds that on another scene's by {LEAST_EXCESS} or more (cross-attention)",
    SINK: f"the key that gets most of its attention gets {LEAST_SINK} or more, in the mean over pairs; which key may differ by pair",
    POSITION: f"{LEAST_OWN} or more of its attention lies within one token of the query's own position",
    OTHER: "none of these",
}
"""What a head's label means; the first that applies is given."""

OF_MATCHES = {
    "match": "share of queries seen in the other view whose strongest key is the token of the true place",
    "near": "the same, or one of the eight tokens around it",
    "near_other": "control: the same with the true places of another pair",
    "mass": "share of such queries' attention on the true place and the tokens around it",
    "mass_other": "control: the same with the true places of another pair",
}
"""Of cross-attention alone."""

OF_QUERIES = {
    "entropy": "entropy of a query's attention over that of even attention: 1 is even, 0 all on one key",
    "distance": "mean distance in tokens from a query's own position to where its attention lies",
    "own": "share of attention within one token of the query's own position",
    "sink": "share of attention on the key that gets most of it in the pair",
}
"""Of all attention; with _seen or _unseen, of queries that the other view sees, and of those hidden from it or outside of its image."""

MEANING = {
    "attention": "cross_attn or self_attn of a decoder block",
    "block": "of the decoder",
    "view": "the view whose tokens are the queries, 1 or 2",
    "head": "of the block",
    "label": "; ".join(f"{label}: {text}" for label, text in THRESHOLDS.items()),
    **OF_MATCHES,
    **heads_by_descriptors.MEANING,
    **OF_QUERIES,
    **{f"{name}_seen": f"{text}; of queries that the other view sees" for name, text in OF_QUERIES.items()},
    **{f"{name}_unseen": f"{text}; of queries that it does not see" for name, text in OF_QUERIES.items()},
}


def cost(setting: Setting) -> Cost:
    """One pass a pair, with the attention weights of both attentions of all blocks, and two more where the model makes descriptors."""
    passes = 1 if descriptor_head(setting.backbone.config) is None else 3
    return Cost(
        passes * setting.count, _at_once(setting) * _bytes_a_pair(setting), 8 * setting.count * 2 * _heads(setting.backbone.config) * 30
    )


def heads(setting: Setting) -> Study:
    """The study of heads."""
    by_pair = measure_heads(setting) | heads_by_descriptors.measure_agreement(setting, _bytes_a_pair(setting))
    records = [
        head_record(by_pair, attention, view, block, head)
        for attention in (CROSS, SELF)
        for view in (1, 2)
        for block, head in np.ndindex(*by_pair[f"{attention}/sink"].shape[2:])
    ]
    return Study(
        "heads",
        "What every attention head of the decoders looks at",
        MEANING,
        records,
        _tables(records),
        {"": _figure(records, setting.backbone.config)},
        [*_findings(records), *heads_by_descriptors.findings(records, by_pair)],
        {"thresholds": THRESHOLDS, "even": {name: mean_of(values)._asdict() for name, values in _even(setting).items()}},
        by_pair,
    )


def measure_heads(setting: Setting) -> dict[str, Float[np.ndarray, "S 2 blocks heads"]]:
    """Everything of every head, pair by pair: ATTENTION/NAME, such as cross_attn/mass; axis 1 is the view whose tokens ask."""
    truths, grids = setting.pairs.truths, setting.grids
    names = tuple(
        f"decoder.{block}.{attention}.weights" for block in range(setting.backbone.config.dec_depth) for attention in (SELF, CROSS)
    )

    def compute(some: range) -> dict[str, np.ndarray]:
        places = [both_true_places(truths[number], grids) for number in some]
        others = [both_true_places(truths[other_pair(number, len(truths))], grids) for number in some]
        views = (view[some.start : some.stop] for view in setting.pairs.views)
        stats = _head_statistics(
            setting.backbone.module, names, grids, setting.backbone.params, *views, *map(stacked_places, (places, others))
        )
        return {name: np.asarray(values) for name, values in jax.device_get(stats).items()}

    return over_pairs(setting, "attention of heads", compute, _at_once(setting))


def head_record(by_pair: Mapping[str, np.ndarray], attention: str, view: int, block: int, head: int) -> Record:
    """One head's means over pairs, and its label."""
    found: dict[str, Mean] = {
        key.partition("/")[2]: mean_of(values[:, view - 1, block, head])
        for key, values in by_pair.items()
        if key.startswith(f"{attention}/") and not key.endswith(f"/{SINK_TOKEN}")
    }
    label = label_of({name: mean.mean for name, mean in found.items()})
    return {"attention": attention, "block": block, "view": view, "head": head, "label": label, **found}


def label_of(means: Mapping[str, float]) -> str:
    """The first label of `THRESHOLDS` that applies to a head with these means."""
    if means.get("mass", 0.0) - means.get("mass_other", 0.0) >= LEAST_EXCESS:
        return CORRESPONDENCE
    if means["sink"] >= LEAST_SINK:
        return SINK
    return POSITION if means["own"] >= LEAST_OWN else OTHER


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _head_statistics(
    module: DUSt3R, names: tuple[str, ...], grids: Grids, params: Any, view1: Array, view2: Array, places: tuple, others: tuple
) -> dict[str, Float[Array, "B 2 blocks heads"]]:
    output = cast(BackboneOutput, module.apply({"params": params}, view1, view2, capture=names, head=False))
    found: dict[str, list[list[Array]]] = {}
    for name in names:
        attention = name.split(".")[2]
        for view, weights in enumerate(output[name]):
            asked = 1 - view if attention == CROSS else view
            stats = attention_statistics(jnp.asarray(weights), grids[view], grids[asked], jnp.asarray(places[view].seen))
            if attention == CROSS:
                stats |= match_statistics(jnp.asarray(weights), places[view], others[view])
            for key, values in stats.items():
                found.setdefault(f"{attention}/{key}", [[], []])[view].append(values)
    return {key: jnp.stack([jnp.stack(blocks, axis=1) for blocks in views], axis=1) for key, views in found.items()}


def match_statistics(weights: Float[Array, "B H N M"], places: Any, others: Any) -> dict[str, Float[Array, "B H"]]:
    """How attention and its strongest key lie to the true places (`TruePlaces`, stacked), and to those of others as a control."""
    strongest = jnp.argmax(weights, axis=-1)

    def mass(near: Bool[Array, "B N M"], seen: Bool[Array, "B N"]) -> Float[Array, "B H"]:
        return over_queries(jnp.sum(jnp.where(near[:, None], weights, 0.0), axis=-1), seen)

    return {
        "match": over_queries((strongest == places.token[:, None]).astype(jnp.float32), places.seen),
        "near": strongest_in(weights, places.near, places.seen),
        "near_other": strongest_in(weights, others.near, others.seen),
        "mass": mass(places.near, places.seen),
        "mass_other": mass(others.near, others.seen),
    }


def attention_statistics(
    weights: Float[Array, "B H N M"], here: Grid, there: Grid, seen: Bool[Array, "B N"]
) -> dict[str, Float[Array, "B H"]]:
    """What `OF_QUERIES` names, of all queries, of those that are seen and of those that are not."""
    between = jnp.asarray(_distances(here, there))
    entropy = -jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-30)), axis=-1) / np.log(max(weights.shape[-1], 2))
    taken = jnp.mean(weights, axis=2)  # of each key, (B, H, M)
    strongest = jnp.argmax(taken, axis=-1)
    of_queries = {
        "entropy": entropy,
        "distance": jnp.einsum("bhnm,nm->bhn", weights, between, precision=jax.lax.Precision.HIGHEST),
        "own": jnp.sum(jnp.where(between < 1.5, weights, 0.0), axis=-1),
        "sink": jnp.take_along_axis(weights, strongest[:, :, None, None], axis=-1)[..., 0],
    }
    everywhere = jnp.ones_like(seen)
    found = {SINK_TOKEN: strongest.astype(jnp.float32)}
    for suffix, mask in (("", everywhere), ("_seen", seen), ("_unseen", ~seen)):
        found |= {f"{name}{suffix}": over_queries(values, mask) for name, values in of_queries.items()}
    return found


def _distances(here: Grid, there: Grid) -> Float[np.ndarray, "N M"]:
    """From each token's place to each of the other grid's, in the other grid's tokens, with the two images laid over one another."""

    def places(grid: Grid) -> Int[np.ndarray, "N 2"]:
        return np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)

    scale = np.array(there) / np.array(here)
    own = (places(here) + 0.5) * scale - 0.5
    return np.linalg.norm(own[:, None] - places(there)[None], axis=-1).astype(np.float32)


def _even(setting: Setting) -> dict[str, list[float]]:
    """What even attention would put on the true places, pair by pair."""
    shares = [[place.uniform_share for place in both_true_places(truth, setting.grids)] for truth in setting.pairs.truths]
    return {f"view{view + 1}": [share[view] for share in shares] for view in (0, 1)}


def _heads(config: BackboneConfig) -> int:
    return config.dec_depth * config.dec_num_heads


def _bytes_a_pair(setting: Setting) -> int:
    one, two = (rows * columns for rows, columns in setting.grids)
    return 4 * _heads(setting.backbone.config) * (one * one + two * two + 2 * one * two)


def _at_once(setting: Setting) -> int:
    return pairs_at_once(setting, _bytes_a_pair(setting))


def _tables(records: Sequence[Record]) -> list[Table]:
    tables = []
    for view in (1, 2):
        rows = []
        own = [record for record in records if record["attention"] == CROSS and record["view"] == view]
        for block in sorted({cast(int, record["block"]) for record in own}):
            of_block = [record for record in own if record["block"] == block]
            rows.append(
                (
                    str(block),
                    *(f"{share_text(mean_in(record, 'mass'))} / {share_text(mean_in(record, 'mass_other'))}" for record in of_block),
                )
            )
        heads = tuple(f"head {head}" for head in range(len(rows[0]) - 1))
        title = f"Cross-attention of view {view}'s decoder on the true place / on that of another scene"
        tables.append(Table(title, ("block", *heads), tuple(rows)))
    counted = []
    for attention in (CROSS, SELF):
        for view in (1, 2):
            labels = [record["label"] for record in records if record["attention"] == attention and record["view"] == view]
            counted.append((attention, str(view), *(str(labels.count(label)) for label in THRESHOLDS)))
    return [*tables, Table("Heads by label", ("attention", "view", *THRESHOLDS), tuple(counted))]


def _findings(records: Sequence[Record]) -> list[str]:
    found = []
    for view in (1, 2):
        own = [record for record in records if record["attention"] == CROSS and record["view"] == view]
        best = max(own, key=lambda record: mean_in(record, "near").mean)
        count = sum(record["label"] == CORRESPONDENCE for record in own)
        found.append(
            f"View {view}: {count} of {len(own)} cross-attention heads put at least {LEAST_EXCESS} more of their attention on the true "
            f"place than on another scene's. In the head that finds it most often (block {best['block']}, head {best['head']}; chosen on "
            f"these pairs) the strongest key lies within one token of the true place for {share_text(mean_in(best, 'near'))} of the "
            f"queries that the other view sees, and for {share_text(mean_in(best, 'near_other'))} with another scene's places."
        )
    sinks = sum(mean_in(record, "sink").mean >= LEAST_SINK for record in records)
    strongest = max(records, key=lambda record: mean_in(record, "sink").mean)
    found.append(
        f"In {sinks} of {len(records)} heads one key gets {LEAST_SINK:.0%} or more of the attention, in the mean over pairs; the strongest "
        f"sink (block {strongest['block']}, {strongest['attention']}, view {strongest['view']}, head {strongest['head']}) gets "
        f"{share_text(mean_in(strongest, 'sink'))}."
    )
    return found


def _figure(records: Sequence[Record], config: BackboneConfig) -> Figure:
    """Squares for heads: columns are attentions of a view, rows what was measured."""
    attentions = [(CROSS, 1), (CROSS, 2), (SELF, 1), (SELF, 2)]
    titles = {
        "near": "strongest key within a\ntoken of the true place",
        "excess": "attention on the true place\nless another scene's",
        "own": "attention within a token\nof the query's own place",
        "sink": "attention on\nits strongest key",
        "entropy": "entropy\n(1: even)",
    }

    def value(record: Record, name: str) -> float:
        if name == "excess":
            return mean_in(record, "mass").mean - mean_in(record, "mass_other").mean
        return mean_in(record, name).mean

    blocks, count = config.dec_depth, config.dec_num_heads
    size = (len(attentions) * (0.3 * count + 0.6) + 3.0, len(titles) * (0.19 * blocks + 0.3) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(titles), len(attentions), squeeze=False, sharex=True, sharey=True)
    for row, (name, title) in zip(axes, titles.items(), strict=True):
        values = np.array([value(record, name) for record in records]).reshape(len(attentions), blocks, count)
        for place, of_attention in zip(row, values, strict=True):
            if np.isnan(of_attention).all():
                place.set_axis_off()
                continue
            shown = place.imshow(of_attention, vmin=0.0, vmax=np.nanmax(values), cmap="viridis", aspect="auto")
            place.set(xticks=range(count), yticks=range(blocks))
        row[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
        figure.colorbar(shown, ax=list(row), aspect=8)
    for column, (attention, view) in enumerate(attentions):
        first = 0 if attention == CROSS else list(titles).index("own")  # nothing is drawn above it
        axes[first][column].set_title(f"{attention.replace('_attn', '-attention')}\nview {view}", fontsize=9)
    figure.supxlabel("head; rows are decoder blocks", fontsize=9)
    return figure
