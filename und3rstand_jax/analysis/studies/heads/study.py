"""What every attention head looks at in the blocks where views meet: the true place, its own place, or a sink.

    pairs ─▶ attention weights of all blocks ─▶ of each head: matches, mass, entropy, distance, sink ─▶ means over pairs, a label

Per-head match scores are those of arXiv 2512.11508 for DUSt3R and VGGT; correspondence heads and sinks are the terms of "Understanding
Multi-View Transformers" (arXiv 2510.24907).
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from und3rstand_jax.analysis.descriptor_places import descriptor_head
from und3rstand_jax.analysis.steps import Kinds, block_words, blocks_words, kinds_of, stacks_of, words_of
from und3rstand_jax.analysis.studies.heads import by_descriptors
from und3rstand_jax.analysis.studies.heads.figure import heads_figure
from und3rstand_jax.analysis.studies.heads.measures import SINK_TOKEN, bytes_a_pair, head_count, heads_at_once, measure_heads, passes_a_pair
from und3rstand_jax.analysis.studies.study import Cost, Mean, Record, Setting, Study, Table, mean_in, mean_of, share_text
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.model.config import ModelConfig

CORRESPONDENCE, POSITION, SINK, OTHER = "correspondence", "position", "sink", "other"

LEAST_EXCESS, LEAST_SINK, LEAST_OWN = 0.15, 0.15, 0.5

THRESHOLDS = {
    CORRESPONDENCE: f"its attention on the true place exceeds that on another scene's by {LEAST_EXCESS} or more ({{across}})",
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
"""Numbers of cross-attention only."""

OF_QUERIES = {
    "entropy": "entropy of a query's attention over that of even attention: 1 is even, 0 all on one key",
    "distance": "mean distance in tokens from a query's own position to where its attention lies",
    "own": "share of attention within one token of the query's own position",
    "sink": "share of attention on the key that gets most of it in the pair",
}
"""Numbers of all attention; with _seen or _unseen, of queries that the other view sees, or of those hidden from it or outside its image."""

OF_DESTINATIONS = {
    "to_own": "share of attention that goes to patches of the query's own view",
    "to_other": "share of attention that goes to patches of the other view",
    "to_special": "share of attention that goes to special tokens, of both views where both are read",
    "sink_special": "share of pairs in which the key that gets most of the attention is a special token",
}
"""Numbers of attention that reads more than one view's patches."""

KEYS = (
    "queries are patches; where an attention reads special tokens, or both views, its keys are all of these: entropy and sink are over all "
    "keys, distance is that of the attention that goes to patches, own is of both views laid over one another, mass is the share of all "
    "attention, and match and near are of the strongest of the other view's patches"
)
"""A fact about models whose attention reads more than one view's patches."""


def meaning_of(config: ModelConfig) -> dict[str, str]:
    """What every name in a record means."""
    kinds, stacks = kinds_of(config), stacks_of(config)
    return {
        "attention": f"{kinds.across} or {kinds.own} of a {block_words(config)}",
        "block": f"of the {stacks[0]}" if len(stacks) == 1 else f"number of the {block_words(config)}",
        "view": "the view whose tokens are the queries, 1 or 2",
        "head": "of the block",
        "label": "; ".join(f"{label}: {text}" for label, text in _thresholds(kinds).items()),
        **OF_MATCHES,
        **by_descriptors.MEANING,
        **OF_QUERIES,
        **{f"{name}_seen": f"{text}; of queries that the other view sees" for name, text in OF_QUERIES.items()},
        **{f"{name}_unseen": f"{text}; of queries that it does not see" for name, text in OF_QUERIES.items()},
        **(OF_DESTINATIONS if _reads_more(config) else {}),
    }


def _thresholds(kinds: Kinds) -> dict[str, str]:
    return {label: text.format(across=words_of(kinds.across)) for label, text in THRESHOLDS.items()}


def _reads_more(config: ModelConfig) -> bool:
    """Whether attention reads more than the patches of one view."""
    block = config.blocks[0]
    return config.reads(block.across) == "all" or bool(config.special_tokens(block.across))


def cost(setting: Setting) -> Cost:
    """One pass per pair, with the weights of both attentions of all blocks, and two more if the model makes descriptors.

    If the weights of all blocks do not fit into memory together, each group of blocks takes its own pass.
    """
    passes = passes_a_pair(setting) + (0 if descriptor_head(setting.backbone.config) is None else 2)
    return Cost(
        passes * setting.count,
        heads_at_once(setting) * bytes_a_pair(setting),
        8 * setting.count * 2 * head_count(setting.backbone.config) * 30,
    )


