"""The PyTorch VGGT against the original's own outputs, and its edits against what can be worked out without them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.golden_cases import GOLDEN, relative_error
from tests.golden_vggt import FULL_CASE, SMALL_CASE, VGGTCase, load_vggt_case
from tests.with_torch import HAS_TORCH, needs_torch

if HAS_TORCH:
    import torch

    from tests.torch_reference import VGGTConfig, VGGTOutput, VGGTReference, load_vggt
    from tests.torch_reference.vggt_blocks import exact
    from tests.torch_reference.vggt_heads import cameras

pytestmark = needs_torch

# What rounding float64 to float32 leaves: 2**-25 of the largest, and less of the norm.
STORAGE_ERROR = 6e-8

Arrays = dict[str, np.ndarray]

golden = functools.cache(load_vggt_case)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of small products: where other processes keep the cores busy, threads that wait for each other took 50 times as long."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference(case: VGGTCase, dtype: str = "float64", attention: str = "sdpa") -> VGGTReference:
    return load_vggt(VGGTConfig.of_case(case.config), case.state_dict, attention).to(getattr(torch, dtype))


def run(model: VGGTReference, images: np.ndarray, **options: Any) -> VGGTOutput:
    with torch.inference_mode():
        return model(torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(model.camera_head.empty_pose_tokens.dtype), **options)


def named_arrays(output: VGGTOutput) -> Arrays:
    others = {name: value for name, value in output._asdict().items() if name not in ("activations", "pose_enc")}
    return {name: value.to(exact(value)).numpy() for name, value in (output.activations | others).items()}


def errors(case: VGGTCase, output: VGGTOutput) -> dict[str, float]:
    arrays = named_arrays(output)
    assert arrays.keys() == case.arrays.keys()
    return {name: relative_error(case.stored(name, array), case.arrays[name]) for name, array in arrays.items()}


def excessive(case: VGGTCase, output: VGGTOutput) -> dict[str, float]:
    """Ratios above 2 to the original's own error in float32."""
    ratios = {name: error / case.float32_error(name) for name, error in errors(case, output).items()}
    return {name: ratio for name, ratio in ratios.items() if ratio > 2}


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_golden_in_float64(attention: str) -> None:
    case = golden(SMALL_CASE)
    found = errors(case, run(reference(case, attention=attention), case.images))
    assert {name: error for name, error in found.items() if error > STORAGE_ERROR} == {}


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_golden_in_float32(attention: str) -> None:
    case = golden(SMALL_CASE)
    assert excessive(case, run(reference(case, "float32", attention), case.images)) == {}


@pytest.mark.slow
def test_golden_full_size() -> None:
    case = load_vggt_case(FULL_CASE)
    assert excessive(case, run(reference(case, "float32"), case.images)) == {}


def test_names_shapes_and_order_are_the_originals() -> None:
    config = VGGTConfig.of_case(load_vggt_case(FULL_CASE, with_weights=False).config)
    with torch.device("meta"):
        model = VGGTReference(config)
    rows = [tuple(line.split("\t")) for line in (GOLDEN / "vggt_1b.keys.tsv").read_text().splitlines()[1:]]
    expected = [row for row in rows if not row[0].startswith("track_head.")]
    assert [(name, "x".join(map(str, t.shape))) for name, t in model.state_dict().items()] == expected
    assert (len(rows), sum(t.numel() for t in model.parameters())) == (1797, 1_190_596_120)


def test_a_track_head_is_left_out_and_all_else_must_fit() -> None:
    case = golden(SMALL_CASE)
    config = VGGTConfig.of_case(case.config)
    extra = {"track_head.tracker.fmap_norm.weight": np.ones(4, np.float32)}
    assert load_vggt(config, case.state_dict | extra).state_dict().keys() == case.state_dict.keys()
    with pytest.raises(RuntimeError, match="Unexpected key.*head.more"):
        load_vggt(config, case.state_dict | {"head.more": np.ones(4, np.float32)})


