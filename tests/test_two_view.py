"""Whether a model uses both views: against models and data whose answers are known, and the command on a tiny model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.conversion import converted
from tests.strict import one_document
from und3rstand_jax import load_backbone
from und3rstand_jax.analysis.constant_pointmap import best_constant, geometric_median
from und3rstand_jax.analysis.two_views import (
    CONSTANT,
    MODEL,
    OTHER_VIEWS,
    TwoViewResult,
    conditions,
    errors_of,
    format_result,
    predictor,
)
from und3rstand_jax.commands.train import main
from und3rstand_jax.data.example import Example, assemble
from und3rstand_jax.data.loader import Feed, held_out, open_sources, validation_batches
from und3rstand_jax.data.specification import parse_data, scenes_of
from und3rstand_jax.geometry.loss import Target, confidence_loss
from und3rstand_jax.model.backbone import Backbone
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.model.dust3r.module import DUSt3R
from und3rstand_jax.support.errors import UserError

pytestmark = pytest.mark.quick

PAIRS, SIDE = 3, 4
OTHER_VIEW2, GREY_VIEW1, GREY_VIEW2 = "other_view2", "grey_view1", "grey_view2"


def told_points(image):
    """The points that a colour of this file's scenes stands for."""
    return 3 * np.asarray(image) + np.array([0, 0, 4], np.float32)


def reads_colours(*images):
    """A model that knows what the colours mean, in a unit of its own."""
    return tuple({"pts3d": 7 * jnp.asarray(told_points(view)), "conf": jnp.full(view.shape[:3], 2.0)} for view in images)


def scenes(seed=0, pairs=PAIRS, missing=0.2):
    """Pairs whose true points are written in their colours; some pixels have no truth."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (2, pairs, SIDE, SIDE, 3)).astype(np.float32)
    valid = rng.uniform(size=images.shape[:4]) >= missing
    pose = np.tile(np.eye(4, dtype=np.float32), (pairs, 1, 1))
    one, two = (Target(np.where(v[..., None], told_points(i), np.nan), pose, v) for i, v in zip(images, valid, strict=True))
    return Example((images[0], images[1]), (one, two), (pose[:, :3, :3], pose[:, :3, :3]))


def normalised(points, valid):
    """Both views' points over their joint mean distance to the origin, pair by pair."""
    points = [np.asarray(p, np.float64) for p in points]
    sizes = [np.concatenate([np.linalg.norm(p[i][v[i]], axis=-1) for p, v in zip(points, valid, strict=True)]).mean() for i in range(PAIRS)]
    return [p / np.reshape(sizes, (-1, 1, 1, 1)) for p in points]


def expected(images, example):
    """The error of `reads_colours` on these images, by the definition."""
    valid = [target.valid for target in example.targets]
    pred = normalised([told_points(image) for image in images], valid)
    true = normalised([target.pts3d for target in example.targets], valid)
    return [np.linalg.norm(p - t, axis=-1)[v].mean() for p, t, v in zip(pred, true, valid, strict=True)]


def test_a_model_that_says_the_truth_has_no_error_and_wrong_images_give_the_errors_they_must():
    example = scenes()
    (view1, view2), grey = example.images, np.zeros((PAIRS, SIDE, SIDE, 3), np.float32)
    errors, valid = errors_of(reads_colours, (grey[0], grey[0]), [example])
    assert list(errors[MODEL]) == pytest.approx([0, 0], abs=1e-6)
    rolled = np.stack([view2[1], view2[2], view2[0]])
    for name, images in {OTHER_VIEW2: (view1, rolled), GREY_VIEW1: (grey, view2), GREY_VIEW2: (view1, grey)}.items():
        assert list(errors[name]) == pytest.approx(expected(images, example), rel=1e-5), name
        assert max(list(errors[name])) > 0.1
    # The origin is as far from the true points as these are from it: 1 on average over both views.
    counts = [target.valid.sum() for target in example.targets]
    assert list(valid) == counts
    per_pair = [np.linalg.norm(p, axis=-1) for p in normalised([t.pts3d for t in example.targets], [t.valid for t in example.targets])]
    assert list(errors[CONSTANT]) == pytest.approx([p[t.valid].mean() for p, t in zip(per_pair, example.targets, strict=True)], rel=1e-5)


