"""Studies and report on a model whose attention between the views reads all of them, and special tokens too: VGGT, with random weights."""

import functools

import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.walls import GRID, wall_pairs
from und3rstand_jax.analysis import true_place_heads
from und3rstand_jax.analysis.ablations import replacements
from und3rstand_jax.analysis.attention_keys import keys_of
from und3rstand_jax.analysis.attention_maps import attention_maps, held_bytes, pool_attention, pool_of
from und3rstand_jax.analysis.head_use import check_attention
from und3rstand_jax.analysis.inputs import Inputs
from und3rstand_jax.analysis.own_head import lens_captures, lens_layers, lens_start
from und3rstand_jax.analysis.pair_passes import block_flops
from und3rstand_jax.analysis.steps import kinds_of, pattern_of, words_of
from und3rstand_jax.analysis.studies.heads.measures import measure_heads
from und3rstand_jax.analysis.studies.knock_out.sets import BETWEEN, layer_sets
from und3rstand_jax.analysis.studies.knock_out.sweeps import measure
from und3rstand_jax.analysis.studies.study import Setting
from und3rstand_jax.analysis.true_place_attention import both_true_places
from und3rstand_jax.analysis.true_place_heads import true_place_shares
from und3rstand_jax.geometry.metrics import normalised_errors
from und3rstand_jax.model import sites
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.families import backbone_module, backbone_shapes
from und3rstand_jax.model.vggt.config import VGGTConfig
from und3rstand_jax.support.errors import CheckpointError

pytestmark = pytest.mark.quick

DPT = {"dpt_width": 16, "dpt_channels": (8, 8, 8, 8), "dpt_layers": (0, 0, 1, 1)}
CAMERA = {"camera_depth": 1, "camera_num_heads": 2, "camera_iterations": 1}
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_registers": 1, "enc_depth": 1, "enc_num_heads": 2}
TINY = VGGTConfig((64, 64), patch_size=16, **SMALL, **CAMERA, **DPT)
SPECIAL, PATCHES = 2, 16
TOKENS = SPECIAL + PATCHES
GRIDS = (GRID, GRID)


@functools.cache
def model() -> Backbone:
    """Weights that let every part count: norms of 1, all else small."""
    random, tree = np.random.default_rng(0), {}
    for path, shape in backbone_shapes(TINY).items():
        *parents, name = path.split("/")
        node = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)
        drawn = random.normal(size=shape) / np.sqrt(np.prod(shape[-2:-1]))
        node[name] = np.float32({"scale": 1.0, "gamma": 0.5}.get(name, 0.5 * drawn) * np.ones(shape))
    return Backbone(backbone_module(TINY), tree)


def views(count: int, pairs: int = 1) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(1).uniform(-1, 1, (count, pairs, 64, 64, 3)).astype(np.float32))


def test_steps_are_named_by_what_tells_them_apart():
    kinds = kinds_of(TINY)
    assert kinds.steps == ("frame.self_attn", "frame.mlp", "global.self_attn", "global.mlp")
    assert kinds.attentions == ("global.self_attn", "frame.self_attn")
    assert pattern_of(kinds.across, TINY, "heads") == "global.*.self_attn.heads"
    assert [words_of(kind) for kind in kinds.steps] == ["frame attention", "frame MLP", "global attention", "global MLP"]


def test_keys_are_told_apart_by_view_and_special_tokens():
    across, own = (keys_of(TINY, step, GRIDS, 1) for step in ("global.0.self_attn", "frame.0.self_attn"))
    assert across.patches == {0: slice(2, 18), 1: slice(20, 36)} and across.special == SPECIAL and not across.are_plain
    assert np.flatnonzero(across.is_special).tolist() == [0, 1, 18, 19]
    assert own.patches == {1: slice(2, 18)} and len(own.is_special) == TOKENS


def test_products_of_the_blocks_are_counted():
    tokens, width = TOKENS, TINY.embed_dim
    own = 4 * width**2 * 2 * tokens + 2 * width * 2 * tokens**2
    across = 4 * width**2 * 2 * tokens + 2 * width * (2 * tokens) ** 2
    assert block_flops(TINY, GRIDS) == 2 * TINY.depth * (own + across + 2 * 2 * TINY.mlp_ratio * width**2 * 2 * tokens)


@pytest.fixture(scope="module")
def setting() -> Setting:
    pairs = wall_pairs(0.0, 16.0)
    return Setting(model(), None, pairs, batch_size=2)


