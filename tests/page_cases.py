"""Reports whose layers approach a slanted wall, to make pages of."""

import functools

import numpy as np

from und3rstand_jax.analysis.view_set import Attention, Layer, SetAnalysis
from und3rstand_jax.geometry.cameras import ViewGeometry, ViewTruth
from und3rstand_jax.geometry.matching import Correspondences
from und3rstand_jax.geometry.pose import PoseEstimate
from und3rstand_jax.model.layer_ids import HEAD
from und3rstand_jax.report.page import page_text

NASTY = "\x1b[31m\u202e</script><script>document.body.dataset.error='run'</script><b>&\"'é"
_STEPS = ("self_attn", "cross_attn", "mlp")


def wall(height, width):
    """Points of a slanted wall that a camera sees, and its intrinsics."""
    rows, columns = np.mgrid[:height, :width]
    intrinsics = np.array([[0.8 * width, 0, (width - 1) / 2], [0, 0.8 * width, (height - 1) / 2], [0, 0, 1]])
    depth = 2 + rows / height + 0.5 * np.sin(columns / width * 6)
    return np.stack([columns, rows, np.ones((height, width))], -1) @ np.linalg.inv(intrinsics).T * depth[..., None], intrinsics


def make_report(sizes, blocks, heads, has_truth=True, confident=True, seed=0, title="a pair", views=2):
    """Layers that approach a slanted wall, each in a unit of its own; attention at random. sizes: of every view, or one for all."""
    rng = np.random.default_rng(seed)
    sizes = sizes if isinstance(sizes[0], tuple) else (sizes,) * views
    walls, intrinsics = zip(*(wall(*size) for size in sizes), strict=True)
    poses = [np.eye(4) for _ in sizes]
    for place, pose in enumerate(poses):
        pose[0, 3] = 1.5 * place
    ids = [*(f"decoder.{block}.{step}" for block in range(blocks) for step in _STEPS), HEAD]
    layers = []
    for index, layer_id in enumerate(ids):
        noise, unit = 0.2 * (1 - index / len(ids)), 1.0 + index
        seen = []
        for (height, width), true in zip(sizes, walls, strict=True):
            coarse = rng.normal(size=(-(-height // 16), -(-width // 16), 3)) * noise
            bumps = np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:height, :width]
            fine = rng.normal(size=(height, width, 3)) * 0.02 * noise
            confidence = np.exp(rng.normal(size=(height, width)) * 0.1 + index / 10).astype(np.float32) if confident else None
            seen.append(ViewGeometry(np.float32((true + bumps + fine) * unit), confidence))
        known = [
            PoseEstimate(np.diag([1.0, 1, 1, 1]) + (pose - np.eye(4)) * unit, 3.0 + index, 4.0) if index else PoseEstimate(None, None, None)
            for pose in poses[1:]
        ]
        pixels = [np.stack([rng.integers(0, width, 90), rng.integers(0, height, 90)], -1) for height, width in sizes]
        offsets = np.where(np.arange(90) % 3, np.arange(90.0), np.nan) if has_truth else None
        share = 0.25 if has_truth else None
        layers.append(
            Layer(
                layer_id,
                tuple(seen),
                (0.5 / (index + 1), float("nan"), *(0.4 / (index + view) for view in range(2, len(sizes)))),
                tuple(known),
                tuple(Correspondences(pixels[0], later, offsets) for later in pixels[1:]),
                (share,) * (len(sizes) - 1),
                share,
            )
        )
    grids = tuple((height // 16, width // 16) for height, width in sizes)
    tokens = [rows * columns for rows, columns in grids]
    shapes = [(own, sum(tokens) - own) for own in tokens]
    weights = [rng.standard_gamma(0.3, size=(heads, *shape), dtype=np.float32) for shape in shapes]
    for of_view in weights:
        of_view /= of_view.sum(-1, keepdims=True)
    # Every block has the same heads in another order: drawing so many numbers takes its time.
    attention = [Attention.to_others(block, [np.roll(of_view, block, 0) for of_view in weights]) for block in range(blocks)]
    truth = tuple(ViewTruth(true, true[..., 2] < 3.2) for true in walls) if has_truth else None
    images = tuple(rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes)
    reference = "ground truth" if has_truth else "the model's own final pointmaps"
    record = {
        "checkpoint": NASTY,
        "seconds": {"forward": 1.5},
        "files": [{"name": "a", "sha256": "0"}],
        "nothing": None,
        "not finite": float("inf"),
    }
    true_poses = tuple(poses) if has_truth else None
    return SetAnalysis(title, images, grids, tuple(layers), tuple(attention), truth, true_poses, intrinsics, reference, 5.0, record)


@functools.cache
def small_report():
    return make_report((64, 96), 3, 2, title=NASTY)


@functools.cache
def small_page():
    return page_text(small_report())
