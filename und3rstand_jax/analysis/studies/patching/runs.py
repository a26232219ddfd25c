"""The passes of the study `patching`: what the output is with another pair's values at one site of one view.

    A's streams before some blocks ─▶ these and all later, with B's values at one site ─▶ distances on the device, poses on the host

A program has all sites of some blocks, each with a switch: which site, view and head are patched is an input, not compiled in.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from und3rstand_jax.analysis.pair_measures import PairTruth
from und3rstand_jax.analysis.steps import block_of
from und3rstand_jax.analysis.studies.study import Setting, other_pair
from und3rstand_jax.geometry.alignment import Alignment, aligned_errors
from und3rstand_jax.geometry.cameras import sampled_pixels
from und3rstand_jax.geometry.pose import INLIER_THRESHOLD, Pose, camera_errors, camera_pose, most_confident_half
from und3rstand_jax.model.affine import Affine, SiteEdits
from und3rstand_jax.model.config import ModelConfig
from und3rstand_jax.model.head_choice import POINTMAP
from und3rstand_jax.model.heads import Pointmap
from und3rstand_jax.model.module import MultiViewModel
from und3rstand_jax.model.output import Activation, BackboneOutput
from und3rstand_jax.model.sites import HEADS, UPDATE, parse_site
from und3rstand_jax.model.start import start_layers

Source: TypeAlias = Literal["twin", "unrelated", "itself"]
View: TypeAlias = Literal[1, 2]

MLP = "mlp"

CONTROLS: tuple[Source, ...] = ("unrelated", "itself")

_PROGRAMS = 4
"""At most this many are compiled; each begins at a different block and takes the patches of some blocks."""

_IN_FLIGHT = 4
_POSE_POINTS = 512
"""Poses use about this many of the more confident half of view 2's sampled points, since a pair has a hundred runs with a pose to find."""


class Patch(NamedTuple):
    """One patch: whose values, of which view, at which site, of which head."""

    source: Source
    view: View
    site: str
    head: int | None = None

    @property
    def kind(self) -> str:
        """What is put in: a head, an update or a layer."""
        return "head" if self.head is not None else UPDATE if parse_site(self.site).part == UPDATE else "layer"

    @property
    def layer(self) -> str:
        """The layer id that the site belongs to."""
        return parse_site(self.site).layer_id

    def block(self, config: ModelConfig) -> int:
        """The block that the patch is in; the embedding counts as the first one's."""
        return 0 if self.layer == config.embed else block_of(self.layer)


