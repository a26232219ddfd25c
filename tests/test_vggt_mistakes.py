"""Each mistake that is easily made in VGGT shows in the golden case: in the array where it should, and in none before it."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.golden_cases import relative_error
from tests.golden_vggt import SMALL_CASE
from tests.make_checkpoint import vggt_config
from tests.vggt_golden_models import golden, golden_backbone, golden_layers, named_arrays
from und3rstand_jax.model import blocks, heads
from und3rstand_jax.model.attention import rotate, rotation
from und3rstand_jax.model.blocks import Arithmetic
from und3rstand_jax.model.heads import ResidualUnit, to_pointmap
from und3rstand_jax.model.pose_encoding import cameras_of
from und3rstand_jax.model.vggt import attention, camera, dpt, module, trunk
from und3rstand_jax.model.vggt.dpt import positions
from und3rstand_jax.model.vggt.module import VGGT

pytestmark = pytest.mark.quick

CASE = functools.partial(golden, SMALL_CASE)
CONFIG = vggt_config(CASE().config)


GRID = tuple(side // 14 for side in CASE().images.shape[2:4])
EMBED, ENCODED, LAST = ("aggregator.embed",), ("encoder.norm",), ("frame.3.mlp", "global.3.mlp")


def first_moved(arrays):
    """The first array, in network order, that is not within twice the original's own error in float32; each is the case's own part."""
    case = CASE()
    bars = ((name, 2 * case.float32_error(name)) for name in case.arrays if name in arrays)
    return next((name for name, bar in bars if not relative_error(arrays[name], case.arrays[name]) <= bar), None)


def run(start, capture, head=False, params=None):
    """A pass from the original's own layers on, or from what stands for them. It is traced anew, with whatever mistake is made."""
    layers = golden_layers(CASE(), *start) if isinstance(start, tuple) else start
    backbone = golden_backbone()
    module = VGGT(dataclasses.replace(CONFIG, camera_iterations=2))
    forward = jax.jit(lambda params, start: module.apply({"params": params}, start=start, capture=capture, head=head))
    found = named_arrays(forward(backbone.params if params is None else params, layers))
    # Two iterations of four: the cameras are others.
    return {name: CASE().stored(name, array) for name, array in found.items() if name not in ("extrinsic", "intrinsic")}


def with_leaf(params, path, change):
    """The parameters with one leaf changed."""
    first, *rest = path
    return params | {first: with_leaf(params[first], rest, change) if rest else change(params[first])}


def epsilons(monkeypatch, of):
    """Has norms the epsilon `of(name, its own)`."""
    own = Arithmetic.layer_norm
    monkeypatch.setattr(
        Arithmetic, "layer_norm", lambda self, name, epsilon=1e-6, *rest, **named: own(self, name, of(name, epsilon), *rest, **named)
    )


# The trunk


@pytest.mark.slow
def test_without_a_mistake_nothing_moves():
    found = run(EMBED, ("frame.*", "global.*"))
    assert len(found) == 16 and first_moved(found) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "norms", "epsilon", "first"),
    [
        (EMBED, ("norm1", "norm2"), 1e-6, "frame.0.mlp"),
        (EMBED, ("norm1", "norm2", "q_norm", "k_norm"), 1e-6, "frame.0.self_attn"),
        (("encoder.embed",), ("norm1", "norm2"), 1e-5, "encoder.0.self_attn"),
    ],
)
def test_epsilons_of_norms(start, norms, epsilon, first, monkeypatch):
    epsilons(monkeypatch, lambda name, own: epsilon if name in norms else own)
    assert first_moved(run(start, ("frame.0.*",) if start == EMBED else ("encoder.0.*",))) == first


@pytest.mark.slow
def test_epsilon_of_the_camera_heads_norms(monkeypatch):
    epsilons(monkeypatch, lambda name, own: 1e-6)
    assert first_moved(run(LAST, ("camera.*",))) == "camera.0.0.self_attn"


@pytest.mark.slow
def test_gelu_by_tanh(monkeypatch):
    monkeypatch.setattr(blocks, "gelu", functools.partial(jax.nn.gelu, approximate=True))
    assert first_moved(run(("encoder.embed",), ("encoder.0.*",))) == "encoder.0.mlp"


def bicubic(maps, shape, kernel_a, antialias):
    """Resizes (rows, columns, C) along both axes, one after the other, with half-pixel centres."""
    for axis in (0, 1):
        length, count = maps.shape[axis], shape[axis]
        scale = length / count
        reach = max(scale, 1) if antialias else 1
        places = (np.arange(count)[:, None] + 0.5) * scale - 0.5
        d = np.abs(np.arange(-3, length + 3) - places) / reach
        a = kernel_a
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
        inside = weights[:, 3:-3].copy()
        if antialias:
            inside /= inside.sum(axis=1, keepdims=True)
        else:  # what lies beyond an edge is the edge
            inside[:, 0] += weights[:, :3].sum(axis=1)
            inside[:, -1] += weights[:, -3:].sum(axis=1)
        maps = jnp.moveaxis(jnp.tensordot(jnp.asarray(inside, jnp.float32), maps, (1, axis), precision="highest"), 0, axis)
    return maps


