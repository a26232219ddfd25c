"""A model and probes that say what they are told, on two views of the demo's room, whose geometry is known exactly."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np

from tests.demo_scene import CAMERAS, camera_axes, render
from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.pair import Report, measure
from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.model.config import BackboneConfig
from und3rstand_jax.support.progress import Stopwatch

HEIGHT, WIDTH = 64, 96
SIZES = ((HEIGHT, WIDTH), (HEIGHT, WIDTH))
HEADS = 2


@functools.cache
def room(sizes=SIZES):
    """Both pictures of (height, width), both views' points in view 1's frame, camera 2 to camera 1, and the intrinsics of each."""
    pictures, points = zip(*(render(camera, width, height, samples=1) for camera, (height, width) in enumerate(sizes)), strict=True)
    cameras = []
    for place, looks_at in CAMERAS:
        camera = np.eye(4)
        camera[:3, :3] = camera_axes(place, looks_at).T
        camera[:3, 3] = place
        cameras.append(camera)
    intrinsics = tuple(
        np.array([[0.77 * width, 0, (width - 1) / 2], [0, 0.77 * width, (height - 1) / 2], [0, 0, 1]]) for height, width in sizes
    )
    return pictures, points, np.linalg.inv(cameras[0]) @ cameras[1], intrinsics


def room_inputs(has_truth=True, sizes=SIZES):
    """The room as a report takes it, or as if it were two photos."""
    pictures, points, pose, intrinsics = room(sizes)
    one, two = (picture[None].astype(np.float32) / 127.5 - 1 for picture in pictures)
    facts = {"images": "the demo's room"}
    if not has_truth:
        return Inputs("a.png and b.png", (one, two), None, None, None, facts)
    truth = tuple(ViewTruth(view, np.ones(view.shape[:2], bool)) for view in points)
    return Inputs("the demo's room", (one, two), truth, pose, intrinsics, facts)


def said(view1, view2, confident=True):
    """A pair of pointmaps as a layer says them."""
    pair = [{"pts3d": np.float32(view)[None], "conf": np.full((1, *view.shape[:2]), 2, np.float32)} for view in (view1, view2)]
    return tuple(pair) if confident else tuple({"pts3d": view["pts3d"]} for view in pair)


@dataclasses.dataclass
class ToldModel:
    """A backbone whose head says `head` (None: it has none) and whose attention is random."""

    head: tuple | None
    blocks: int = 2
    calls: list = dataclasses.field(default_factory=list)

    @property
    def config(self):
        return BackboneConfig(
            enc_embed_dim=32,
            enc_depth=1,
            enc_num_heads=2,
            dec_embed_dim=16,
            dec_depth=self.blocks,
            dec_num_heads=HEADS,
            head_type=None if self.head is None else "linear",
        )

    def __call__(self, view1, view2, *, capture, head):
        self.calls.append((capture, head))
        tokens1, tokens2 = (view.shape[1] * view.shape[2] // 256 for view in (view1, view2))
        rng = np.random.default_rng(0)

        class Features(dict):
            pred1, pred2 = self.head if head else (None, None)

        def weights(rows, columns):
            drawn = rng.gamma(0.3, size=(1, HEADS, rows, columns))
            return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)

        asked = [layer for layer in capture if layer.endswith("cross_attn.weights")]
        return Features({layer: (weights(tokens1, tokens2), weights(tokens2, tokens1)) for layer in asked})


def told_probes(outputs):
    """Probes that say these outputs: layer id -> a pair of pointmaps."""
    return SimpleNamespace(layer_ids=tuple(outputs), read_layer=lambda layer, features: outputs[layer])


def told_report(outputs, head=None, has_truth=True, sizes=SIZES, blocks=2) -> Report:
    """The report on the room of a model whose layers and head say that."""
    model = ToldModel(head, blocks)
    return measure(model, told_probes(outputs), tuple(outputs), room_inputs(has_truth, sizes), {}, Stopwatch())