def test_cameras_are_the_originals() -> None:
    with np.load(GOLDEN / "utils_vggt.npz") as file:
        encoding, *expected = (file[f"camera/{name}"] for name in ("pose_enc", "extrinsic", "intrinsic"))
    for ours, original in zip(cameras(torch.from_numpy(encoding), 392, 518), expected, strict=True):
        np.testing.assert_allclose(ours, original, rtol=1e-12, atol=1e-12)


@functools.cache
def few_images() -> np.ndarray:
    """One scene of three frames of 2×3 patches."""
    return golden(SMALL_CASE).images[:1, :, :28, :42]


@functools.cache
def model(attention: str = "plain") -> VGGTReference:
    return reference(golden(SMALL_CASE), attention=attention)


@functools.cache
def unedited() -> Arrays:
    return named_arrays(run(model(), few_images()))


def edit(site: str, view: int | str = "all", scale: float = 1, shift: Any = 0, **places: Any) -> dict[str, Any]:
    return {"site": site, "view": view, "scale": scale, "shift": shift, **places}


def run_edited(*edits: dict[str, Any], images: np.ndarray | None = None, **options: Any) -> Arrays:
    return named_arrays(run(model(), few_images() if images is None else images, edits=edits, **options))


def furthest(ours: Arrays, expected: Arrays) -> float:
    """The largest relative error. Intrinsics, which may be infinite, are a function of `pose_enc.3`."""
    return max(relative_error(ours[name], array) for name, array in expected.items() if name != "intrinsic")


def test_recording_changes_nothing() -> None:
    bare = run(model(), few_images(), record=False)
    assert bare.activations == {}
    np.testing.assert_array_equal(bare.world_points.numpy(), unedited()["world_points"])


def test_images_of_the_stored_size_and_single_frames_are_taken() -> None:
    image = golden(SMALL_CASE).images[:1, :1, :, :84]
    images = np.concatenate([image, image], axis=2)[:, :, :84]
    output = run(model(), images)
    position = torch.from_numpy(golden(SMALL_CASE).state_dict["aggregator.patch_embed.pos_embed"][:, 1:]).double()
    patches = output.activations["encoder.embed"][:, :, 5:] - output.activations["patch_embed"]
    np.testing.assert_allclose(patches[0], position, atol=1e-12)
    assert output.depth.shape == (1, 1, 84, 84, 1) and output.world_points.isfinite().all()


def test_under_autocast_the_aggregator_runs_in_bfloat16_and_the_heads_in_float32() -> None:
    case = golden(SMALL_CASE)
    with torch.autocast("cpu", torch.bfloat16):
        output = run(reference(case, "float32"), case.images)
    assert {output.depth.dtype, output.pose_enc.dtype, output.activations["global.3.mlp"].dtype} == {torch.float32}
    found = errors(case, output)
    assert 1e-4 < found["global.3.mlp"] < 0.05 and found["world_points_conf"] < 0.05


def test_what_is_inside_a_step_is_what_the_step_is_made_of() -> None:
    step = "global.1.self_attn"
    inside = [f"{step}.{part}" for part in ("scores", "weights", "heads", "update")]
    kept = named_arrays(run(model("sdpa"), few_images(), inside=inside))
    scores, weights, heads, update = (kept[site] for site in inside)
    assert scores.shape == weights.shape == (1, 3, 4, 11, 33) and heads.shape == (1, 3, 11, 4, 16)
    exponential = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(weights, exponential / exponential.sum(-1, keepdims=True), atol=1e-12)
    block = model().aggregator.global_blocks[1]
    with torch.inference_mode():
        expected = block.ls1(block.attn.proj(torch.from_numpy(heads).flatten(-2))).numpy()
    np.testing.assert_allclose(update, expected, atol=1e-12)
    np.testing.assert_allclose(kept["frame.1.mlp"] + update, kept[step], atol=1e-12)
    assert furthest(kept, unedited()) < 1e-12


