"""What a model's layers know, averaged over held-out synthetic scenes: `python -m benchmarks.layers --checkpoint DIR`.

Of every probed layer the normalised point error of both views, how many matches between the views are right, and the pose of view 2; of
every cross-attention head, how much of its attention lies on the true place in the other view. Writes layers.json and figures; prints
the tables that docs/pocket.md shows.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from tqdm import tqdm

import und3rstand_jax as u3d
from train.evaluation.plot import Panel, Series, panels_figure
from und3rstand_jax.report.content import HEAD, Layer, Report
from und3rstand_jax.report.inputs import Inputs, scene_inputs
from und3rstand_jax.report.matching import true_places
from und3rstand_jax.report.measure import measure
from und3rstand_jax.report.stopwatch import Stopwatch

_NEAR = 1  # tokens, in rows and columns


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
    model, probes = u3d.load_backbone_and_probe(options.checkpoint)
    reports, on_place, chance = [], [], []
    for number in tqdm(range(options.scenes), desc="scenes"):
        inputs = scene_inputs(number, options.data, model.config.img_size)
        report = measure(model, probes, probes.layer_ids, inputs, {}, Stopwatch())
        near, seen = near_true_place(inputs, report.grids)
        on_place.append(attention_on(report, near)[:, :, seen].mean(axis=-1))
        chance.append(near[seen].mean())
        # All that is needed of it, so that not every pointmap of every scene stays in memory.
        reports.append([summary(layer) for layer in report.layers])
    layers = [means([report[index] for report in reports]) for index in range(len(reports[0]))]
    attention = np.nanmean(on_place, axis=0)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"scenes": options.scenes, "data": options.data, "layers": [dataclasses.asdict(layer) for layer in layers]}
    facts |= {"attention_on_true_place": attention.tolist(), "attention_by_chance": float(np.nanmean(chance))}
    (options.out / "layers.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name, figure in (("layers", layers_figure(layers)), ("attention", attention_figure(attention, float(np.nanmean(chance))))):
        for suffix in ("png", "svg"):
            figure.savefig(options.out / f"{name}.{suffix}", dpi=150)
    print_tables(layers, attention, float(np.nanmean(chance)))


def summary(layer: Layer) -> LayerMeans:
    """The figures of one layer in one scene; NaN where there is none."""
    accuracy, rotation = layer.accuracy, layer.pose.rotation_degrees
    # A pose that is not found counts as the worst.
    return LayerMeans(layer.layer_id, *layer.errors, np.nan if accuracy is None else accuracy, 180.0 if rotation is None else rotation)


def means(found: list[LayerMeans]) -> LayerMeans:
    """Over scenes."""
    one, two, accuracy = (float(np.nanmean([getattr(layer, name) for layer in found])) for name in ("view1", "view2", "accuracy"))
    return LayerMeans(found[0].layer_id, one, two, accuracy, float(np.median([layer.rotation for layer in found])))


def near_true_place(
    inputs: Inputs, grids: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[Bool[np.ndarray, "N1 N2"], Bool[np.ndarray, " N1"]]:
    """Which tokens of view 2 lie within a token of where view 2 sees the middle of each token of view 1; and whether it sees it."""
    assert inputs.truth is not None and inputs.true_pose is not None and inputs.intrinsics is not None
    places = true_places(inputs.truth, inputs.true_pose, inputs.intrinsics[1])
    patch = places.shape[0] // grids[0][0]
    middles = places[patch // 2 :: patch, patch // 2 :: patch].reshape(-1, 2)
    seen = np.isfinite(middles).all(axis=-1)
    token = np.floor(np.where(seen[:, None], middles, 0) / patch)
    rows, columns = np.divmod(np.arange(grids[1][0] * grids[1][1]), grids[1][1])
    near = (np.abs(token[:, :1] - columns) <= _NEAR) & (np.abs(token[:, 1:] - rows) <= _NEAR)
    return near, seen


def attention_on(report: Report, near: Bool[np.ndarray, "N1 N2"]) -> Float[np.ndarray, "blocks heads N1"]:
    """Attention that each head gives the true place, of every token of view 1."""
    return np.stack([(block.from_view1 * near).sum(axis=-1) for block in report.attention])


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


def attention_figure(attention: Float[np.ndarray, "blocks heads"], chance: float) -> Figure:
    """A square for each head: how much of its attention is on the true place."""
    blocks, heads = attention.shape
    figure = Figure(figsize=(0.55 * heads + 2.2, 0.42 * blocks + 1.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(attention, vmin=0, vmax=max(attention.max(), 2 * chance), cmap="viridis")
    axes.set(xlabel="head", ylabel="decoder block", xticks=range(heads), yticks=range(blocks))
    axes.set_title(f"Cross-attention on the true place\n(evenly spread: {chance:.2f})", fontsize=9)
    figure.colorbar(image, ax=axes)
    return figure


def print_tables(layers: list[LayerMeans], attention: Float[np.ndarray, "blocks heads"], chance: float) -> None:
    """As Markdown."""
    print("| layer | view 1 | view 2 | right matches | rotation ° |\n|---|---|---|---|---|")
    for layer in layers:
        print(f"| {layer.layer_id} | {layer.view1:.3f} | {layer.view2:.3f} | {layer.accuracy:.0%} | {layer.rotation:.1f} |")
    print(f"\nattention on the true place, each block's heads (evenly spread: {chance:.3f})\n")
    print("| block | " + " | ".join(f"head {head}" for head in range(attention.shape[1])) + " | mean |")
    print("|---" * (attention.shape[1] + 2) + "|")
    for block, row in enumerate(attention):
        print(f"| {block} | " + " | ".join(f"{value:.3f}" for value in row) + f" | {row.mean():.3f} |")


if __name__ == "__main__":
    main()
