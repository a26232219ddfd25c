"""How alike layers and views are, and how many dimensions tokens use.

    pairs ─▶ tokens of all layers ─┬─▶ linear CKA between layers, and between the views' tokens that show the same place
                                   ├─▶ effective rank, mean cosine: do tokens collapse?
                                   └─▶ first principal components as colours

CKA: Kornblith et al. 2019. Attention collapse of multi-view transformers: arXiv 2512.21691. Each number comes with that of the
same model with random weights, and CKA also with those of shuffled tokens and of another scene's.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from und3rstand_jax.analysis.studies.similarity.figures import curves_figure, layers_figure
from und3rstand_jax.analysis.studies.similarity.measures import (
    bytes_a_pair,
    bytes_of_grams,
    measure,
    of_view,
    similarity_at_once,
    values_a_pair,
)
from und3rstand_jax.analysis.studies.similarity.token_colours import colours_figure, colours_of
from und3rstand_jax.analysis.studies.study import (
    Cost,
    Mean,
    Record,
    Setting,
    Study,
    Table,
    mean_in,
    mean_of,
    plus_minus,
    text_in,
)
from und3rstand_jax.analysis.token_similarity import ratio_of_means
from und3rstand_jax.support.errors import OptionError

LAYERS, LAYER, VIEWS = "layers", "layer", "views"

MEANING = {
    "what": f"{LAYERS}: two layers of one view; {LAYER}: one layer of one view; {VIEWS}: one layer of both views",
    "view": "whose tokens, 1 or 2",
    "layer": "whose tokens",
    "and": "the second layer",
    "cka": f"linear CKA: of {LAYERS}, between the two; of {VIEWS}, between view 1's tokens and those of view 2 that show the same place",
    "cka_random": "control: the same of the model with random weights",
    "cka_shuffled": "floor: of a layer with its own tokens in another order; of views, with the same tokens matched at random",
    "cka_next": "control: of a layer, with the next pair's tokens at the same places of the image; of views, at the next pair's matches",
    "cka_to_random": "of a layer, between the model and the same with random weights",
    "rank": "effective rank of a view's tokens in a pair: exp of the entropy of their covariance's normalised eigenvalues",
    "rank_random": "control: the same of the model with random weights",
    "cosine": "mean cosine between two different tokens of a view in a pair: 1 where all have one direction",
    "cosine_random": "control: the same of the model with random weights",
}

ESTIMATE = (
    "linear CKA with unbiased HSIC between the tokens of one view of one pair, centred there, so that what scenes differ in as a whole "
    "does not count; the ratio of the means over pairs; standard errors by the jackknife over pairs"
)


def cost(setting: Setting) -> Cost:
    """Two passes per pair, one of them with random weights, and one more for the pair after every batch; all layers are in memory."""
    together = similarity_at_once(setting)
    batches = -(-setting.count // together)
    held = (2 * together + 1) * bytes_a_pair(setting) // 2 + bytes_of_grams(setting)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(setting.backbone.params))
    return Cost(2 * setting.count + batches, held + 4 * parameters, 4 * setting.count * values_a_pair(setting.backbone.config))


def similarity(setting: Setting) -> Study:
    """The study of similarity.

    Raises:
        OptionError: there is only one pair: the controls take another one.
    """
    if setting.count < 2:
        raise OptionError(f"the study of similarity needs at least 2 pairs, since its controls use another one; found {setting.count}")
    config, layers = setting.backbone.config, setting.backbone.config.layer_ids
    by_pair = measure(setting)
    maps = {f"{name}{view}": _cka_of_layers(by_pair, view, name) for view in (1, 2) for name in ("layers", "random")}
    of_layers = [record for view in (1, 2) for record in _two_layers(maps, view, layers)]
    of_layer = [record for view in (1, 2) for record in _one_layer(by_pair, view, layers)]
    of_views = _both_views(by_pair, layers)
    figures = {
        "": layers_figure({name: values for name, (values, _) in maps.items()}, layers, config.embed),
        "curves": curves_figure(of_layer, of_views, layers, config.embed),
        "colours": colours_figure(*colours_of(setting)),
    }
    tokens, stack = min(rows * columns for rows, columns in setting.grids), config.embed.split(".")[0]
    return Study(
        "similarity",
        "How alike layers and views are, and how many dimensions tokens use",
        MEANING,
        [*of_layers, *of_layer, *of_views],
        _tables(of_layer, of_views),
        figures,
        _findings(maps, of_layer, of_views, layers),
        {
            "estimate": ESTIMATE,
            "random": f"weights drawn with seed {setting.seed}",
            "most_rank": {"encoder": _most_rank(setting, layers[0], tokens), stack: _most_rank(setting, layers[-1], tokens)},
            "colours": "of each layer and pair the first three principal components of both views' tokens as red, green and blue",
        },
        by_pair,
    )


def _most_rank(setting: Setting, layer: str, tokens: int) -> int:
    return min(tokens - 1, setting.backbone.config.layer_width(layer))


def _cka_of_layers(by_pair: Mapping[str, np.ndarray], view: int, name: str) -> tuple[Float[np.ndarray, "L L"], Float[np.ndarray, "L L"]]:
    cross = of_view(by_pair, view, name)
    own = np.diagonal(cross, axis1=1, axis2=2)
    one, two = (np.broadcast_to(part, cross.shape) for part in (own[:, :, None], own[:, None]))
    return ratio_of_means(cross, one, two)


def _own(by_pair: Mapping[str, np.ndarray], view: int, name: str) -> Float[np.ndarray, "S L"]:
    """HSIC of each layer with itself."""
    return np.diagonal(of_view(by_pair, view, name), axis1=1, axis2=2)


def _two_layers(maps: Mapping[str, tuple[np.ndarray, np.ndarray]], view: int, layers: Sequence[str]) -> list[Record]:
    trained, random = maps[f"layers{view}"], maps[f"random{view}"]
    return [
        {
            "what": LAYERS,
            "view": view,
            "layer": layer,
            "and": layers[j],
            "cka": Mean(float(trained[0][i, j]), float(trained[1][i, j])),
            "cka_random": Mean(float(random[0][i, j]), float(random[1][i, j])),
        }
        for i, layer in enumerate(layers)
        for j in range(i + 1, len(layers))
    ]


def _one_layer(by_pair: Mapping[str, np.ndarray], view: int, layers: Sequence[str]) -> list[Record]:
    own, drawn = _own(by_pair, view, "layers"), _own(by_pair, view, "random")
    cka = {
        "cka_to_random": ratio_of_means(of_view(by_pair, view, "with_random"), own, drawn),
        # The pairs wrap around, so the mean of the next pairs' own is the mean of all.
        "cka_next": ratio_of_means(of_view(by_pair, view, "with_next"), own, np.roll(own, -1, axis=0)),
        "cka_shuffled": ratio_of_means(of_view(by_pair, view, "shuffled"), own, own),
    }
    by_name = {"rank": "rank", "rank_random": "random_rank", "cosine": "cosine", "cosine_random": "random_cosine"}
    return [
        {
            "what": LAYER,
            "view": view,
            "layer": layer,
            **{name: mean_of(of_view(by_pair, view, key)[:, index]) for name, key in by_name.items()},
            **{name: Mean(float(values[index]), float(errors[index])) for name, (values, errors) in cka.items()},
        }
        for index, layer in enumerate(layers)
    ]


def _both_views(by_pair: Mapping[str, np.ndarray], layers: Sequence[str]) -> list[Record]:
    names = {"cka": "match", "cka_next": "other", "cka_shuffled": "shuffled", "cka_random": "random"}
    cka = {name: ratio_of_means(*(by_pair[f"{key}/{part}"] for part in ("cross", "one", "two"))) for name, key in names.items()}
    return [
        {
            "what": VIEWS,
            "layer": layer,
            **{name: Mean(float(values[index]), float(errors[index])) for name, (values, errors) in cka.items()},
        }
        for index, layer in enumerate(layers)
    ]


def _tables(of_layer: Sequence[Record], of_views: Sequence[Record]) -> list[Table]:
    rank = {"rank": "rank", "rank_random": "random weights", "cosine": "cosine", "cosine_random": "random weights"}
    rank |= {"cka_to_random": "CKA to random weights", "cka_next": "to the next pair", "cka_shuffled": "shuffled"}
    tables = []
    for view in (1, 2):
        own = [record for record in of_layer if record["view"] == view]
        title = f"View {view}: effective rank and mean cosine of tokens, and CKA of each layer with controls"
        tables.append(Table(title, ("layer", *rank.values()), tuple(_row(record, rank) for record in own)))
    views = {"cka": "same place", "cka_next": "another scene's matches", "cka_shuffled": "shuffled", "cka_random": "random weights"}
    title = "CKA between view 1's tokens and view 2's"
    return [*tables, Table(title, ("layer", *views.values()), tuple(_row(record, views) for record in of_views))]


def _row(record: Record, names: Mapping[str, str]) -> tuple[str, ...]:
    return (str(record["layer"]), *(plus_minus(mean_in(record, name), 1 if name.startswith("rank") else 3) for name in names))


def _findings(
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]], of_layer: Sequence[Record], of_views: Sequence[Record], layers: Sequence[str]
) -> list[str]:
    found = []
    for view in (1, 2):
        values, errors = maps[f"layers{view}"]
        random, errors_of_random = maps[f"random{view}"]
        step = int(np.nanargmin(np.diagonal(values, 1)))
        least, ends = (Mean(float(values[at]), float(errors[at])) for at in ((step, step + 1), (0, -1)))
        drawn = Mean(float(random[step, step + 1]), float(errors_of_random[step, step + 1]))
        found.append(
            f"View {view}: of neighbouring layers, {layers[step]} and {layers[step + 1]} are least alike (CKA {plus_minus(least)}, with "
            f"random weights {plus_minus(drawn)}); between the first layer and the last it is {plus_minus(ends)}."
        )
    gains = np.array([mean_in(record, "cka").mean - mean_in(record, "cka_next").mean for record in of_views])
    if np.isnan(gains).all():
        found.append("No pair has enough tokens that show the same place in both views: between the views nothing was measured.")
    else:
        best, last = of_views[int(np.nanargmax(gains))], of_views[-1]
        found.append(
            f"Tokens of the two views that show the same place stand out most from another scene's matches at {best['layer']}: CKA "
            f"{text_in(best, 'cka')}, at another scene's matches {text_in(best, 'cka_next')}, with random weights "
            f"{text_in(best, 'cka_random')}; at {last['layer']} it is {text_in(last, 'cka')} and {text_in(last, 'cka_next')}."
        )
    for view in (1, 2):
        own = [record for record in of_layer if record["view"] == view]
        lowest, highest = (choose(own, key=lambda record: mean_in(record, "rank").mean) for choose in (min, max))
        closest = max(own, key=lambda record: mean_in(record, "cosine").mean)
        found.append(
            f"View {view}: the effective rank of tokens is lowest at {lowest['layer']} ({text_in(lowest, 'rank', 1)}, with random weights "
            f"{text_in(lowest, 'rank_random', 1)}) and highest at {highest['layer']} ({text_in(highest, 'rank', 1)}); "
            f"at the last layer it is {text_in(own[-1], 'rank', 1)}. Their mean cosine is highest at {closest['layer']}: "
            f"{text_in(closest, 'cosine')}, with random weights {text_in(closest, 'cosine_random')}."
        )
    return found
