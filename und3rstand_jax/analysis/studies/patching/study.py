"""What carries view 2 through the decoder: values of one pair put into another that shares its view 1.

    pair A, pair B (same view 1) ─▶ one pass each ─▶ B's values at one site, put into A's pass ─▶ how near the output is to B's own

This is activation patching (Vig et al. 2020, "Causal mediation analysis"; Meng et al. 2022, "Locating and editing factual associations")
on a model of two views whose streams read each other in every block. View 1's image is the same in both pairs. So view 2's stream from
B, put in before the first block, gives B's output by construction. Put in later, it misses what view 1's stream has already read from
A's view 2 and gives back in later blocks; view 1's curve shows the same from the other side. So the curves show which stream carries
view 2's place, not at which layer it is worked out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.steps import block_words, kind_of, kinds_of, stacks_of, words_of
from und3rstand_jax.analysis.studies.patching.figure import patching_figure, share_in
from und3rstand_jax.analysis.studies.patching.runs import Patch, Runs, first_block, patches_of, same_patch
from und3rstand_jax.analysis.studies.study import (
    Cell,
    Cost,
    Mean,
    Record,
    Setting,
    Study,
    Table,
    holds_from,
    mean_of,
    over_pairs,
    pairs_at_once,
    plus_minus,
    share_text,
)
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import head_layers, reads_several_layers
from und3rstand_jax.support.errors import CheckpointError, OptionError

HALF = 0.5
"""Above this share, an output counts as B's rather than A's."""

SHARES = {
    "points2": "view 2's points: 1 − d(out, B) / d(A, B), d the mean distance of two runs' points of the same pixels",
    "points1": "view 1's points, in the same way",
    "rotation": "view 2's rotation: 1 − angle(out, B) / angle(A, B), of the poses that PnP finds in the runs' points of view 2",
    "direction": "the direction of view 2's translation, in the same way",
}
"""Towards B: 0 for A's own output, 1 for B's own; negative where the output is farther from B's than A's is."""

ERRORS = {
    "error_a": "normalised point error of view 2 against A's truth",
    "error_b": "normalised point error of view 2 against B's truth",
    "rotation_a": "degrees from the output's rotation of view 2 to A's true one; 180 where no pose was found",
    "rotation_b": "degrees from the output's rotation of view 2 to B's true one; 180 where no pose was found",
    "direction_a": "degrees from the output's direction of view 2's translation to A's true one; 180 where no pose was found",
    "direction_b": "degrees from the output's direction of view 2's translation to B's true one; 180 where no pose was found",
}

_MEANING = {
    "source": "whose values are put into A's pass: twin: B's, which shares view 1; unrelated: the next scene's B; itself: A's own",
    "view": "whose stream is patched, 1 or 2",
    "kind": "layer: the stream after a step; update: what the step adds to it; head: its mix of values before the output projection",
    "site": "where",
    "block": "of the decoder; none for decoder.embed, the stream before the first",
    "step": "of the block",
    "head": "of the attention; none for layers and updates",
    **{f"share_{name}": f"share towards B of {text}; a ratio of sums over pairs" for name, text in SHARES.items()},
    "moved": "d(out, A) / d(A, B) of view 2's points: how far the output has moved at all; a ratio of sums over pairs",
    **ERRORS,
}


def meaning_of(config: ModelConfig) -> dict[str, str]:
    """What every name in a record means."""
    stacks = stacks_of(config)
    of = f"of the {stacks[0]}" if len(stacks) == 1 else f"number of the {block_words(config)}"
    return _MEANING | {"block": f"{of}; none for {config.embed}, the stream before the first"}


def cost(setting: Setting) -> Cost:
    """A pass begins at its patch's block, or a few before. Both views' values at all sites are in memory, for some pairs at a time."""
    config = setting.backbone.config
    patches = {same_patch(patch, config) for patch in patches_of(config)}
    depth = len(config.blocks)
    decoders = sum(depth - first_block(patch, config) for patch in patches) / depth
    return Cost(int(setting.count * (4 + decoders)), _at_once(setting) * _bytes_a_pair(setting), 8 * setting.count * len(patches) * 13)


def patching(setting: Setting) -> Study:
    """The study of patches between pairs that share view 1.

    Raises:
        CheckpointError: the backbone has no head to measure by.
        OptionError: the pairs have no twins, or there is only one pair.
    """
    config, patches = setting.backbone.config, patches_of(setting.backbone.config)
    by_pair = measure_patches(setting, patches)
    records = [patch_record(by_pair, patch, number, config) for number, patch in enumerate(patches)]
    return Study(
        "patching",
        "What carries view 2: values of pair B put into pair A, which has the same view 1",
        meaning_of(config),
        records,
        _tables(records, kinds_of(config).steps[-1]),
        {"": patching_figure(records, config)},
        _findings(records, by_pair, words_of(kinds_of(config).across)),
        {
            "unit": "all runs' points are divided by one number a pair, the mean distance of view 1's points to camera 1 in A's own run",
            "pixels": "runs are compared where A and B have a true point; errors are over the pixels of the truth that they are against",
            "alignment": setting.alignment,
            "controls": f"the values of another scene's B: streams between blocks and updates of {words_of(kinds_of(config).across)}, no "
            "single heads; and A's own, which change nothing but rounding",
            "mlp": f"a stream patched after the MLP is measured as after the {_before_mlp(config)} before it: the MLP reads nothing else",
            "half": f"a share above {HALF} counts as B's",
            "head": _fact_of_head(config),
            "poses": "PnP on about 512 of the more confident half of view 2's sampled points, fewer than in the other studies",
            "strongest": "the updates and heads that bring most are chosen on the pairs on which they are measured",
            "runs": {
                f"{name} of {run}'s own run": mean_of(by_pair[f"{name}_of_{run.lower()}"])._asdict() for name in ERRORS for run in "AB"
            },
            "between the runs": {name: mean_of(by_pair[f"to_b/{name}_of_a"])._asdict() for name in SHARES},
        },
        by_pair,
    )


def measure_patches(setting: Setting, patches: Sequence[Patch]) -> dict[str, Float[np.ndarray, "S ..."]]:
    """For every pair and patch, to_a/NAME and to_b/NAME: distances to A's and B's own output, in one unit or in degrees; and `ERRORS`.

    (S, patches) each, and NAME_of_a and NAME_of_b for the unpatched runs, (S,).

    Raises:
        CheckpointError, OptionError: as from `patching`.
    """
    if not setting.backbone.config.heads:
        raise CheckpointError("patching measures the model's own pointmaps, and this backbone has no head; give a checkpoint with one")
    if setting.twins is None:
        raise OptionError("patching needs pairs that share view 1, which only rendered scenes have; give only --data synthetic")
    if setting.count < 2:
        raise OptionError(f"patching takes another pair's values as its control; expected two pairs or more, found {setting.count}")
    return over_pairs(setting, "patches", lambda some: Runs(setting, patches, some).measured(), _at_once(setting))


def _before_mlp(config: ModelConfig) -> str:
    kinds = kinds_of(config)
    return words_of(kinds.across) if len(stacks_of(config)) == 1 else "attention"


def _fact_of_head(config: ModelConfig) -> str:
    if config.last_norm is not None:
        return "a DPT head also reads encoder.norm and two of the decoder's streams; those before the patch stay A's"
    return f"it reads {', '.join(head_layers(config))}; those before the patch stay A's"


def patch_record(by_pair: Mapping[str, np.ndarray], patch: Patch, number: int, config: ModelConfig) -> Record:
    """One patch's shares and errors; `number` is its column."""

    def of_patch(name: str) -> Float[np.ndarray, " S"]:
        return by_pair[name][:, number]

    known = patch.layer != config.embed
    place: dict[str, Cell] = {
        "source": patch.source,
        "view": patch.view,
        "kind": patch.kind,
        "site": patch.site,
        "block": patch.block(config) if known else None,
        "step": kind_of(patch.layer, config) if known else None,
        "head": patch.head,
    }
    shares = {f"share_{name}": share_towards(of_patch(f"to_b/{name}"), by_pair[f"to_b/{name}_of_a"]) for name in SHARES}
    away = share_towards(of_patch("to_a/points2"), by_pair["to_b/points2_of_a"])
    return place | shares | {"moved": Mean(1 - away.mean, away.error)} | {name: mean_of(of_patch(name)) for name in ERRORS}