@pytest.mark.parametrize(
    ("kernel_a", "antialias", "first"),
    [(-0.5, True, None), (-0.5, False, "encoder.embed"), (-0.75, True, "encoder.embed"), (-0.75, False, "encoder.embed")],
)
def test_how_positions_are_resized(kernel_a, antialias, first, monkeypatch):
    monkeypatch.setattr(jax.image, "resize", lambda maps, shape, *_, **__: bicubic(maps, shape, kernel_a, antialias))
    assert first_moved(run(("patch_embed",), ("patch_embed", "encoder.embed"))) == first


def test_the_first_views_tokens_for_all_views():
    params, start = golden_backbone().params, golden_layers(CASE(), *ENCODED)
    embedded = functools.partial(golden_backbone().module.apply, start=start, capture=("encoder.norm", "aggregator.embed"), head=False)
    forward = jax.jit(lambda params: embedded({"params": params}))
    assert first_moved(named_arrays(forward(params))) is None
    for name in ("camera", "registers"):
        wrong = with_leaf(params, ("aggregator", "tokens", name), lambda leaf: leaf[jnp.array([0, 0])])
        assert first_moved(named_arrays(forward(wrong))) == "aggregator.embed"


def from_0(*args):
    """Patches' places counted from 0, as in DUSt3R."""
    if len(args) == 3:
        return rotation(*args)
    return tuple(jnp.concatenate([whole[:5], own]) for whole, own in zip(rotation(*args), rotation(*args[:3]), strict=True))


ROTATIONS = {
    "places counted from 0": from_0,
    "x before y": lambda *args: tuple(table[:, ::-1] for table in rotation(*args)),
    "special tokens turned as the first patch": lambda *args: tuple(table.at[:5].set(table[5]) for table in rotation(*args)),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ROTATIONS)
def test_rotations(how, monkeypatch):
    monkeypatch.setattr(trunk, "rotation", ROTATIONS[how])
    assert first_moved(run(EMBED, ("aggregator.embed", "frame.0.self_attn"))) == "frame.0.self_attn"


def unnormed(norm, x):
    return x


def normed_after(norm, x):
    turns = rotation(GRID, CONFIG.embed_dim // CONFIG.num_heads, 100.0, 5)
    return norm(rotate(x.reshape(-1, *x.shape[2:]), turns).reshape(x.shape))


@pytest.mark.slow
@pytest.mark.parametrize(("of_queries_and_keys", "is_rotated"), [(unnormed, True), (normed_after, False)])
def test_norms_of_queries_and_keys(of_queries_and_keys, is_rotated, monkeypatch):
    own = Arithmetic.layer_norm

    def layer_norm(self, name, epsilon=1e-6, *rest, **named):
        norm = own(self, name, epsilon, *rest, **named)

        def changed(x):
            normed = norm(x)  # has its parameters made, where they are made
            return of_queries_and_keys(norm, x) if x.shape[2] == 40 else normed

        return changed if name in ("q_norm", "k_norm") else norm

    monkeypatch.setattr(Arithmetic, "layer_norm", layer_norm)
    if not is_rotated:
        monkeypatch.setattr(attention, "rotate", lambda x, turns: x)
    assert first_moved(run(EMBED, ("aggregator.embed", "frame.0.self_attn"))) == "frame.0.self_attn"


# The camera head

POSES = ("frame.3.mlp", "global.3.mlp", "camera.*", "pose_enc.*")


@functools.cache
def cameras():
    """The camera head, compiled once, of any parameters and layers."""
    module = VGGT(dataclasses.replace(CONFIG, camera_iterations=2))
    return jax.jit(lambda params, start: module.apply({"params": params}, start=start, capture=POSES, head=False))


def moved_camera(start, params):
    found = named_arrays(cameras()(params, start))
    return first_moved({name: CASE().stored(name, array) for name, array in found.items() if "." in name})


@pytest.mark.slow
def test_global_before_frame_block_where_heads_read():
    layers, params = golden_layers(CASE(), *LAST), golden_backbone().params
    assert moved_camera(layers, params) is None
    layers.activations = dict(zip(LAST, reversed(layers.activations.values()), strict=True))
    swapped = named_arrays(cameras()(params, layers))
    assert first_moved({name: swapped[name] for name in swapped if name.startswith("camera.")}) == "camera.0.0.self_attn"


@pytest.mark.slow
def test_scale_before_shift():
    def swap(leaf):
        shift, scale, gate = np.split(leaf, 3, axis=-1)
        return np.concatenate([scale, shift, gate], axis=-1)

    params = golden_backbone().params
    for leaf in ("kernel", "bias"):
        params = with_leaf(params, ("camera_head", "modulation", leaf), swap)
    assert moved_camera(golden_layers(CASE(), *LAST), params) == "camera.0.0.self_attn"


@pytest.mark.slow
def test_the_pose_after_its_relu_fed_back(monkeypatch):
    def clipped(raw):
        return jnp.concatenate([raw[..., :7], jax.nn.relu(raw[..., 7:])], axis=-1)

    monkeypatch.setattr(camera, "lax", types.SimpleNamespace(scan=lax.scan, stop_gradient=clipped))
    assert (CASE().arrays["pose_enc.0"][..., 7:] == 0).any()
    assert first_moved(run(LAST, ("camera.*", "pose_enc.*"))) == "camera.1.0.self_attn"


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], None),
        ([0, 1, 2, 6, 3, 4, 5, 7, 8], "extrinsic"),
        ([0, 1, 2, 3, 4, 5, 6, 8, 7], "intrinsic"),
    ],
    ids=["as it is", "scalar first", "width first"],
)
def test_order_of_a_pose_encoding(order, first):
    case = CASE()
    found = jax.jit(cameras_of, static_argnums=1)(case.arrays["pose_enc.3"][..., order], case.images.shape[2:4])
    assert first_moved({"extrinsic": found.extrinsics, "intrinsic": found.intrinsics}) == first