def patches_of(config: ModelConfig) -> list[Patch]:
    """All patches of the study: view 2's layers, updates and cross-attention heads, view 1's layers, and the controls between blocks."""
    layers, embed = config.all_layers, config.embed
    across = [block.across for block in config.blocks]
    between = [embed, *(block.steps[-1] for block in config.blocks)]
    views: tuple[View, ...] = (2, 1)
    return [
        *(Patch("twin", view, layer) for view in views for layer in (embed, *layers)),
        *(Patch("twin", 2, f"{layer}.{UPDATE}") for layer in layers),
        *(Patch("twin", 2, f"{layer}.{HEADS}", head) for layer in across for head in range(config.block_heads)),
        *(Patch("unrelated", 2, layer) for layer in between),
        *(Patch("unrelated", 2, f"{layer}.{UPDATE}") for layer in across),
        *(Patch("itself", 2, layer) for layer in dict.fromkeys((between[0], between[len(between) // 2], between[-1]))),
    ]


def same_patch(patch: Patch, config: ModelConfig) -> Patch:
    """A patch with the same output: patching a stream after an MLP is the same as before it, since the MLP reads nothing else."""
    if patch.kind == "layer" and patch.layer.endswith(MLP):
        return patch._replace(site=config.layer_ids[config.layer_ids.index(patch.layer) - 1])
    return patch


class Compared(NamedTuple):
    """What a patched pass is compared with: both runs' own points, and the truth of A and of B."""

    runs: tuple[tuple[Array, ...], ...]
    truths: tuple[PairTruth, ...]


class Runs:
    """All patches on some of a setting's pairs. The unpatched passes run on construction, and their values stay in memory."""

    def __init__(self, setting: Setting, patches: Sequence[Patch], some: range) -> None:
        assert setting.twins is not None, "checked before"
        config, self.backbone = setting.backbone.config, setting.backbone
        self.patches, self.made = patches, tuple(dict.fromkeys(same_patch(patch, config) for patch in patches))
        self.pairs, self.twins = setting.pairs.some(some), setting.twins.some(some)
        self.alignment: Alignment = setting.alignment
        sites = {source: {patch.site for patch in self.made if patch.source == source} for source in ("twin", *CONTROLS)}
        starts = {layer for patch in self.made for layer in start_layers(_start_of(patch, config), config)}
        own = self.backbone(*self.pairs.views, capture=starts | sites["itself"], head=POINTMAP)
        twin = self.backbone(*self.twins.views, capture=sites["twin"], head=POINTMAP)
        others = setting.twins.some([other_pair(number, setting.count) for number in some])
        unrelated = self.backbone(*others.views, capture=sites["unrelated"], head=False)
        self.values: dict[Source, BackboneOutput] = {"twin": twin, "unrelated": unrelated, "itself": own}
        self.compared = Compared(
            tuple(tuple(pred["pts3d"] for pred in run.pointmaps) for run in (own, twin)),
            jax.device_put((self.pairs.truth, self.twins.truth)),
        )

    def measured(self) -> dict[str, Float[np.ndarray, "B ..."]]:
        """NAME for every patch, (B, patches), and NAME_of_a and NAME_of_b for the unpatched runs, (B,)."""
        with ThreadPoolExecutor() as pool:  # OpenCV and the device release the GIL
            own, twin = (_measured(self.values[source].pointmaps, self.compared, self.alignment) for source in ("itself", "twin"))
            cameras = [self._cameras(run) for run in (own, twin)]
            finish = functools.partial(self._finished, cameras[1])
            futures: list[Future[dict[str, np.ndarray]]] = []
            for patch in self.made:
                futures.append(pool.submit(finish, self._patched(patch)))
                if len(futures) > _IN_FLIGHT:  # what the device has measured waits for the host
                    futures[-1 - _IN_FLIGHT].result()
            found = dict(zip(self.made, (future.result() for future in futures), strict=True))
        of_patches = [found[same_patch(patch, self.backbone.config)] for patch in self.patches]
        arrays = {name: np.stack([of_patch[name] for of_patch in of_patches], axis=1) for name in of_patches[0]}
        of_runs = {"a": finish(own), "b": finish(twin)}
        return arrays | {f"{name}_of_{run}": values for run, numbers in of_runs.items() for name, values in numbers.items()}

    def _patched(self, patch: Patch) -> dict[str, Array]:
        config = self.backbone.config
        sites = tuple(dict.fromkeys(other.site for other in self.made if first_block(other, config) == first_block(patch, config)))
        values = {site: self.values[patch.source if site == patch.site else "twin"][site] for site in sites}
        chosen = {site: tuple(_switch(patch, site, view, config) for view in (1, 2)) for site in sites}
        layers = start_layers(_start_of(patch, config), config)
        own = self.values["itself"]
        start = BackboneOutput({layer: own[layer] for layer in layers}, own.image_sizes)
        return _patched(self.backbone.module, self.alignment, self.backbone.params, start, values, chosen, self.compared)

    def _cameras(self, measured: Mapping[str, Array]) -> list[Pose | None]:
        points, confidence = (np.asarray(measured[name]) for name in ("out/points2", "out/confidence2"))
        columns, rows = (pixels := sampled_pixels(*points.shape[1:3])).astype(int).T
        found = []
        for index, truth in enumerate(self.twins.truths):
            half = most_confident_half(confidence[index, rows, columns])
            some = np.sort(half)[:: -(-len(half) // _POSE_POINTS)]
            of_view = points[index, rows[some], columns[some]]
            found.append(camera_pose(of_view, pixels[some], truth.intrinsics[1], INLIER_THRESHOLD * points.shape[2]))
        return found

    def _finished(self, twins: Sequence[Pose | None], measured: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """What was measured on the device, and the angles of the poses to B's run and to both truths."""
        found = {name: np.asarray(values) for name, values in measured.items() if not name.startswith("out/")}
        # Points were divided by the mean distance of view 1's in A's run, which is what a baseline is compared with.
        sizes = {"to_b": np.ones(len(twins)), "a": np.asarray(self.pairs.truth.unit), "b": np.asarray(self.twins.truth.unit)}
        references: dict[str, Sequence[Pose | None]] = {
            "to_b": twins,
            "a": [truth.pose for truth in self.pairs.truths],
            "b": [truth.pose for truth in self.twins.truths],
        }
        cameras = self._cameras(measured)
        for key, poses in references.items():
            angles = np.array([_angles(*item) for item in zip(cameras, poses, sizes[key].tolist(), strict=True)])
            names = (f"to_b/{name}" if key == "to_b" else f"{name}_{key}" for name in ("rotation", "direction"))
            found |= dict(zip(names, angles.T, strict=True))
        return found


def first_block(patch: Patch, config: ModelConfig) -> int:
    """The block with which the program of a patch begins: its own, or one of the few before it that share a program with it."""
    together = -(-len(config.blocks) // _PROGRAMS)
    return patch.block(config) // together * together


def _start_of(patch: Patch, config: ModelConfig) -> str:
    first = first_block(patch, config)
    return config.blocks[first - 1].steps[-1] if first else config.embed


def _switch(patch: Patch, site: str, view: int, config: ModelConfig) -> Float[np.ndarray, "..."]:
    """1 where the patch is, 0 elsewhere: (1, 1, 1), or for heads (1, 1, H, 1)."""
    here = patch.site == site and patch.view == view
    if parse_site(site).part != HEADS:
        return np.full((1, 1, 1), here, np.float32)
    heads = np.arange(config.head_count(parse_site(site).layer_id))
    return (here & (heads == patch.head)).astype(np.float32)[None, None, :, None]


def _angles(camera: Pose | None, reference: Pose | None, size: float) -> tuple[float, float]:
    """Degrees of rotation and direction; 180 where no camera was found, NaN where there is nothing to compare it with."""
    if reference is None:
        return np.nan, np.nan
    return camera_errors(camera, reference, size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _patched(
    module: MultiViewModel,
    alignment: Alignment,
    params: dict,
    start: BackboneOutput,
    values: dict[str, Activation],
    chosen: dict[str, tuple[Array, ...]],
    compared: Compared,
) -> dict[str, Array]:
    """Measures a pass from A's streams with the chosen ones of B's values."""
    edits: SiteEdits = {
        site: tuple(
            Affine(1 - switch, switch * jnp.asarray(value, jnp.float32)) for switch, value in zip(chosen[site], values[site], strict=True)
        )
        for site in values
    }
    output = cast(BackboneOutput, module.apply({"params": params}, capture=(), head=POINTMAP, edits=edits, start=start))
    return _measured(output.pointmaps, compared, alignment)


@functools.partial(jax.jit, static_argnums=2)
def _measured(preds: tuple[Pointmap, ...], compared: Compared, alignment: Alignment) -> dict[str, Array]:
    """Distances to A's and B's own points in one unit, errors against both truths, and view 2's points (out/…) for the pose."""
    (a1, a2), (b1, b2) = (one.truth.valid for one in compared.truths)
    own, twin = compared.runs
    valid = (a1 & b1, a2 & b2)
    # One unit for all runs, since a patch may carry another pair's scale: the model's own for A, so that pairs are comparable.
    unit = _mean(jnp.linalg.norm(own[0], axis=-1), valid[0])[:, None, None, None]
    points, in_a, in_b = (tuple(view / unit for view in run) for run in ((preds[0]["pts3d"], preds[1]["pts3d"]), own, twin))
    found = {"out/points2": points[1], "out/confidence2": preds[1]["conf"]}
    for view, (ours, at_a, at_b, mask) in enumerate(zip(points, in_a, in_b, valid, strict=True), start=1):
        found |= {f"to_a/points{view}": _distance(ours, at_a, mask), f"to_b/points{view}": _distance(ours, at_b, mask)}
    for name, truth in zip("ab", compared.truths, strict=True):
        found[f"error_{name}"] = aligned_errors(preds, truth.truth, jnp.asarray(truth.unit), alignment)[1]
    return found


def _distance(one: Float[Array, "B H W 3"], other: Float[Array, "B H W 3"], valid: Bool[Array, "B H W"]) -> Float[Array, " B"]:
    return _mean(jnp.linalg.norm(one - other, axis=-1), valid)


def _mean(values: Float[Array, "B H W"], valid: Bool[Array, "B H W"]) -> Float[Array, " B"]:
    """The mean over the valid pixels; NaN if there are none."""
    return jnp.sum(jnp.where(valid, values, 0.0), axis=(1, 2)) / jnp.sum(valid, axis=(1, 2))