def share_towards(distance: Float[np.ndarray, " S"], apart: Float[np.ndarray, " S"]) -> Mean:
    """1 − Σ distance / Σ apart over the pairs in which both are known, with the standard error of a ratio (Cochran 1977, section 2.11).

    A ratio of sums, not a mean of ratios: where A and B are nearly alike, a pair's own ratio means little and can be very large.
    """
    known = ~(np.isnan(distance) | np.isnan(apart))
    above, below = distance[known].astype(np.float64), apart[known].astype(np.float64)
    if not below.size or not below.sum() > 0:
        return Mean(math.nan, math.nan)
    ratio = above.sum() / below.sum()
    with np.errstate(invalid="ignore"):
        spread = (above - ratio * below).std(ddof=1) if below.size > 1 else math.nan
    return Mean(float(1 - ratio), float(spread / (below.mean() * math.sqrt(below.size))))


def _bytes_a_pair(setting: Setting) -> int:
    """Bytes of both views' values at all sites, three times: A's, B's, and what a program makes of them; plus the head's."""
    config = setting.backbone.config
    tokens = sum(config.token_count(config.embed, grid) for grid in setting.grids)
    pixels = sum(view.shape[1] * view.shape[2] for view in setting.pairs.views)
    sites = len({patch.site for patch in patches_of(config)})
    return 4 * (3 * sites * tokens * config.block_width + (512 if reads_several_layers(config) else 40) * pixels)


def _at_once(setting: Setting) -> int:
    return pairs_at_once(setting, _bytes_a_pair(setting), _AT_ONCE)


_AT_ONCE = 2**30  # bytes of values