# The DPT heads


def moved_map(name="depth_head", outputs=2):
    """The first array of one frame that moves in a DPT head that is given the original's layers, traced anew."""
    case = CASE()
    place, size = case.case["dpt_internals"], case.images.shape[2:4]
    of_frame = [
        np.concatenate([case.arrays[f"{kind}.{pair}.mlp"][place["batch"], place["frame"], 5:] for kind in ("frame", "global")], axis=-1)
        for pair in CONFIG.dpt_layers
    ]
    maps = [tokens.reshape(1, *GRID, -1) for tokens in of_frame]
    head = dpt.PositionedDPT(outputs, CONFIG.dpt_channels, CONFIG.dpt_width)
    found = jax.jit(lambda params, *maps: head.apply({"params": params}, *maps, size=size))(golden_backbone().params[name], *maps)
    first = first_moved(
        {f"{name}.level.{k}": np.moveaxis(x[0], -1, 0) for k, x in enumerate(found.levels)}
        | {f"{name}.fused": np.moveaxis(found.fused[0], -1, 0)}
    )
    if first is not None:
        return first
    depth = case.arrays["depth"][place["batch"], place["frame"]]
    return None if relative_error(jnp.exp(found.raw[0, ..., :1]), depth) <= 2 * case.float32_error("depth") else "depth"


def no_positions(height, width, channels, size):
    return np.zeros((1, width, channels), np.float32), np.zeros((height, 1, channels), np.float32)


def positions_at_taps(height, width, channels, size):
    return (no_positions if (height, width) == size else positions)(height, width, channels, size)


def skipping(width, skip_relu, **owner):
    return ResidualUnit(width, **owner)


def unaligned(x, size):
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear")


MISTAKES = {
    "none": ("positions", positions, None),
    "the skip of a residual unit carries x": ("ResidualUnit", skipping, "depth_head.fused"),
    "no positions": ("positions", no_positions, "depth_head.level.0"),
    "positions only at the taps": ("positions", positions_at_taps, "depth"),
    "bilinear steps without aligned corners": ("resize_aligned", unaligned, "depth_head.fused"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_maps(mistake, monkeypatch):
    name, wrong, first = MISTAKES[mistake]
    for place in (dpt, heads):
        if hasattr(place, name):
            monkeypatch.setattr(place, name, wrong)
    assert moved_map() == first


def test_points_activated_as_dust3rs_are():
    case = CASE()
    points, conf = (case.arrays[name].astype(np.float64) for name in ("world_points", "world_points_conf"))
    raw = np.concatenate([np.sign(points) * np.log1p(np.abs(points)), np.log(conf - 1)[..., None]], axis=-1).astype(np.float32)
    ours = jax.jit(module._points)(raw)
    assert first_moved({"world_points": ours["pts3d"], "world_points_conf": ours["conf"]}) is None
    dust3rs = jax.jit(lambda raw: to_pointmap(raw, CONFIG.depth_mode, CONFIG.conf_mode))(raw.reshape(-1, *raw.shape[2:]))
    assert first_moved({"world_points": dust3rs["pts3d"].reshape(points.shape)}) == "world_points"
    assert first_moved({"world_points_conf": dust3rs["conf"].reshape(conf.shape)}) is None