def test_errors_of_several_batches_are_means_over_the_pixels_of_all():
    one, two = scenes(0, missing=0.1), scenes(1, missing=0.8)
    constant = (np.ones((SIDE, SIDE, 3), np.float32),) * 2
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), one, two)
    apart, together = errors_of(reads_colours, constant, [one, two]), errors_of(reads_colours, constant, [both])
    assert list(apart[1]) == list(together[1])
    for name in (CONSTANT, GREY_VIEW1, GREY_VIEW2):  # whose image view 2 gets depends on the batch
        assert list(apart[0][name]) == pytest.approx(list(together[0][name]), rel=1e-5), name


def test_a_view_without_a_valid_pixel_has_no_error():
    example = scenes()
    blind = example.targets[1]._replace(valid=np.zeros_like(example.targets[1].valid))
    errors, valid = errors_of(reads_colours, (np.zeros((SIDE, SIDE, 3)),) * 2, [example._replace(targets=(example.targets[0], blind))])
    assert valid[1] == 0 and np.isnan(errors[MODEL][1]) and errors[MODEL][0] == pytest.approx(0, abs=1e-6)


def test_conditions_show_another_pairs_view_2_or_grey_and_leave_the_rest():
    view1, view2 = scenes().images
    shown = conditions((view1, view2))
    assert list(shown) == [MODEL, OTHER_VIEW2, GREY_VIEW1, GREY_VIEW2]
    np.testing.assert_array_equal(shown[OTHER_VIEW2][1], view2[[1, 2, 0]])
    assert not any(np.array_equal(ours, other) for ours, other in zip(view2, shown[OTHER_VIEW2][1], strict=True))
    for name in (OTHER_VIEW2, GREY_VIEW2):
        np.testing.assert_array_equal(shown[name][0], view1)
    np.testing.assert_array_equal(shown[GREY_VIEW1][1], view2)
    assert not shown[GREY_VIEW1][0].any() and not shown[GREY_VIEW2][1].any()


def test_of_more_views_each_is_replaced_and_then_all_but_the_first():
    images = tuple(np.random.default_rng(view).normal(size=(PAIRS, SIDE, SIDE, 3)).astype(np.float32) for view in range(3))
    shown = conditions(images)
    assert list(shown) == [MODEL, OTHER_VIEW2, "other_view3", OTHER_VIEWS, GREY_VIEW1, GREY_VIEW2, "grey_view3"]
    rolled = [image[[1, 2, 0]] for image in images]
    np.testing.assert_array_equal(shown[OTHER_VIEW2], [images[0], rolled[1], images[2]])
    np.testing.assert_array_equal(shown["other_view3"], [images[0], images[1], rolled[2]])
    np.testing.assert_array_equal(shown[OTHER_VIEWS], [images[0], rolled[1], rolled[2]])
    np.testing.assert_array_equal(shown["grey_view3"], [images[0], images[1], np.zeros_like(images[2])])
    example = scenes()
    three = Example((*example.images, example.images[1]), (*example.targets, example.targets[1]), (example.intrinsics[0],) * 3)
    errors, valid = errors_of(reads_colours, (np.zeros((SIDE, SIDE, 3)),) * 3, [three])
    assert len(valid) == 3 and errors[MODEL] == pytest.approx((0, 0, 0), abs=1e-6) and min(errors[OTHER_VIEWS][1:]) > 0.1
    assert errors[OTHER_VIEW2][1] == pytest.approx(errors["other_view3"][2], rel=1e-5)
    lines = format_result(TwoViewResult(errors, valid, 3, 9, 0)).splitlines()
    assert lines[5].startswith("(d) the model, all images but view 1's of another set")
    assert lines[-1] == "3 held-out sets of 3 views; the constant is of 9 training sets of 3 views"