def chosen(records: Sequence[Record], kind: str, view: int = 2, source: str = "twin") -> list[Record]:
    """The records of one curve, in network order."""
    return [record for record in records if (record["kind"], record["view"], record["source"]) == (kind, view, source)]


def _tables(records: Sequence[Record], last_step: str) -> list[Table]:
    columns = ("view 2's points", "its rotation", "its direction", "view 1's points")
    names = ("points2", "rotation", "direction", "points1")
    tables = []
    for view in (2, 1):
        rows = tuple(
            (str(record["site"]), *(plus_minus(share_in(record, name), 2) for name in names)) for record in chosen(records, "layer", view)
        )
        tables.append(Table(f"Share towards B with view {view}'s stream from B", ("after", *columns), rows))
    parts = [*chosen(records, "update"), *chosen(records, "head")]
    strongest = sorted(parts, key=lambda record: -share_in(record).mean)[:8]
    rows = tuple((name_of(record), *(plus_minus(share_in(record, name), 2) for name in names)) for record in strongest)
    tables.append(Table("The updates and heads of view 2 that bring most", ("from B", *columns), rows))
    errors = [*chosen(records, "layer"), *chosen(records, "layer", source="unrelated")]
    between = [record for record in errors if record["step"] in (None, last_step)]
    rows = tuple(
        (
            str(record["source"]),
            str(record["site"]),
            *(plus_minus(cast(Mean, record[name]), 3 if "error" in name else 1) for name in ERRORS),
        )
        for record in between
    )
    heads = ("error to A", "to B", "rotation (°) to A", "to B", "direction (°) to A", "to B")
    return [
        *tables,
        Table("View 2 against both truths, with its stream from B or from an unrelated pair", ("source", "after", *heads), rows),
    ]


def name_of(record: Record) -> str:
    """A record's site and head as they are written: decoder.3.cross_attn.heads:1."""
    return f"{record['site']}" if record["head"] is None else f"{record['site']}:{record['head']}"


def decided(records: Sequence[Record], name: str = "points2") -> str | None:
    """The first layer from which on all shares are above `HALF`; None if the last one's is not."""
    since = holds_from([share_in(record, name).mean > HALF for record in records])
    return None if since is None else str(records[since]["site"])


def _since(layer: str | None, records: Sequence[Record]) -> str:
    return "at no layer for good" if layer is None else "at every layer" if layer == records[0]["site"] else f"from {layer} on"


def _findings(records: Sequence[Record], by_pair: Mapping[str, np.ndarray], across: str) -> list[str]:
    two, one = chosen(records, "layer"), chosen(records, "layer", view=1)
    least, most = min(two, key=lambda record: share_in(record).mean), max(one, key=lambda record: share_in(record).mean)

    def share(record: Record, name: str = "points2") -> str:
        return share_text(share_in(record, name))

    found = [
        f"View 2's stream from B brings {share(two[0])} of B's points of view 2 at {two[0]['site']}, as it must, since view "
        f"1 is the same; least at {least['site']} ({share(least)}; rotation {share(least, 'rotation')}, direction "
        f"{share(least, 'direction')}), and {share(two[-1])} at {two[-1]['site']}.",
        f"With view 2's stream from B, view 2's points have gone more than half of the way to B {_since(decided(two), two)}, its rotation "
        f"{_since(decided(two, 'rotation'), two)}.",
        f"View 1's stream from B brings most of B's view 2 at {most['site']}: {share(most)} of its points, "
        f"{share(most, 'rotation')} of its rotation, {share(most, 'direction')} of its direction; and "
        f"{share(most, 'points1')} of B's points of view 1.",
    ]
    late = [record for record in one if share_in(record).mean > share_in(most).mean / 2]
    if share_in(most).mean > 0:
        found.append(f"The last layer at which view 1's stream brings more than half of that is {late[-1]['site']}.")
    update, head = (max(chosen(records, kind), key=lambda record: share_in(record).mean) for kind in ("update", "head"))
    found.append(
        f"Of single updates of view 2 {update['site']} brings most, "
        f"{share(update)} of B's points; of single {across} heads {name_of(head)}, {share(head)}."
    )
    unrelated, itself = (chosen(records, "layer", source=source) for source in ("unrelated", "itself"))
    nearest = max(unrelated, key=lambda record: share_in(record).mean)
    of_updates = max(chosen(records, "update", source="unrelated"), key=lambda record: share_in(record).mean)
    drift = max(float(np.abs(share_in(record).mean)) for record in itself)
    found.append(
        f"Controls: an unrelated pair's stream brings {share(nearest)} at most (at {nearest['site']}), an update of its "
        f"{across} {share(of_updates)} at most (at {of_updates['site']}); A's own changes the share by at most "
        f"{drift:.1e}. A and B are {plus_minus(mean_of(by_pair['to_b/points2_of_a']), 2)} apart in view 2's points, and "
        f"{plus_minus(mean_of(by_pair['to_b/rotation_of_a']), 0)}° in its rotation."
    )
    return found