def test_what_heads_look_at_is_what_the_captured_weights_say(setting):
    found = measure_heads(setting)
    output = setting.backbone(*setting.pairs.views, capture=("*.1.self_attn.weights",), head=False)
    across, frame = (output[f"{kind}.1.self_attn.weights"] for kind in ("global", "frame"))
    for view in (0, 1):
        weights = np.asarray(across[view])[:, :, SPECIAL:]
        own, other = (weights[..., TOKENS * of + SPECIAL : TOKENS * (of + 1)] for of in (view, 1 - view))
        to_own, to_other = (part.sum(axis=-1).mean(axis=-1) for part in (own, other))
        at = {name.partition("/")[2]: values[:, view, 1] for name, values in found.items() if name.startswith("global.self_attn/")}
        np.testing.assert_allclose(at["to_own"], to_own, rtol=1e-5)
        np.testing.assert_allclose(at["to_other"], to_other, rtol=1e-5)
        np.testing.assert_allclose(at["to_special"], 1 - to_own - to_other, rtol=1e-4)
        taken = weights.mean(axis=2)
        np.testing.assert_allclose(at["sink"], taken.max(axis=-1), rtol=1e-5)
        np.testing.assert_array_equal(at["sink_special"], np.isin(taken.argmax(axis=-1), [0, 1, 18, 19]))
        entropy = -(weights * np.log(weights)).sum(axis=-1).mean(axis=-1) / np.log(2 * TOKENS)
        np.testing.assert_allclose(at["entropy"], entropy, rtol=1e-4)
        places = [both_true_places(truth, GRIDS)[view] for truth in setting.pairs.truths]
        for number, place in enumerate(places):
            mass = (other[number] * place.near).sum(axis=-1)[:, place.seen].mean(axis=-1)
            np.testing.assert_allclose(at["mass"][number], mass, rtol=1e-4)
            near = np.take_along_axis(place.near, other[number].argmax(axis=-1).T, axis=1)[place.seen].mean(axis=0)
            np.testing.assert_allclose(at["near"][number], near, rtol=1e-5)
        of_frame = np.asarray(frame[view])[:, :, SPECIAL:]
        to_special = of_frame[..., :SPECIAL].sum(axis=-1).mean(axis=-1)
        np.testing.assert_allclose(found["frame.self_attn/to_special"][:, view, 1], to_special, rtol=1e-4)
    assert "frame.self_attn/to_own" not in found and "frame.self_attn/mass" not in found


@pytest.mark.slow
def test_the_lens_puts_a_pairs_streams_where_the_head_reads_later_ones():
    given = views(2)
    assert lens_layers(TINY) == ("global.0.mlp", "global.1.mlp")
    output = model()(*given, capture=lens_captures(lens_layers(TINY), TINY), head="points")
    edits = sum(
        (
            u3d.replace(f"{kind}.1.mlp", np.asarray(output[f"{kind}.0.mlp"][view - 1]), view)
            for kind in ("frame", "global")
            for view in (1, 2)
        ),
        start=u3d.Edits(),
    )
    expected = model()(*given, capture=(), head="points", edits=edits)
    for layer, of in (("global.0.mlp", expected), ("global.1.mlp", output)):
        read = model()(start=lens_start(output, layer, TINY, norm=True), capture=(), head="points")
        for view in (0, 1):
            np.testing.assert_allclose(read.pointmaps[view]["pts3d"], of.pointmaps[view]["pts3d"], rtol=1e-3, atol=1e-5)
    assert np.abs(np.asarray(expected.pred1["pts3d"] - output.pred1["pts3d"])).max() > 1e-3


@pytest.mark.slow
def test_blocked_from_one_another_view_1_is_as_alone(setting):
    sets = [one for one in layer_sets(TINY) if one.kind == BETWEEN]
    assert [one.name for one in sets][:3] == [
        "all global attention to the other view",
        "global attention to the other view of view 1",
        "global attention to the other view of view 2",
    ]
    unedited, rows = measure(setting, range(setting.count), sets[:1])
    one, _ = setting.pairs.views
    alone = setting.backbone(one, capture=(), head="points").pred1["pts3d"]
    blocked = u3d.Edits()
    for view, keys in ((1, range(TOKENS, 2 * TOKENS)), (2, range(TOKENS))):
        blocked += u3d.block_attention(f"global.*.self_attn@{view}", keys=list(keys))
    expected = setting.backbone(*setting.pairs.views, capture=(), head="points", edits=blocked)
    np.testing.assert_allclose(expected.pred1["pts3d"], alone, rtol=1e-3, atol=1e-5)
    assert rows[0].by == "blocked" and not np.array_equal(rows[0].values["view2"], unedited["view2"])
    errors = normalised_errors(expected.pointmaps, setting.pairs.truth.truth)
    np.testing.assert_allclose(rows[0].values["view2"], errors[1], rtol=1e-3)