CORNERS = [[0, 0, 0], [4, 0, 0], [4, 3, 0], [0, 3, 0]]


@pytest.mark.parametrize(
    ("points", "median"),
    [
        ([[1, 2, 3]], [1, 2, 3]),
        ([[0, 0, 0], [1, 1, 1], [9, 9, 9]], [1, 1, 1]),  # on a line: the middle one
        (CORNERS, [2, 1.5, 0]),  # of four corners: where the diagonals meet
        ([*CORNERS, *[[7, 7, 7]] * 5], [7, 7, 7]),  # more than half in one place
        ([[0, 0, 0], [np.nan, 1, 1], [1, 1, 1], [np.nan] * 3, [9, 9, 9]], [1, 1, 1]),
        ([[0, 0, 0], [2, 0, 0], [1, 3**0.5, 0]], [1, 3**-0.5, 0]),  # Fermat's point
    ],
)
def test_geometric_medians_are_the_known_ones(points, median):
    padded = np.full((9, 3), np.nan, np.float32)  # one shape, one program
    padded[: len(points)] = points
    np.testing.assert_allclose(geometric_median(padded[:, None])[0], median, atol=1e-3)
    assert np.isnan(geometric_median(np.full((9, 1, 3), np.nan, np.float32))).all()


def test_a_geometric_median_is_nearer_to_its_points_than_any_place_around_it():
    points = np.random.default_rng(0).standard_cauchy((101, 2, 3)).astype(np.float32)
    found = np.asarray(geometric_median(points))

    def distance(place):
        return np.linalg.norm(points - place, axis=-1).sum(axis=0)

    assert (distance(found) < distance(np.median(points, axis=0))).all() and (distance(found) < distance(points.mean(axis=0))).all()
    for direction in np.concatenate([np.eye(3), -np.eye(3)]):
        assert (distance(found) < distance(found + 0.02 * direction)).all()


def test_the_constant_of_scenes_that_differ_in_size_alone_is_their_truth():
    example = scenes(missing=0)
    same = jax.tree.map(lambda leaf: np.repeat(leaf[:1], PAIRS, axis=0), example)
    sizes = np.float32([1, 20, 0.3]).reshape(-1, 1, 1, 1)
    scaled = same._replace(targets=tuple(target._replace(pts3d=sizes * target.pts3d) for target in same.targets))
    constant = best_constant([scaled], PAIRS)
    errors, _ = errors_of(reads_colours, constant, [scaled])
    assert list(errors[CONSTANT]) == pytest.approx([0, 0], abs=1e-5)
    for points, true in zip(constant, normalised([t.pts3d for t in same.targets], [t.valid for t in same.targets]), strict=True):
        np.testing.assert_allclose(points, true[0], atol=1e-5)


