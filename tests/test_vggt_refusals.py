"""What VGGT does not do is refused with a message, before anything is computed; edits in words that only it has, as files and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.vggt_golden_models import SMALL, pictures, small
from und3rstand_jax.model import sites
from und3rstand_jax.model.edit_files import edits_to_json
from und3rstand_jax.model.edits import Edit, Edits
from und3rstand_jax.model.output import BackboneOutput, Cameras
from und3rstand_jax.model.site_edits import resolve_edits

SIZE, GRID, TOKENS = (28, 42), (2, 3), 11


def one(site, view="all", **what):
    return Edits((Edit(site, view, **what),))


def test_no_views_are_refused():
    with pytest.raises(u3d.OptionError, match="takes the views' images"):
        small()()
    with pytest.raises(u3d.OptionError, match="takes one view or more; found 0"):
        SMALL.check_view_count(0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((28, 42), (28, 56)), r"takes views of one size; found view1 28×42, view2 28×56: pad or crop them to one"),
        (((28, 42), (42, 28), (28, 42)), r"view1 28×42, view2 42×28, view3 28×42"),
        (((28, 40),), r"view1 is 28×40; both sides must be multiples of 14"),
        (((28, 42), (32, 48)), r"view2 is 32×48; both sides must be multiples of 14"),
    ],
)
def test_sizes(sizes, message):
    with pytest.raises(u3d.ImageError, match=message):
        small()(*(np.zeros((1, *size, 3), np.float32) for size in sizes), head=False, capture="encoder.norm")


@pytest.mark.parametrize(
    ("capture", "most", "message"),
    [
        (
            "global.0.self_attn.weights",
            4 * 2 * 4 * 22 * 22 - 1,
            r"global\.0\.self_attn\.weights of 2 views would take .* GB; choose a head",
        ),
        (
            "global.1.self_attn.scores:1-2",
            4 * 2 * 2 * 22 * 22 - 1,
            r"queries \(global\.1\.self_attn\.scores#0-9\), or global\.1\.self_attn\.mass",
        ),
        ("global.1.self_attn.weights:1#0-3", 4 * 2 * 1 * 8 * 22 - 1, r"global\.1\.self_attn\.weights:1#0-3 of 2 views"),
    ],
)
def test_captures_that_would_be_too_large(capture, most, message, monkeypatch):
    monkeypatch.setattr(sites, "_MOST_BYTES", most)
    with pytest.raises(u3d.LayerError, match=message):
        small()(*pictures(2, SIZE, 2), capture=capture, head=False)
    monkeypatch.setattr(sites, "_MOST_BYTES", most + 1)
    sites.check_captures([capture, "global.0.self_attn.mass", "frame.0.self_attn.weights"], SMALL, (GRID, GRID), 2)


def test_queries_that_a_view_does_not_have():
    with pytest.raises(u3d.LayerError, match=r"#9-11 asks for queries that not every view has: there are 11, 0 to 10"):
        sites.check_captures(["global.0.self_attn.weights:0#9-11"], SMALL, (GRID, GRID), 1)
    sites.check_captures(["global.0.self_attn.weights:0#9-10"], SMALL, (GRID, GRID), 1)


def test_patches_and_special_tokens_are_those_of_layers_and_of_what_has_their_tokens():
    tokens, heads = np.arange(11.0).reshape(1, 11, 1), np.arange(22.0).reshape(1, 11, 2, 1)
    given = {"global.0.mlp": (tokens,), "global.0.self_attn.heads": (heads,), "global.0.self_attn.weights:0": (np.zeros((1, 1, 11, 11)),)}
    output = BackboneOutput(given, (SIZE,), special_tokens={"global.0.mlp": 5, "global.0.self_attn": 5})
    assert output.patches("global.0.mlp")[0].ravel().tolist() == [5, 6, 7, 8, 9, 10]
    assert output.special("global.0.mlp")[0].ravel().tolist() == [0, 1, 2, 3, 4]
    assert output.patches("global.0.self_attn.heads")[0].shape == (1, 6, 2, 1)
    with pytest.raises(u3d.LayerError, match=r"global\.0\.self_attn\.weights:0 does not split into patches and special tokens"):
        output.patches("global.0.self_attn.weights:0")
    patched = u3d.patch_from(output, "global.0.mlp", tokens="patches")
    (edit,) = patched
    assert edit.tokens == "patches" and np.ravel(edit.shift).tolist() == [5, 6, 7, 8, 9, 10]


def test_captures_of_what_there_is_not():
    for capture, message in (
        ("global.2.mlp", r"no layer matches 'global\.2\.mlp'; the nearest are global\.[01]\.mlp"),
        ("global.0.self_attn.weights:4", r"there are 4, 0 to 3"),
        ("global.0.self_attn.heads#0", r"only \.scores, \.weights and \.mass have queries"),
        ("global.0.self_attn.mass#3-2", r"queries are written #H, or #H-K with H ≤ K"),
        ("frame.0.cross_attn.weights", r"no attention map matches"),
        ("camera.9.0.mlp", r"no layer matches"),
        ("track_head.level.0", r"no layer matches"),
    ):
        with pytest.raises(u3d.LayerError, match=message):
            small()(*pictures(1, SIZE), capture=capture, head=False)
    with pytest.raises(u3d.OptionError, match="no head 'tracks'; its heads are: camera, depth, points"):
        small()(*pictures(1, SIZE), head="tracks")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (one("camera.0.0.mlp", scale=0), r"'camera\.0\.0\.mlp': values inside heads can be captured but not edited"),
        (one("pose_enc.1", scale=0), r"inside heads can be captured but not edited"),
        (one("depth_head.fused", scale=0), r"inside heads can be captured but not edited; edit a layer that the head reads"),
        (one("patch_embed", tokens="special", scale=0), r"patch_embed has no special tokens; choose tokens by their indices, or patches"),
        (one("patch_embed", tokens=[6], scale=0), r"there are 6 tokens, 0 to 5; found \[6\]"),
        (one("encoder.norm", tokens=[11], scale=0), r"there are 11 tokens, 0 to 10; found \[11\]"),
        (u3d.block_attention("frame.0.self_attn", 1, key_views=[2]), r"view 1 attends to tokens of views 1 here; found key_views \[2\]"),
        (
            u3d.block_attention("encoder.0.self_attn", 2, key_views=[1, 2]),
            r"view 2 attends to tokens of views 2 here; found key_views \[1\]",
        ),
        (
            u3d.block_attention("global.0.self_attn", 1, key_views=[3]),
            r"view 1 attends to tokens of views 1, 2 here; found key_views \[3\]",
        ),
        (u3d.block_attention("global.0.self_attn", keys=[11], key_views=[2]), r"there are 11 keys of view 2, 0 to 10; found \[11\]"),
        (u3d.block_attention("global.0.self_attn", keys=[22]), r"there are 22 keys, 0 to 21; found \[22\]"),
        (u3d.block_attention("global.0.self_attn", 2, key_views=[1, 2]), r"every key of every query is blocked"),
        (
            u3d.block_attention("global.0.self_attn", 2, queries="special", key_views=[1, 2]),
            r"every key of queries \[0, 1, 2, 3, 4\] is blocked",
        ),
        (u3d.knock_out("global.0.mlp", view=3), r"there are 2 views, 1 to 2; found view 3"),
    ],
)
def test_edits_of_what_there_is_not(edits, message):
    with pytest.raises(u3d.EditError, match=message):
        resolve_edits(edits, SMALL, (GRID, GRID), 1)


def test_edits_that_contradict_themselves(unchecked):
    for make, message in (
        (lambda: Edit("global.0.self_attn.scores", pairs=[(0, 1)], key_views=[1]), "by pairs, or by queries and keys, not by both"),
        (lambda: Edit("global.0.self_attn.mass", scale=0), r"mass is read-only, .*; edit global\.0\.self_attn\.scores"),
        (lambda: Edit("global.0.mlp", key_views=[1]), r"has no key_views to choose"),
        (lambda: Edit("global.0.self_attn.scores", key_views=[1, 1]), "at least one place, and none twice"),
        (lambda: Edit("global.0.self_attn.scores#0-2", queries=[1]), "names queries, and queries=.* are given too"),
        (lambda: Edit("global.0.mlp", tokens="registers"), r"tokens must be a list, such as \[0\]; found 'registers'"),
    ):
        with pytest.raises(u3d.EditError, match=message):
            make()


def test_words_for_places_mean_their_numbers():
    words = one("global.0.self_attn.scores", 1, heads=[2], queries="special", keys="patches", key_views=[2], scale=0.5)
    in_numbers = one("global.0.self_attn.scores", 1, heads=[2], queries=range(5), keys=range(16, 22), scale=0.5)
    words += one("frame.1.mlp", tokens="patches", shift=1.0) + u3d.block_attention("encoder.0.self_attn", 2, keys="special", key_views=[2])
    in_numbers += one("frame.1.mlp", tokens=range(5, 11), shift=1.0) + u3d.block_attention("encoder.0.self_attn", 2, keys=range(5))
    found, expected = (resolve_edits(edits, SMALL, (GRID, GRID), 1) for edits in (words, in_numbers))
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found["global.0.self_attn.scores"][1] is None


def test_edits_go_through_json(tmp_path):
    edits = u3d.block_attention("global.*.self_attn", 1, key_views=[2, 3]) + one("frame.0.mlp", tokens="patches", shift=np.arange(64.0))
    edits += one("global.1.self_attn.scores#0-4", heads=[1], keys="special", key_views=[1], scale=0.5) + u3d.knock_out(
        "patch_embed", 2, tokens=[3]
    )
    written, arrays = edits_to_json(edits)
    (tmp_path / "edits.json").write_text(json.dumps(written))
    np.savez(tmp_path / "edits.npz", **arrays)
    back = u3d.read_edits(tmp_path / "edits.json")
    assert [spec.get("key_views") for spec in written] == [[2, 3], None, [1], None]
    assert [spec.get("tokens") for spec in written] == [None, "patches", None, [3]]
    assert edits_to_json(back)[0] == written
    for one_edit, other in zip(edits, back, strict=True):
        for field in ("site", "view", "heads", "tokens", "queries", "keys", "pairs", "key_views"):
            assert getattr(one_edit, field) == getattr(other, field)
    for wrong in ({"key_views": [0]}, {"key_views": "all"}, {"keys": "registers"}):
        with pytest.raises(u3d.EditError):
            u3d.read_edits([{"site": "global.0.self_attn.scores", **wrong}])


def test_outputs_with_cameras_are_pytrees():
    def output(batch):
        def filled(*shape):
            return jnp.arange(np.prod((batch, *shape)), dtype=jnp.float32).reshape(batch, *shape)

        cameras = Cameras(filled(2, 3, 4), filled(2, 3, 3), jnp.moveaxis(filled(3, 2, 9), 1, 0))
        maps = [{"pts3d": filled(*SIZE, 3), "conf": filled(*SIZE), "depth": filled(*SIZE), "depth_conf": filled(*SIZE)}] * 2
        return BackboneOutput(
            {"global.1.mlp": (filled(TOKENS, 4),) * 2, "patch_embed": (filled(6, 4),) * 2}, (SIZE,) * 2, maps, cameras, {"global.1.mlp": 5}
        )

    found = jax.device_get(jax.jit(lambda x: jax.tree.map(lambda leaf: 2 * leaf, x))(output(1)))
    assert isinstance(found, BackboneOutput) and isinstance(found.cameras, Cameras) and isinstance(found.cameras.extrinsics, np.ndarray)
    np.testing.assert_array_equal(found.cameras.intrinsics, 2 * np.asarray(output(1).cameras.intrinsics))
    assert [x.shape for x in found.special("global.1.mlp")] == [(1, 5, 4)] * 2 and [x.shape for x in found.patches("patch_embed")] == [
        (1, 6, 4)
    ] * 2
    assert [x.shape for x in found.depth] == [(1, *SIZE)] * 2 and found.image_sizes == (SIZE, SIZE)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), output(1), output(1), output(1))
    through = jax.vmap(lambda x: x)(many)
    assert through.cameras.pose_encodings.shape == (3, 3, 1, 2, 9) and through.special_tokens == {"global.1.mlp": 5}
    assert jax.eval_shape(lambda: BackboneOutput({}, (SIZE,))).cameras is None
