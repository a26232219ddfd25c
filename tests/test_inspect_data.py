import json
import math
import re

import numpy as np
import pytest

from tests.data_sets import look_at, make_views, render, write_blendedmvs, write_co3d, write_pairs
from tests.strict import one_document
from und3rstand_jax.commands.train import main
from und3rstand_jax.data.files.file_sets import open_sets
from und3rstand_jax.data.inspect.agreement import agreement, both_ways, thin_pairs
from und3rstand_jax.data.inspect.describe import describe
from und3rstand_jax.data.inspect.diagnosis import explain
from und3rstand_jax.data.inspect.inspection import Far, inspect_sets
from und3rstand_jax.data.inspect.mistakes import INTRINSICS, POSES
from und3rstand_jax.data.records import View

PAIRS = [(0, 1), (2, 3), (4, 5), (1, 4), (5, 2), (3, 0), (2, 1)]
SHAPE = (48, 64)


def thin_pair(pair):
    [thin] = thin_pairs(pair)
    return thin


def run_inspection(kind, root, split, count, number=2):
    return describe(inspect_sets(open_sets(kind, root, split, number), count))


@pytest.fixture(scope="module")
def views():
    return make_views(6, SHAPE, seed=3, spread=0.3)


def posed(correct):
    """A mistake in every view's pose."""
    return lambda view: view._replace(cam2world=correct(view.cam2world))


def axes(*rows):
    """cam2world of a camera whose axes are these, in terms of right, down, forward."""
    turn = np.eye(4)
    turn[:3, :3] = rows
    return turn.T


OPENGL = axes([1, 0, 0], [0, -1, 0], [0, 0, -1])
ROS = axes([0, 0, 1], [-1, 0, 0], [0, -1, 0])
UPSIDE_DOWN = axes([-1, 0, 0], [0, -1, 0], [0, 0, 1])
UNITY = axes([1, 0, 0], [0, -1, 0], [0, 0, 1])
UNREAL = axes([0, 0, 1], [1, 0, 0], [0, -1, 0])
MIRROR = np.diag([1.0, 1, -1, 1])


def depth_times(factor):
    return lambda view: view._replace(depth=view.depth * factor)


def along_ray(view):
    rows, columns = np.mgrid[: view.depth.shape[0], : view.depth.shape[1]]
    (fx, _, cx), (_, fy, cy) = view.intrinsics[:2]
    return view._replace(depth=view.depth * np.sqrt(1 + ((columns - cx) / fx) ** 2 + ((rows - cy) / fy) ** 2))


def intrinsics_times(x, y):
    return lambda view: view._replace(intrinsics=np.diag([x, y, 1.0]) @ view.intrinsics)


def centre_swapped(view):
    intrinsics = view.intrinsics.copy()
    intrinsics[:2, 2] = intrinsics[1::-1, 2]
    return view._replace(intrinsics=intrinsics)


def rotation_only(pose):
    wrong = pose.copy()
    wrong[:3, :3] = pose[:3, :3].T
    return wrong