def test_a_pixel_without_truth_gets_the_mean_of_the_others_and_pairs_behind_the_last_do_not_count():
    example = scenes(missing=0)
    for target in example.targets:
        target.valid[:, 0, 0] = False
    first, second = best_constant([example], PAIRS)
    np.testing.assert_allclose(first[0, 0], first.reshape(-1, 3)[1:].mean(axis=0), rtol=1e-5)
    padded = [jax.tree.map(lambda leaf: leaf[:2], example), jax.tree.map(lambda leaf: leaf[[2, 0]], example)]
    for ours, other in zip(best_constant(padded, PAIRS), (first, second), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


def test_a_view_without_any_truth_has_no_constant():
    example = scenes()
    example.targets[1].valid[:] = False
    with pytest.raises(UserError, match="view 2 has no valid pixel in 3 training pairs"):
        best_constant([example], PAIRS)


def test_a_backbone_without_head_is_refused():
    with pytest.raises(UserError, match="has no head"):
        predictor(Backbone(DUSt3R(BackboneConfig(head_type=None)), {}))


def test_the_table_gives_the_models_error_over_each_of_the_others():
    errors = {
        MODEL: (0.1, 0.2),
        CONSTANT: (0.5, 0.4),
        OTHER_VIEW2: (0.125, 0.8),
        GREY_VIEW1: (0.2, 0.0),
        GREY_VIEW2: (0.1, 0.25),
    }
    result = TwoViewResult(errors, (10, 12), 7, 9, 0)
    assert list(result.ratios[CONSTANT]) == pytest.approx([0.2, 0.5])
    assert np.isnan(result.ratios[GREY_VIEW1][1]) and MODEL not in result.ratios
    lines = format_result(result).splitlines()
    assert [line.split()[-4:] for line in lines[2:4]] == [["0.5000", "0.4000", "0.200", "0.500"], ["0.1250", "0.8000", "0.800", "0.250"]]
    assert lines[1].split() == ["the", "model", "0.1000", "0.2000"]
    assert len({len(line) for line in lines[2:6]}) == 1  # aligned
    assert lines[-1] == "7 held-out pairs; the constant is of 9 training pairs"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_views")
    return converted(tiny.save_backbone(folder / "backbone"), folder / "converted")


@pytest.mark.slow
def test_the_command_measures_a_model_on_synthetic_pairs(checkpoint, tmp_path, capsys):
    file = tmp_path / "new" / "figures.json"
    options = ["--pairs", "3", "--batch-size", "2", "--constant-pairs", "3", "--seed", "5", "--out", str(file)]
    assert main(["two-views", str(checkpoint), *options, "--json", "--quiet"]) == 0
    printed, messages = capsys.readouterr()
    found = json.loads(file.read_text())
    assert one_document(printed) == found and messages == ""
    assert found["options"]["seed"] == 5 and found["options"]["data"] == ["synthetic"] and found["options"]["resolution"] == "32x32"
    assert (found["pairs"], found["constant_pairs"], found["unreadable"]) == (3, 3, 0)
    for name, ratio in found["ratios"].items():
        for view in ("view1", "view2"):
            assert ratio[view] == pytest.approx(found["errors"]["model"][view] / found["errors"][name][view])
    # The same three pairs as one batch, by the training loss: without the filling of the last batch.
    feed = Feed(parse_data(("synthetic",)), ((32, 32),), 3, 5, crop_jitter=False)
    sources = open_sources(feed.specs, "val")
    (delivery,) = validation_batches(feed, sources, held_out(feed, sources, 3))
    example = jax.jit(lambda batch: assemble(batch, 5, (32, 32), scenes_of(feed.specs), False))(delivery.batch)
    output = load_backbone(checkpoint)(*example.images)
    loss = confidence_loss(output.pointmaps, example.targets)
    assert list(found["errors"]["model"].values()) == pytest.approx([*map(float, loss.regressions)], rel=1e-4)
    assert list(found["valid_pixels"].values()) == [target.valid.sum() for target in example.targets]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "1"], "--pairs and --batch-size must be at least 2, so that one pair can take another's image; found 1 and 32"),
        (["--batch-size", "1"], "found 512 and 1"),
        (["--views", "1"], "--views must be at least 2"),
        (["--views", "3"], "takes two views"),
        (["--constant-pairs", "0"], "--constant-pairs must be at least 1; found 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--out", "."], "is a folder; --out must name a file"),
        (["--data", "nothing"], "there is no source 'nothing'"),
        (["--resolution", "30x32"], "both sides must be multiples of 16"),
    ],
)
def test_bad_options_end_in_one_line(checkpoint, options, message, capsys):
    assert main(["two-views", str(checkpoint), *options, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