def heads(setting: Setting) -> Study:
    """The study of heads."""
    config, kinds = setting.backbone.config, kinds_of(setting.backbone.config)
    by_pair = measure_heads(setting) | by_descriptors.measure_agreement(setting, bytes_a_pair(setting))
    records = [
        head_record(by_pair, attention, view, block, head)
        for attention in kinds.attentions
        for view in (1, 2)
        for block, head in np.ndindex(*by_pair[f"{attention}/sink"].shape[2:])
    ]
    return Study(
        "heads",
        f"What every attention head of {blocks_words(config)} looks at",
        meaning_of(config),
        records,
        _tables(records, config),
        {"": heads_figure(records, config)},
        [*_findings(records, config), *by_descriptors.findings(records, by_pair, kinds.across)],
        {"thresholds": _thresholds(kinds)}
        | ({"keys": KEYS} if _reads_more(config) else {})
        | {"even": {name: mean_of(values)._asdict() for name, values in _even(setting).items()}},
        by_pair,
    )


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


def _even(setting: Setting) -> dict[str, list[float]]:
    """What even attention would put on the true places, pair by pair."""
    shares = [[place.uniform_share for place in both_true_places(truth, setting.grids)] for truth in setting.pairs.truths]
    return {f"view{view + 1}": [share[view] for share in shares] for view in (0, 1)}


def _tables(records: Sequence[Record], config: ModelConfig) -> list[Table]:
    kinds, tables = kinds_of(config), []
    whose = "view {}'s decoder" if config.reads(config.blocks[0].across) == "others" else "view {}'s patches"
    attention = words_of(kinds.across).capitalize()
    for view in (1, 2):
        rows = []
        own = [record for record in records if record["attention"] == kinds.across and record["view"] == view]
        for block in sorted({cast(int, record["block"]) for record in own}):
            of_block = [record for record in own if record["block"] == block]
            rows.append(
                (
                    str(block),
                    *(f"{share_text(mean_in(record, 'mass'))} / {share_text(mean_in(record, 'mass_other'))}" for record in of_block),
                )
            )
        heads = tuple(f"head {head}" for head in range(len(rows[0]) - 1))
        title = f"{attention} of {whose.format(view)} on the true place / on that of another scene"
        tables.append(Table(title, ("block", *heads), tuple(rows)))
    counted = []
    for attention in kinds.attentions:
        for view in (1, 2):
            labels = [record["label"] for record in records if record["attention"] == attention and record["view"] == view]
            counted.append((attention, str(view), *(str(labels.count(label)) for label in THRESHOLDS)))
    return [*tables, Table("Heads by label", ("attention", "view", *THRESHOLDS), tuple(counted))]


def _findings(records: Sequence[Record], config: ModelConfig) -> list[str]:
    kinds, found = kinds_of(config), []
    for view in (1, 2):
        own = [record for record in records if record["attention"] == kinds.across and record["view"] == view]
        best = max(own, key=lambda record: mean_in(record, "near").mean)
        count = sum(record["label"] == CORRESPONDENCE for record in own)
        found.append(
            f"View {view}: {count} of {len(own)} {words_of(kinds.across)} heads put at least {LEAST_EXCESS} more of their attention on the "
            f"true place than on another scene's. In the head that finds it most often (block {best['block']}, head {best['head']}; chosen "
            f"on these pairs) the strongest key lies within one token of the true place for {share_text(mean_in(best, 'near'))} of the "
            f"queries that the other view sees, and for {share_text(mean_in(best, 'near_other'))} with another scene's places."
        )
    sinks = sum(mean_in(record, "sink").mean >= LEAST_SINK for record in records)
    strongest = max(records, key=lambda record: mean_in(record, "sink").mean)
    found.append(
        f"In {sinks} of {len(records)} heads one key gets {LEAST_SINK:.0%} or more of the attention, in the mean over pairs; the strongest "
        f"sink (block {strongest['block']}, {strongest['attention']}, view {strongest['view']}, head {strongest['head']}) gets "
        f"{share_text(mean_in(strongest, 'sink'))}."
    )
    return found + _where_attention_goes(records, kinds)


def _where_attention_goes(records: Sequence[Record], kinds: Kinds) -> list[str]:
    """For models that read both views or special tokens: how much goes where, and how many sinks are special tokens."""
    found = []
    own = [record for record in records if record["attention"] == kinds.across]
    if "to_other" in own[0]:
        means = {name: np.mean([mean_in(record, name).mean for record in own]) for name in OF_DESTINATIONS if name in own[0]}
        most = max(own, key=lambda record: mean_in(record, "to_other").mean)
        special = f", {means['to_special']:.0%} to special tokens" if "to_special" in means else ""
        found.append(
            f"Of {words_of(kinds.across)}, mean over heads, {means['to_own']:.0%} goes to the view's own patches, {means['to_other']:.0%} "
            f"to the other view's{special}; the head that looks most into the other view (block {most['block']}, view {most['view']}, head "
            f"{most['head']}) puts {share_text(mean_in(most, 'to_other'))} there."
        )
    sinks = [record for record in records if "sink_special" in record and mean_in(record, "sink").mean >= LEAST_SINK]
    if sinks:
        count = sum(mean_in(record, "sink_special").mean > 0.5 for record in sinks)
        found.append(f"In {count} of the {len(sinks)} heads with such a key it is a special token in most pairs.")
    return found
