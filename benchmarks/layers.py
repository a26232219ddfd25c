"""What a model's layers know, averaged over held-out synthetic scenes: `python -m benchmarks.layers --checkpoint DIR`.

Of every probed layer the normalised point error of both views, how many matches between the views are right, and the pose of view 2; of
every cross-attention head, how much of its attention lies on the true place in the other view. Writes layers.json and figures; prints
the tables that docs/pocket.md shows. Rotations are found with the true intrinsics; one that is not found counts as 180°.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from tqdm import tqdm

import und3rstand_jax as u3d
from benchmarks.true_place import TruePlace, attention_on, true_place
from und3rstand_jax.layer_plot import Panel, Series, panels_figure
from und3rstand_jax.report.content import HEAD, Layer
from und3rstand_jax.report.inputs import scene_inputs
from und3rstand_jax.report.measure import measure
from und3rstand_jax.report.stopwatch import Stopwatch


@dataclasses.dataclass(frozen=True)
class LayerMeans:
    """Of one layer over all scenes: mean normalised point errors, mean match accuracy, median rotation error in degrees."""

    layer_id: str
    view1: float
    view2: float
    accuracy: float
    rotation: float


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a converted checkpoint with probes")
    parser.add_argument("--scenes", type=int, default=128, help="held-out scenes (default: 128)")
    parser.add_argument("--data", default="synthetic", help="how their cameras stand, as in python -m train (default: synthetic)")
    parser.add_argument("--out", type=Path, default=Path("layers"), help="folder to write (default: ./layers)")
    options = parser.parse_args()
    if options.scenes < 2:
        parser.error(f"--scenes {options.scenes}: expected at least 2, to compare a scene's attention with another scene's places")
    model, probes = u3d.load_backbone_and_probe(options.checkpoint)
    reports, on_place, on_another, even, distances = [], [], [], [], []
    last: TruePlace | None = None
    for number in tqdm(range(options.scenes), desc="scenes"):
        inputs = scene_inputs(number, options.data, model.config.img_size)
        report = measure(model, probes, probes.layer_ids, inputs, {}, Stopwatch())
        place = true_place(inputs, report.grids)
        on_place.append(attention_on(report, place))
        if last is not None:
            on_another.append(attention_on(report, last))
        even.append(place.even if place.seen.any() else np.nan)
        assert inputs.true_pose is not None
        distances.append(float(np.linalg.norm(inputs.true_pose[:3, 3])))
        # All that is needed of it, so that not every pointmap of every scene stays in memory.
        reports.append([summary(layer) for layer in report.layers])
        last = place
    layers = [means([report[index] for report in reports]) for index in range(len(reports[0]))]
    attention = Attention(np.nanmean(on_place, axis=0), np.nanmean(on_another, axis=0), float(np.nanmean(even)))
    groups = by_distance([report[-1] for report in reports], distances)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"scenes": options.scenes, "data": options.data, "layers": [dataclasses.asdict(layer) for layer in layers]}
    facts |= {"attention": {"on_true_place": attention.on_place.tolist(), "on_another_scenes": attention.on_another.tolist()}}
    facts |= {"attention_spread_evenly": attention.even, "last_layer_by_distance": [dataclasses.asdict(group) for group in groups]}
    (options.out / "layers.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name, figure in (("layers", layers_figure(layers)), ("attention", attention_figure(attention))):
        for suffix in ("png", "svg"):
            figure.savefig(options.out / f"{name}.{suffix}", dpi=150)
    print_tables(layers, attention, groups)


class Attention(NamedTuple):
    """Mean share of cross-attention on the true place, on that of another scene, and what lies there if it is spread evenly.

    A head that looks at the same part of the image whatever the scene shows gives both places alike.
    """

    on_place: Float[np.ndarray, "blocks heads"]
    on_another: Float[np.ndarray, "blocks heads"]
    even: float


@dataclasses.dataclass(frozen=True)
class DistanceGroup:
    """Scenes whose cameras are between `nearest` and `farthest` metres apart, and what a layer is worth in them."""

    nearest: float
    farthest: float
    means: LayerMeans


def by_distance(found: list[LayerMeans], distances: list[float]) -> list[DistanceGroup]:
    """The scenes in three groups of equal size."""
    groups = np.array_split(np.argsort(distances), min(3, len(distances)))
    return [DistanceGroup(distances[group[0]], distances[group[-1]], means([found[index] for index in group])) for group in groups]


def summary(layer: Layer) -> LayerMeans:
    """The figures of one layer in one scene; NaN where there is none."""
    accuracy, rotation = layer.accuracy, layer.pose.rotation_degrees
    # A pose that is not found counts as the worst.
    return LayerMeans(layer.layer_id, *layer.errors, np.nan if accuracy is None else accuracy, 180.0 if rotation is None else rotation)


def means(found: list[LayerMeans]) -> LayerMeans:
    """Over scenes."""
    one, two, accuracy = (float(np.nanmean([getattr(layer, name) for layer in found])) for name in ("view1", "view2", "accuracy"))
    return LayerMeans(found[0].layer_id, one, two, accuracy, float(np.median([layer.rotation for layer in found])))


def layers_figure(layers: list[LayerMeans]) -> Figure:
    """Errors, matches and rotation over the layers."""
    errors = (Series[LayerMeans]("view 1", lambda layer: layer.view1), Series[LayerMeans]("view 2", lambda layer: layer.view2, False))
    panels = [
        Panel("Normalised point error", "distance, both sides\nscaled to mean distance 1", errors),
        Panel(
            "Right matches between the views", "share", (Series("within 3 % of the width", lambda layer: layer.accuracy),), is_share=True
        ),
        Panel("Rotation error of view 2's pose", "degrees, median", (Series("rotation", lambda layer: layer.rotation),), greatest=180),
    ]
    head = next((layer for layer in layers if layer.layer_id == HEAD), None)
    return panels_figure(panels, [layer for layer in layers if layer.layer_id != HEAD], head)


def attention_figure(attention: Attention) -> Figure:
    """A square for each head: how much of its attention is on the true place, and on that of another scene."""
    blocks, heads = attention.on_place.shape
    figure = Figure(figsize=(1.1 * heads + 2.2, 0.42 * blocks + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    greatest = max(attention.on_place.max(), attention.on_another.max(), 2 * attention.even)
    for axes, shares, name in zip(panels, attention[:2], ("the true place", "another scene's true place"), strict=True):
        image = axes.imshow(shares, vmin=0, vmax=greatest, cmap="viridis")
        axes.set(xlabel="head", xticks=range(heads), yticks=range(blocks))
        axes.set_title(name, fontsize=9)
    panels[0].set_ylabel("decoder block")
    figure.suptitle(f"Share of cross-attention on… (evenly spread: {attention.even:.2f})", fontsize=9)
    figure.colorbar(image, ax=panels)
    return figure


def print_tables(layers: list[LayerMeans], attention: Attention, groups: list[DistanceGroup]) -> None:
    """As Markdown."""
    print("| layer | view 1 | view 2 | right matches | rotation ° |\n|---|---|---|---|---|")
    for layer in layers:
        print(f"| {layer.layer_id} | {layer.view1:.3f} | {layer.view2:.3f} | {layer.accuracy:.0%} | {layer.rotation:.1f} |")
    print("\nthe last layer by the distance of the cameras, a third of the scenes each\n")
    print("| cameras apart, m | view 1 | view 2 | right matches | rotation ° |\n|---|---|---|---|---|")
    for nearest, farthest, of in ((group.nearest, group.farthest, group.means) for group in groups):
        print(f"| {nearest:.2f} to {farthest:.2f} | {of.view1:.3f} | {of.view2:.3f} | {of.accuracy:.0%} | {of.rotation:.1f} |")
    print(f"\nattention on the true place / on another scene's, each block's heads (evenly spread: {attention.even:.3f})\n")
    print("| block | " + " | ".join(f"head {head}" for head in range(attention.on_place.shape[1])) + " | mean |")
    print("|---" * (attention.on_place.shape[1] + 2) + "|")
    for block, (on_place, on_another) in enumerate(zip(*attention[:2], strict=True)):
        cells = [f"{one:.2f} / {other:.2f}" for one, other in zip(on_place, on_another, strict=True)]
        print(f"| {block} | " + " | ".join(cells) + f" | {on_place.mean():.2f} / {on_another.mean():.2f} |")


if __name__ == "__main__":
    main()