@pytest.mark.slow
def test_special_tokens_have_means_of_their_own(setting):
    site = "global.0.self_attn.heads"
    found = replacements(setting.backbone, setting.pairs.views, [(site, 2)], "mean", 1, 1.0, 0, False)[site, 2]
    values = np.asarray(setting.backbone(*setting.pairs.views, capture=site, head=False)[site][1])
    np.testing.assert_allclose(found[:, :SPECIAL], values[:, :SPECIAL].mean(axis=0, keepdims=True), rtol=1e-4, atol=1e-6)
    patches = values[:, SPECIAL:].mean(axis=(0, 1), keepdims=True)
    np.testing.assert_allclose(found[:, SPECIAL:], np.repeat(patches, PATCHES, axis=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("most", [sites._MOST_BYTES, 4 * (3 * TOKENS) ** 2])
def test_attention_maps_come_block_by_block_pooled_and_without_special_tokens(most, monkeypatch):
    given = Inputs("three views", views(3), None, {})
    names = [f"global.{block}.self_attn.weights" for block in range(2)]
    output = model()(*given.views, capture=names, head=False)
    # All heads of a block in one array, or too large for that.
    monkeypatch.setattr(sites, "_MOST_BYTES", most)
    maps = {pool: attention_maps(model(), given, pool) for pool in (1, 2)}
    for block, name in enumerate(names):
        assert maps[1][block].keys == ((1, 2, 3),) * 3
        for view in (1, 2, 3):
            weights = np.asarray(output[name][view - 1])[0, :, SPECIAL:]
            for other in (1, 2, 3):
                expected = weights[..., TOKENS * (other - 1) + SPECIAL : TOKENS * other]
                np.testing.assert_allclose(maps[1][block].between(view, other, (GRID,) * 3), expected, rtol=1e-4, atol=1e-6)
                pooled = maps[2][block].between(view, other, ((2, 2),) * 3)
                np.testing.assert_allclose(pooled, pool_attention(expected, GRID, GRID, 2), rtol=1e-4, atol=1e-6)
    large = VGGTConfig()
    assert pool_of(TINY, GRIDS) == 1 and pool_of(large, ((37, 37),) * 4) == 3
    assert held_bytes(large, ((37, 37),) * 4, 3) == 4 * 24 * 16 * (4 * 13 * 13) ** 2


def test_shares_on_true_places_are_the_same_block_by_block_and_in_groups_of_heads(monkeypatch):
    pairs = wall_pairs(8.0, 12.0, -8.0)
    together = true_place_shares(model(), pairs)
    assert len(together) == 2 * 2 * 2 and all(0 < share < 1 for share in together.values())
    monkeypatch.setattr(true_place_heads, "_ATTENTION_AT_ONCE", 1)
    monkeypatch.setattr(sites, "_MOST_BYTES", 4 * (2 * TOKENS) ** 2)  # one head
    apart = true_place_shares(model(), pairs)
    assert apart.keys() == together.keys()
    np.testing.assert_allclose([*apart.values()], [*together.values()], rtol=1e-4)


def test_the_weights_of_a_block_are_captured_in_parts_that_are_not_too_large():
    large = VGGTConfig()
    for grids in (((37, 37),) * 2, ((28, 37),) * 4, ((37, 37),) * 4, ((37, 37),) * 11):
        parts = sites.weights_in_parts("global.0.self_attn", large, grids, batch=1)
        sites.check_captures(parts, large, grids, 1)
        assert [head for part in parts for head in sites.parse_site(part).heads] == list(range(16))
    assert sites.weights_in_parts("global.0.self_attn", large, ((28, 37),) * 4, batch=1) == (
        "global.0.self_attn.weights:0-14",
        "global.0.self_attn.weights:15",
    )


def test_single_heads_in_a_report_are_for_attention_to_others_alone():
    with pytest.raises(CheckpointError, match=r"this one's \(global.0.self_attn\) reads a view's own tokens too"):
        check_attention(TINY)
    check_attention(u3d.BackboneConfig())
