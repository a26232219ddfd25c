"""A stub model and stub probes with chosen outputs, on views of the demo's room, whose geometry is known exactly."""

import functools

import numpy as np

from tests.demo_scene import CAMERAS, camera_axes, render
from und3rstand_jax.analysis.analyse import analyse_views
from und3rstand_jax.analysis.inputs import GroundTruth, Inputs
from und3rstand_jax.analysis.view_set import SetAnalysis
from und3rstand_jax.geometry.cameras import ViewTruth
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.model.output import BackboneOutput
from und3rstand_jax.probes.probes import Probes
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
    views = tuple(picture[None].astype(np.float32) / 127.5 - 1 for picture in pictures)
    provenance = {"images": "the demo's room"}
    if not has_truth:
        return Inputs("a.png and b.png", views, None, provenance)
    truth = tuple(ViewTruth(view, np.ones(view.shape[:2], bool)) for view in points)
    return Inputs("the demo's room", views, GroundTruth(truth, (np.eye(4), pose), intrinsics), provenance)


def pointmaps(view1, view2, confident=True):
    """Both views' points as a layer returns them."""
    pair = [{"pts3d": np.float32(view)[None], "conf": np.full((1, *view.shape[:2]), 2, np.float32)} for view in (view1, view2)]
    return tuple(pair) if confident else tuple({"pts3d": view["pts3d"]} for view in pair)


class StubModel(Backbone):
    """A backbone whose heads return `head` (None: it has none) and `cameras`, and whose attention is random. `calls` records what was
    asked of it.
    """

    def __init__(self, head, blocks=2, cameras=None):
        config = BackboneConfig(
            enc_embed_dim=32,
            enc_depth=1,
            enc_num_heads=2,
            dec_embed_dim=16,
            dec_depth=blocks,
            dec_num_heads=HEADS,
            head_type=None if head is None else "linear",
        )
        super().__init__(DUSt3R(config), {})
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "cameras", cameras)
        object.__setattr__(self, "calls", [])

    def __call__(self, *views, capture, head):
        self.calls.append((capture, head))
        sizes = tuple(view.shape[1:3] for view in views)
        tokens = [height * width // 256 for height, width in sizes]
        rng = np.random.default_rng(0)

        def weights(rows, columns):
            drawn = rng.gamma(0.3, size=(1, HEADS, rows, columns))
            return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)

        asked = [layer for layer in capture if layer.endswith("cross_attn.weights")]
        attention = {layer: tuple(weights(own, sum(tokens) - own) for own in tokens) for layer in asked}
        return BackboneOutput(attention, sizes, self.head if head else (), self.cameras)


class StubProbes(Probes):
    """Probes that return `outputs`: layer id -> a pair of pointmaps."""

    layer_ids = ()

    def __init__(self, outputs):
        object.__setattr__(self, "outputs", outputs)
        object.__setattr__(self, "layer_ids", tuple(outputs))

    def read_layer(self, layer_id, features):
        return self.outputs[layer_id]


def stub_analysis(outputs, head=None, has_truth=True, sizes=SIZES, blocks=2, cameras=None) -> SetAnalysis:
    """The analysis of the room by a model whose layers and head return these pointmaps, and whose camera head returns these cameras."""
    model = StubModel(head, blocks, cameras)
    return analyse_views(model, StubProbes(outputs), tuple(outputs), room_inputs(has_truth, sizes), {}, Stopwatch())