def test_neutral_edits_at_every_site_change_no_bit() -> None:
    edits = [edit(site) for site in model().config.sites]
    assert len(edits) == 4 + 10 * (2 + 2 + 2)
    after = run_edited(*edits)
    assert [name for name, array in unedited().items() if not np.array_equal(after[name], array)] == []


SITES = (
    *("patch_embed", "encoder.embed", "encoder.1.self_attn.heads", "encoder.0.mlp.update", "encoder.norm", "aggregator.embed"),
    *("frame.1.self_attn.scores", "frame.1.self_attn", "frame.2.mlp", "global.1.self_attn.scores", "global.1.self_attn.heads"),
    *("global.2.self_attn.update", "global.3.mlp"),
)


@pytest.mark.parametrize("site", SITES)
def test_an_edit_is_of_its_frame_alone_until_the_next_global_attention(site: str) -> None:
    after = run_edited(edit(site, 2, -0.5, 0.75, **({"keys": [3]} if site.endswith("scores") else {"tokens": [5]})))
    names = [name for name, array in unedited().items() if not np.array_equal(after[name], array)]
    first = site.removesuffix(".scores").removesuffix(".heads").removesuffix(".update")
    assert names[0] == first
    layers = list(unedited())
    of_all = [name for name in names if not np.array_equal(after[name][:, 0], unedited()[name][:, 0])]
    following = [
        name for name in layers if name.startswith("global.") and name.endswith("self_attn") and layers.index(name) > layers.index(first)
    ]
    # After the last one a patch is only its own frame's: the camera head reads the first token.
    assert of_all[:1] == following[:1]


def test_an_edit_of_a_layer_is_what_it_says() -> None:
    shift = np.arange(64, dtype=np.float32)
    places = edit("frame.1.mlp", 3, 0.5, "a", tokens=[0, 4])
    after = run_edited(places, arrays={"a": shift})["frame.1.mlp"]
    expected = unedited()["frame.1.mlp"].copy()
    expected[:, 2, [0, 4]] = 0.5 * expected[:, 2, [0, 4]] + shift
    np.testing.assert_array_equal(after, expected)


def test_a_head_times_0_is_one_without_its_columns_of_the_projection() -> None:
    other = reference(golden(SMALL_CASE), attention="plain")
    for weights in (other.aggregator.global_blocks[1].attn.proj.weight, other.aggregator.patch_embed.blocks[0].attn.proj.weight):
        weights.data[:, 32:48] = 0
    ours = run_edited(*(edit(f"{site}.self_attn.heads", scale=0, heads=[2]) for site in ("global.1", "encoder.0")))
    expected = named_arrays(run(other, few_images()))
    assert furthest(ours, expected) < 1e-12


def test_frames_that_are_cut_off_from_each_other_are_as_alone() -> None:
    """In every global block each frame sees its own 11 tokens; frame 1, unlike others, has the first frame's tokens alone too."""
    edits = [
        edit(f"global.{i}.self_attn.scores", view, 1, -math.inf, keys=[key for key in range(33) if key // 11 != view - 1])
        for i in range(4)
        for view in (1, 2, 3)
    ]
    together, alone = run_edited(*edits), named_arrays(run(model(), few_images()[:, :1]))
    for name in ("global.0.self_attn", "frame.3.mlp", "global.3.mlp", "depth", "world_points"):
        assert relative_error(together[name][:, :1], alone[name]) < 1e-12
        assert relative_error(unedited()[name][:, :1], alone[name]) > 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (edit("global.4.mlp"), "no site 'global.4.mlp'"),
        (edit("frame.0.mlp.heads"), "no site 'frame.0.mlp.heads'"),
        (edit("frame.0.self_attn.weights"), "no site"),
        (edit("camera.0.0.mlp"), "no site"),
        (edit("frame.0.mlp", 4), "frame.0.mlp: no view 4 among 3"),
        (edit("frame.0.mlp", 0), "no view 0"),
        (edit("frame.0.mlp", heads=[1]), "frame.0.mlp has no heads to choose from"),
    ],
)
def test_what_there_is_not_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_edited(wrong)