def translation_only(pose):
    wrong = pose.copy()
    wrong[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return wrong


MISTAKES = {
    "world2cam": (posed(np.linalg.inv), "cam2world looks like world2cam: inverting it raises"),
    "OpenGL": (posed(lambda pose: pose @ OPENGL), "axes x right, y up, z backward (as in OpenGL, Blender): rotating"),
    "ROS": (posed(lambda pose: pose @ ROS), "axes x forward, y left, z up (as in ROS): rotating"),
    "upside down": (posed(lambda pose: pose @ UPSIDE_DOWN), "cam2world looks like that of a camera with axes x left, y up, z forward"),
    "OpenGL world2cam": (posed(lambda pose: np.linalg.inv(pose @ OPENGL)), "world2cam of a camera with axes x right, y up, z backward"),
    "Unity": (posed(lambda pose: MIRROR @ pose @ UNITY), "cam2world looks left-handed (Unity"),
    "Unreal": (posed(lambda pose: MIRROR @ pose @ UNREAL), "cam2world looks left-handed (Unreal"),
    "rotation inverted": (posed(rotation_only), "cam2world looks like world2cam in its rotation only: transposing"),
    "translation inverted": (posed(translation_only), "cam2world looks like world2cam in its translation only: making t"),
    "millimetres": (depth_times(1000), "1000 times too large (millimetres, where cam2world is in metres?): multiplying the depth by 0.001"),
    "kilometres": (depth_times(0.001), "depth looks 1000 times too small"),
    "centimetres": (depth_times(100), "depth looks 100 times too large"),
    "metres for centimetres": (depth_times(0.01), "depth looks 100 times too small"),
    "a tenth": (depth_times(0.1), "depth looks 10 times too small"),
    "TUM": (depth_times(5), "depth looks 5 times too large (5000 steps per metre"),
    "KITTI": (depth_times(0.256), "depth looks 3.906 times too small (256 steps per metre"),
    "units of reconstruction": (depth_times(1.7), "depth and cam2world are not in the same unit (poses from photos alone"),
    "along the ray": (along_ray, "depth looks like the distance along each pixel's ray: making it z"),
    "cx for cy": (centre_swapped, "cx and cy of the intrinsics look exchanged: exchanging them"),
    "half the size": (intrinsics_times(0.5, 0.5), "the intrinsics look like those of another image size: scaling them"),
    "three times the size": (intrinsics_times(3, 3), "the intrinsics look like those of another image size: scaling them"),
    "normalised": (intrinsics_times(1 / 64, 1 / 48), "the intrinsics look normalised to an image of size 1"),
    "OpenGL in millimetres": (
        lambda view: posed(lambda pose: pose @ OPENGL)(depth_times(1000)(view)),
        "z backward (as in OpenGL, Blender) and depth looks 1000 times too large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_the_one_named(tmp_path, views, mistake):
    plant, named = MISTAKES[mistake]
    write_pairs(tmp_path, [plant(view) for view in views], PAIRS, "npy")
    inspection = inspect_sets(open_sets("pairs", tmp_path, "train"), 20)
    report = describe(inspection)
    assert re.search(r"WRONG: \d+ % of the points that fall inside the other view agree", report)
    verdict = report.split("WRONG")[1].splitlines()[1]
    assert named in verdict
    best = inspection.explanations[0]
    assert verdict.endswith(f"raises the agreement from {100 * inspection.agreement.share:.0f} % to {100 * best.agreement.share:.0f} %.")
    assert best.agreement.share > max(0.8, inspection.agreement.share + 0.1)


@pytest.mark.parametrize("mistake", ["world2cam", "OpenGL", "millimetres", "along the ray"])
def test_a_planted_mistake_is_named_in_sets_of_three_views(tmp_path, views, mistake):
    plant, named = MISTAKES[mistake]
    sets = [(0, 1, 2), (2, 3, 4), (4, 5, 0), (1, 4, 3), (5, 2, 1)]
    write_pairs(tmp_path, [plant(view) for view in views], [], "npy", sets=sets)
    report = run_inspection("pairs", tmp_path, "train", 20, number=3)
    assert named in report.split("WRONG")[1].splitlines()[1]


def test_poses_exchanged_within_each_pair_are_named(tmp_path, views):
    twice = [view for first, second in PAIRS for view in (views[first], views[second])]
    exchanged = [view._replace(cam2world=twice[number ^ 1].cam2world) for number, view in enumerate(twice)]
    write_pairs(tmp_path, exchanged, [(i, i + 1) for i in range(0, len(twice), 2)], "npy")
    assert "the poses of view 1 and view 2 look exchanged: exchanging them raises" in run_inspection("pairs", tmp_path, "train", 20)


def test_mistakes_that_cannot_be_told_apart_are_all_named(tmp_path, views):
    # With view 1's pose the identity, to invert the poses and to exchange them is the same.
    relative = [np.linalg.inv(views[first].cam2world) @ views[second].cam2world for first, second in PAIRS]
    posed_views = [
        view
        for (first, second), pose in zip(PAIRS, relative, strict=True)
        for view in (views[first]._replace(cam2world=np.eye(4)), views[second]._replace(cam2world=np.linalg.inv(pose)))
    ]
    write_pairs(tmp_path, posed_views, [(i, i + 1) for i in range(0, len(posed_views), 2)], "npy")
    report = run_inspection("pairs", tmp_path, "train", 20)
    assert "cam2world looks like world2cam: inverting it raises" in report
    assert "These explain the pairs equally well: the poses of view 1 and view 2 look exchanged" in report


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.6, 0.2, 0.05])
def test_correct_geometry_is_never_corrected(seed, spread):
    made = make_views(6, SHAPE, seed=seed, spread=spread)
    pairs = [thin_pair((made[first], made[second])) for first, second in PAIRS]
    assert explain(pairs) == []
    assert both_ways(pairs).share > {0.6: 0.6, 0.2: 0.8, 0.05: 0.9}[spread]


def test_noise_in_correct_depth_is_not_taken_for_a_mistake(views):
    rng = np.random.default_rng(0)
    noisy = [view._replace(depth=view.depth * rng.normal(1, 0.02, SHAPE)) for view in views]
    assert explain([thin_pair((noisy[first], noisy[second])) for first, second in PAIRS]) == []


@pytest.mark.parametrize(("what", "spread"), [("rotations", 0.3), ("translations", 0.3), ("translations", 0.03)])
def test_poses_that_are_simply_wrong_are_doubted_but_not_explained(tmp_path, what, spread):
    # Of cameras close to each other, most would agree if only the scene were far away, whatever their translations.
    rng = np.random.default_rng(0)
    wrong = []
    for view in make_views(6, SHAPE, seed=3, spread=spread):
        pose = view.cam2world.copy()
        if what == "rotations":
            pose[:3, :3] = look_at(np.zeros(3), rng.normal(size=3), 0.0)[:3, :3]
        else:
            pose[:3, 3] = rng.normal(0, 1.5, 3)
        wrong.append(view._replace(cam2world=pose))
    write_pairs(tmp_path, wrong, PAIRS, "npy")
    report = run_inspection("pairs", tmp_path, "train", 20)
    assert "none of the usual mistakes explains it" in report and "consistent" not in report


@pytest.mark.parametrize("kind", ["co3d", "blendedmvs", "pairs"])
def test_correct_data_of_every_kind_is_reported_as_consistent(tmp_path, views, kind):
    sequence = [(view, views[1])[position % 2] for position, view in enumerate(views)]
    if kind == "co3d":
        write_co3d(tmp_path, {"apple/a": [*views, *views], "ball/b": sequence})
    elif kind == "blendedmvs":
        write_blendedmvs(tmp_path, {(1, 1): views}, [(1, 1, *pair) for pair in PAIRS])
    else:
        write_pairs(tmp_path, views, PAIRS)
    report = run_inspection(kind, tmp_path, "train", 20)
    assert f"{kind}:{tmp_path}: " in report
    verdict = re.fullmatch(
        r"The geometry is consistent: (\d+) % of the points .* view agree with its depth within 5 %\.", report.splitlines()[-1]
    )
    assert verdict and int(verdict[1]) >= 75
    assert "WRONG" not in report and "DOUBTFUL" not in report


def test_each_view_is_compared_with_the_earlier_one_that_it_overlaps_most():
    # A shift by b/32 leaves 1 - b/64 of a wall. View 3 is nearest to view 2, view 4 to view 1, view 5 sees nothing of any.
    places = [0, 24, 32, -8, 1000]
    views = [wall(columns / 32) for columns in places]
    pairs = thin_pairs(tuple(views))
    found = [(32 * one.cam2world[0, 3], 32 * two.cam2world[0, 3]) for one, two in pairs]
    assert found == [(0, 24), (24, 32), (0, -8), (0, 1000)]
    assert [agreement(pair).overlap for pair in pairs] == [pytest.approx(1 - columns / 64) for columns in (24, 8, 8, 64)]


def test_the_report_on_larger_sets_names_them_and_has_figures_of_every_view(tmp_path):
    views = [wall(columns / 32) for columns in (0, 16, 24, 8)]
    write_pairs(tmp_path, views, [(0, 1)], "npy", sets=[(0, 1, 2, 3), (2, 1, 0, 3, 0)])
    inspection = inspect_sets(open_sets("pairs", tmp_path, "train", 4), 5)
    first = inspection.figures[0]
    assert first.name == ", ".join(str(tmp_path / f"v{i}.image.png") for i in range(3)) + f" and {tmp_path / 'v3.image.png'}"
    assert len(first.views) == 4 and [link.baseline_over_depth for link in first.links] == [pytest.approx(b / 64) for b in (16, 8, 8)]
    assert [link.forward.overlap for link in first.links] == [pytest.approx(1 - b / 64) for b in (16, 8, 8)]
    assert inspection.agreement.share == 1
    lines = describe(inspection).splitlines()
    assert lines[:4] == [
        f"pairs:{tmp_path}: 2 sets of 4 views",
        "  2 sets of 4 views among 4 views are listed, 2 of them for 'train'",
        "  1 of the listed sets have more than 4 views, and give their first 4",
        "  1 listed pairs and sets have fewer than 4 views and are left out",
    ]
    assert lines[4] == "inspected: 2 sets of 4 views" and "photos: 8 of 64×48" in lines
    assert [line.split()[-6:] for line in lines if line.startswith("overlap with an earlier view")] == [["75", "%", "88", "%", "88", "%"]]
    assert lines[-1].startswith("The geometry is consistent: 100 % of the points")
    assert "pair" not in "\n".join(lines[4:]).replace(f"pairs:{tmp_path}", "").replace(str(tmp_path), "")


def test_a_single_view_that_disagrees_makes_its_set_named(tmp_path, views):
    stray = views[0]._replace(cam2world=views[0].cam2world @ OPENGL)
    sets = [(1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 1), (5, 1, 2), (1, 2, 6)]
    write_pairs(tmp_path, [*views, stray], [], "npy", sets=sets)
    report = run_inspection("pairs", tmp_path, "train", 20, number=3)
    named = ", ".join(str(tmp_path / f"v{i}.image.png") for i in (1, 2)) + f" and {tmp_path / 'v6.image.png'}"
    said = "1 sets of 3 views have a view that agrees on less than 30 % of what it and an earlier one see, or does not overlap any:"
    assert f"{said}\n    {named}\nThe geometry is consistent" in report


def test_the_command_asks_for_so_many_views(tmp_path, views, capsys):
    write_pairs(tmp_path, views, PAIRS, "npy", sets=[(0, 1, 2), (3, 4, 5)])
    assert main(["inspect", "--data", f"pairs:{tmp_path}", "--views", "3"]) == 0
    assert f"pairs:{tmp_path}: 2 sets of 3 views\n" in capsys.readouterr().out
    assert main(["inspect", "--data", f"pairs:{tmp_path}"]) == 0
    assert f"pairs:{tmp_path}: 9 pairs\n" in capsys.readouterr().out
    assert main(["inspect", "--data", f"pairs:{tmp_path}", "--pairs", "4", "--json", "--quiet"]) == 0
    (source,) = one_document(capsys.readouterr().out)["sources"]
    assert (source["name"], source["sets"], source["inspected"], source["verdict"]) == (f"pairs:{tmp_path}", 9, 4, "consistent")
    given, figures = source["agreement"], source["figures"]
    assert given["share"] == given["agreeing"] / given["compared"] > 0.5 and len(figures) == 4 and source["unreadable"] == []
    assert all(view["depth"]["near"] <= view["depth"]["median"] <= view["depth"]["far"] for one in figures for view in one["views"])
    assert main(["inspect", "--data", f"pairs:{tmp_path}", "--views", "4"]) == 2
    assert "expected sets of 4 views or more, found 7 pairs and 2 sets, of at most 3 views" in capsys.readouterr().err
    assert main(["inspect", "--data", f"pairs:{tmp_path}", "--views", "1"]) == 2
    assert "--views 1: expected 2 to 256 views in a set" in capsys.readouterr().err


def test_the_report_counts_sizes_and_says_what_cannot_be_read_or_cropped(tmp_path, views):
    upright = make_views(1, (64, 48), seed=9, spread=0.3)[0]
    more = [(6, 0), (7, 1), (0, 2), (8, 1)]  # the third of these is the tenth of all, and held out
    listed = write_pairs(tmp_path, [*views, upright, views[0], views[0]], [*PAIRS, *more])
    content = json.loads(listed.read_text())
    content["views"]["v8"]["K"][0][2] = 10
    listed.write_text(json.dumps(content))
    (tmp_path / "v7.png").write_bytes(b"nothing")
    inspection = inspect_sets(open_sets("pairs", tmp_path, "train"), 100)
    assert (inspection.sets, len(inspection.figures), len(inspection.unreadable), len(inspection.refused)) == (10, 9, 1, 1)
    lines = describe(inspection).splitlines()
    assert lines[:6] == [
        f"pairs:{tmp_path}: 10 pairs",
        "  11 pairs of 9 views are listed, 10 of them for 'train'",
        "inspected: 10 pairs",
        "  1 of them cannot be read:",
        f"    {tmp_path / 'v7.png'} is not an image in a supported format (PNG); convert it to PNG or JPEG",
        "  1 of them would be skipped in training at 512×384:",
    ]
    assert lines[6].startswith(f"    {tmp_path / 'v8.image.png'}: the principal point (10, ")
    assert "photos: 17 of 64×48, 1 of 48×64" in lines
    assert "1 of 18 views have a principal point far off the centre: do the intrinsics belong to this photo?" in lines


def test_a_sample_without_readable_pairs_is_reported(tmp_path, views):
    write_pairs(tmp_path, views, PAIRS)
    for path in tmp_path.glob("*.image.png"):
        path.write_bytes(b"")
    report = run_inspection("pairs", tmp_path, "train", 3)
    assert "inspected: 3 pairs\n  3 of them cannot be read:" in report
    assert report.endswith("None of the pairs could be read, so nothing is known about the geometry.")


def wall(offset, depth=2.0):
    """A wall seen head on from `offset` to the right; the focal length is the photo's width."""
    pose = np.eye(4)
    pose[0, 3] = offset
    intrinsics = np.array([[64.0, 0, 31.5], [0, 64.0, 23.5], [0, 0, 1]])
    return View(np.zeros((*SHAPE, 3), np.uint8), np.full(SHAPE, depth), intrinsics, pose)


@pytest.mark.parametrize("columns", [0, 2, 16, 40, 64])
def test_overlap_of_a_wall_is_what_the_shift_leaves(columns):
    # A shift by b moves the picture by f·b/z = 32·b pixels.
    found = agreement(thin_pair((wall(0), wall(columns / 32))))
    assert found.points == 24 * 32  # every other pixel
    assert found.overlap == pytest.approx(1 - columns / 64)
    assert found.compared == found.agreeing == 24 * (64 - columns) // 2


@pytest.mark.parametrize(("depth", "agrees"), [(2.0, True), (2.09, True), (1.91, True), (2.12, False), (1.89, False)])
def test_depths_agree_within_five_percent_of_what_the_other_view_finds(depth, agrees):
    found = agreement(thin_pair((wall(0, depth), wall(0, 2.0))))
    assert found.share == float(agrees)
    assert found.difference == pytest.approx(min(abs(depth / 2 - 1), 0.05))


def test_what_lies_behind_the_camera_or_has_no_depth_is_not_compared():
    behind = wall(0)._replace(cam2world=look_at(np.zeros(3), np.array([0.0, 0, -1]), 0.0))
    assert agreement(thin_pair((wall(0), behind))).compared == 0
    half = wall(0)._replace(depth=np.where(np.arange(64) < 32, np.full(SHAPE, 2.0), 0.0))
    assert agreement(thin_pair((wall(0), half)))[:3] == (768, 384, 384)
    assert agreement(thin_pair((half, wall(0))))[:3] == (384, 384, 384)


def test_a_thinned_pair_agrees_like_the_full_one():
    small, large = (
        [
            render(shape, np.diag([scale, scale, 1.0]) @ view.intrinsics, view.cam2world)
            for view in make_views(2, (48, 64), seed=3, spread=0.2)
        ]
        for shape, scale in (((240, 320), 5), ((960, 1280), 20))
    )
    full, thinned = both_ways([thin_pair(tuple(small))]), both_ways([thin_pair(tuple(large))])
    assert thin_pair(tuple(large))[0].depth.shape == (192, 256)
    assert thinned.share == pytest.approx(full.share, abs=0.03)
    assert thinned.score == pytest.approx(full.score, abs=0.03)


def test_figures_are_those_of_the_views(tmp_path):
    known = wall(0.5)._replace(depth=np.where(np.arange(64) < 16, 0.0, np.full(SHAPE, 2.0)))
    write_pairs(tmp_path, [wall(0), known], [(0, 1), (0, 1)], "npy")
    figures = inspect_sets(open_sets("pairs", tmp_path, "train"), 5).figures[0]
    assert figures.name == f"{tmp_path / 'v0.image.png'} and {tmp_path / 'v1.image.png'}"
    [link] = figures.links
    assert link.baseline_over_depth == pytest.approx(0.25)
    first, second = figures.views
    assert first.size == (64, 48) and first.depth == (2, 2, 2)
    assert (first.valid, second.valid) == (1, 0.75)
    assert first.field_of_view == pytest.approx(math.degrees(2 * math.atan(0.5)))
    # Columns 16 … 63 of view 1 are columns 0 … 47 of view 2, which knows depth from 16 on.
    assert link.forward.overlap == pytest.approx(32 / 64)


def test_cameras_that_hardly_move_are_pointed_out(tmp_path):
    views = [view._replace(depth=view.depth * 1000) for view in make_views(6, SHAPE, seed=3, spread=0.01)]
    write_pairs(tmp_path, views, PAIRS, "npy")
    assert "The cameras hardly move compared with the depth" in run_inspection("pairs", tmp_path, "train", 20)


def test_single_pairs_that_disagree_are_named(tmp_path, views):
    stray = views[0]._replace(cam2world=views[0].cam2world @ OPENGL)
    write_pairs(tmp_path, [*views, stray], [*PAIRS, (6, 1)], "npy")
    report = run_inspection("pairs", tmp_path, "train", 20)
    named = f"    {tmp_path / 'v6.image.png'} and {tmp_path / 'v1.image.png'}"
    assert f"1 pairs agree on less than 30 % of what both see, or do not overlap:\n{named}\nThe geometry is consistent" in report


def test_corrected_poses_are_poses_and_all_different(views):
    corrected = [mistake.correct(thin_pair((views[0], views[1]))) for mistake in POSES]
    np.testing.assert_allclose(np.linalg.det([view.cam2world for pair in corrected for view in pair]), 1)
    given = np.linalg.inv(views[0].cam2world) @ views[1].cam2world
    relative = np.stack([given, *(np.linalg.inv(view1.cam2world) @ view2.cam2world for view1, view2 in corrected)])
    apart = np.abs(relative[:, None] - relative).max(axis=(2, 3)) + 9 * np.eye(len(relative))
    assert apart.min() > 1e-3
    assert len({mistake.symptom for mistake in POSES}) == len(POSES) == 52  # 23 turns, of cam2world and world2cam, and 6 more


@pytest.mark.parametrize(
    ("size", "other"), [((48, 64), (24, 32)), ((48, 64), (192, 256)), ((480, 640), (480, 640)), ((1080, 1920), (720, 1280))]
)
def test_intrinsics_of_another_size_are_scaled_to_the_photo_exactly(size, other):
    (height, width), (other_height, other_width) = size, other
    right = np.array([[width * 0.8, 0, width * 0.51 - 0.5], [0, width * 0.8, height * 0.49 - 0.5], [0, 0, 1]])
    x, y = other_width / width, other_height / height
    wrong = np.array([[right[0, 0] * x, 0, other_width * 0.51 - 0.5], [0, right[1, 1] * y, other_height * 0.49 - 0.5], [0, 0, 1]])
    view = View(np.zeros((*size, 3), np.uint8), np.ones(size), wrong, np.eye(4))
    [mistake] = [mistake for mistake in INTRINSICS if "another image size" in mistake.symptom]
    np.testing.assert_allclose(mistake.correct(thin_pair((view, view)))[0].intrinsics, right)


@pytest.mark.parametrize("far", [1e10, 65504.0, 65.535])
def test_inspect_names_depth_that_stands_for_background(tmp_path, views, far):
    with_sky = [view._replace(depth=np.where(np.arange(48)[:, None] < 10, far, view.depth)) for view in views]
    pairs = [(0, 1), (2, 3), (4, 5), (1, 0)]
    write_pairs(tmp_path / "sky", with_sky, pairs, "npy")
    report = describe(inspect_sets(open_sets("pairs", tmp_path / "sky", "train"), 20))
    assert "6 of 6 views have depth that looks like background or missing depth: 21 % of the known pixels" in report
    assert f"are at {far:.3g} or beyond, the others at most at" in report and "write 0" in report
    write_pairs(tmp_path / "none", views, pairs, "npy")
    assert "background" not in describe(inspect_sets(open_sets("pairs", tmp_path / "none", "train"), 20))


def test_the_far_end_is_where_depth_jumps_or_many_pixels_share_the_greatest():
    scene = np.linspace(1, 20, 1000, dtype=np.float32)
    assert Far.of(scene) is None and Far.of(np.full(100, 2.0, np.float32)) is None and Far.of(scene[:0]) is None
    assert Far.of(np.append(scene, [1e10, 4e9])) == (4e9, pytest.approx(2 / 1002), 20)
    assert Far.of(np.append(scene, np.full(50, 25.0))) == (25, pytest.approx(50 / 1050), 20)
    assert Far.of(np.append(scene, [0.001, 0.002])) is None  # noise in front of the scene
    assert Far.of(np.append(scene, np.full(9000, 1e10))) == (float(np.float32(1e10)), pytest.approx(0.9), 20)
