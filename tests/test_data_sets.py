"""Sets of more than two views, of every kind of data set: which frames they have, and what is left out."""

import collections
import json
import pickle

import numpy as np
import pytest

from tests.data_sets import BLENDEDMVS_PAIR, make_views, write_blendedmvs, write_co3d, write_pairs, write_view
from und3rstand_jax.data.files.file_sets import KINDS, open_sets
from und3rstand_jax.data.records import UnreadableSet
from und3rstand_jax.support.errors import UserError

SHAPE = (48, 64)


@pytest.fixture(scope="module")
def views():
    return make_views(18, SHAPE)


def frames_of(source):
    """The numbers at the end of the photos' names, of every set."""
    return [[int(files.image.stem[-6:]) for files in source.listing.files(index)] for index in range(len(source))]


# Co3D


def select(root, lengths):
    """A list of sequences of one category whose frame numbers are their positions."""
    (root / "apple").mkdir()
    sequences = {name: list(range(length)) for name, length in lengths.items()}
    (root / "selected_seqs_train.json").write_text(json.dumps({"apple": sequences}))


@pytest.mark.parametrize("number", [3, 4, 8])
def test_co3d_sets_hold_different_frames_each_near_an_earlier_one(tmp_path, number):
    select(tmp_path, {"a": 100, "b": 5 * number - 2, "c": 5 * number - 5})
    source = open_sets("co3d", tmp_path, "train", number)
    found = frames_of(source)
    assert len(found) == len(source) > 990
    for frames in found:
        assert len(set(frames)) == number
        for place, frame in enumerate(frames[1:], start=1):
            assert min(abs(frame - earlier) for earlier in frames[:place]) in (5, 10, 15, 20, 25, 30)
    # Every pair of the long sequence starts one set, and of the short one those that can be grown: of b's residues, the first three have
    # so many frames.
    pairs = frames_of(open_sets("co3d", tmp_path, "train"))
    assert sorted(frames[:2] for frames in found[:990]) == sorted(pairs[:990])
    assert {frames[0] % 5 for frames in found[990:]} == {0, 1, 2}
    assert max(map(max, found[990:])) == 5 * number - 3
    assert len(found) == 990 + 3 * number * (number - 1) - 3 * max(number - 7, 0) * (number - 6)


def test_co3d_sets_are_always_the_same_and_various(tmp_path):
    select(tmp_path, {"a": 100, "b": 100})
    source = open_sets("co3d", tmp_path, "train", 4)
    found = frames_of(source)
    assert found[:990] == found[990:]
    by_start = {tuple(frames[:2]): frames for frames in found}
    assert by_start[10, 25] == [10, 25, 5, 40] and by_start[10, 30] == [10, 30, 35, 20]
    # No one step dominates, and most sets are no reordering of another.
    steps = collections.Counter(frames[2] - frames[0] for frames in found[:990])
    assert steps.most_common(1)[0][1] < 150 and len(steps) > 15
    assert len({frozenset(frames) for frames in found[:990]}) > 800
    again = pickle.loads(pickle.dumps(source))
    assert again.listing.files(1234) == source.listing.files(1234)


def test_co3d_sequences_that_are_too_short_for_sets_are_counted(tmp_path):
    select(tmp_path, {"a": 15, "b": 16, "c": 0, "d": 130})
    source = open_sets("co3d", tmp_path, "train", 4)
    assert source.notes == (
        "4 sequences of 1 categories",
        "2 sequences have fewer than 16 frames and give no sets of 4 views",
        "1 sequences have more than 100 frames; the first 100 are used",
    )
    assert len(source) == 12 + 990
    assert sorted(frames_of(source)[0]) == [0, 5, 10, 15]


def test_co3d_has_sets_of_at_most_twenty_views(tmp_path):
    select(tmp_path, {"a": 100})
    assert sorted(frames_of(open_sets("co3d", tmp_path, "train", 20))[5]) == list(range(0, 100, 5))
    with pytest.raises(UserError, match="co3d: expected sets of at most 20 views, since frames lie 5 apart, found --views 21"):
        open_sets("co3d", tmp_path, "train", 21)


def test_a_split_of_co3d_without_sets_fails(tmp_path):
    select(tmp_path, {"a": 15})
    with pytest.raises(UserError, match=r"has no sets of 4 views for the split 'train' \(1 sequences .*; 1 sequences have fewer than 16"):
        open_sets("co3d", tmp_path, "train", 4)


# BlendedMVS

KEY, OTHER, AWAY = (0x5A, 0x1B), (1, 2), (1, 3)


def write_graph(root, links, others=()):
    """Sequences without files: KEY's links are (frame, frame, score), in a list that is not in order of the sequences."""
    for high, low in (KEY, OTHER):
        (root / f"{high:08x}{low:016x}").mkdir()
    rows = [(*KEY, *link) for link in links]
    rows[1:1] = [(*OTHER, *link) for link in others]
    np.save(root / "blendedmvs_pairs.npy", np.array(rows, BLENDEDMVS_PAIR))


def test_blendedmvs_sets_grow_by_the_greatest_score(tmp_path):
    # From 0-1: 2 by the 0.9 of 1-2, then 5 by 2-5, and 3, the lower number, of the equal 0-4 and 1-3.
    links = [(0, 1, 0.2), (1, 2, 0.9), (0, 4, 0.5), (1, 3, 0.5), (2, 5, 0.7), (4, 6, 1.0)]
    write_graph(tmp_path, links, [(7, 8, 9.0), (8, 9, 9.0)])
    expected = {
        3: [[0, 1, 2], [1, 2, 5], [0, 4, 6], [1, 3, 2], [2, 5, 1], [4, 6, 0], [7, 8, 9], [8, 9, 7]],
        5: [[0, 1, 2, 5, 3], [1, 2, 5, 3, 0], [0, 4, 6, 1, 2], [1, 3, 2, 5, 0], [2, 5, 1, 3, 0], [4, 6, 0, 1, 2]],
    }
    for number, sets in expected.items():
        source = open_sets("blendedmvs", tmp_path, "train", number)
        assert sorted(frames_of(source)) == sorted(sets)
    assert source.notes == ("2 sequences", "2 pairs are linked to too few frames for 5 views and are left out")
    # The list's order is that of the pairs.
    assert frames_of(open_sets("blendedmvs", tmp_path, "train", 3))[:2] == [[0, 1, 2], [7, 8, 9]]
    assert frames_of(open_sets("blendedmvs", tmp_path, "train"))[0:2] == [[0, 1], [7, 8]]


def test_blendedmvs_components_are_counted_whatever_their_form(tmp_path):
    chain = [(frame, frame + 1, 0.5) for frame in np.random.default_rng(0).permutation(200)]
    star = [(1000, leaf, 0.5) for leaf in range(1001, 1004)]
    itself = [(1000, 1000, 9.0)]
    write_graph(tmp_path, [*chain, *star, *itself], [(1000, 1001, 0.1)])
    counts = {number: len(open_sets("blendedmvs", tmp_path, "train", number)) for number in (2, 3, 4, 5, 201)}
    # A pair of a frame with itself is one of today's pairs, but starts no set.
    assert counts == {2: 205, 3: 203, 4: 203, 5: 200, 201: 200}
    assert sorted(frames_of(open_sets("blendedmvs", tmp_path, "train", 201))[7]) == list(range(201))
    with pytest.raises(UserError, match=r"has no sets of 202 views for the split 'train' \(2 sequences; 205 pairs are linked to too few"):
        open_sets("blendedmvs", tmp_path, "train", 202)


def test_blendedmvs_sets_stay_in_their_split_and_its_folders(tmp_path, views):
    listed = [(*KEY, 0, 1), (*AWAY, 0, 1), (1, 10, 0, 1), (*KEY, 1, 2), (1, 10, 2, 1)]
    write_blendedmvs(tmp_path, {KEY: views[:3], (1, 10): views[3:6]}, listed)
    train, val = (open_sets("blendedmvs", tmp_path, split, 3) for split in ("train", "val"))
    assert (frames_of(train), frames_of(val)) == ([[0, 1, 2], [1, 2, 0]], [[0, 1, 2], [2, 1, 0]])
    assert train.notes == ("1 sequences", "1 more listed sequences have no folder: their 1 pairs are left out")
    for view, written in zip(val.read(1), (views[5], views[4], views[3]), strict=True):
        np.testing.assert_allclose(view.depth, written.depth, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "expected the field score, numbers, by which sets of more than two views are chosen, found an array of fields seq_high"),
        ([("score", "S3")], "expected the field score, numbers"),
        ([("score", np.float32, (2,))], "expected the field score, numbers"),
    ],
)
def test_blendedmvs_needs_scores_for_sets_alone(tmp_path, fields, message):
    write_graph(tmp_path, [(0, 1, 0.5), (1, 2, 0.5)])
    listed = np.load(tmp_path / "blendedmvs_pairs.npy")
    bare = np.zeros(len(listed), [(name, BLENDEDMVS_PAIR[name]) for name in BLENDEDMVS_PAIR.names[:-1]] + fields)
    for name in BLENDEDMVS_PAIR.names[:-1]:
        bare[name] = listed[name]
    np.save(tmp_path / "blendedmvs_pairs.npy", bare)
    assert len(open_sets("blendedmvs", tmp_path, "train")) == 2
    with pytest.raises(UserError, match=f"{message}.*: write it, or ask for two views"):
        open_sets("blendedmvs", tmp_path, "train", 3)


def test_blendedmvs_scores_that_are_not_finite_fail(tmp_path):
    write_graph(tmp_path, [(0, 1, 0.5), (1, 2, float("nan"))])
    assert len(open_sets("blendedmvs", tmp_path, "train")) == 2
    with pytest.raises(UserError, match="expected scores, found 1 that are not finite"):
        open_sets("blendedmvs", tmp_path, "train", 3)


# pairs.json


def sets_of(root, split, number):
    return open_sets("pairs", root, split, number).listing.sets.tolist()


def test_own_sets_are_those_of_so_many_views_or_the_first_of_more(tmp_path, views):
    write_pairs(tmp_path, views[:6], [(0, 1), (5, 4)], sets=[(0, 1, 2, 3), (3, 2, 1), (2, 5), (5, 4, 3, 2, 1, 0)])
    assert {number: sets_of(tmp_path, "train", number) for number in (2, 3, 4, 6)} == {
        2: [[0, 1], [5, 4], [0, 1], [3, 2], [2, 5], [5, 4]],
        3: [[0, 1, 2], [3, 2, 1], [5, 4, 3]],
        4: [[0, 1, 2, 3], [5, 4, 3, 2]],
        6: [[5, 4, 3, 2, 1, 0]],
    }
    assert open_sets("pairs", tmp_path, "train", 2).notes == (
        "6 pairs of 6 views are listed, 6 of them for 'train'",
        "3 of the listed sets have more than 2 views, and give their first 2",
    )
    source = open_sets("pairs", tmp_path, "train", 4)
    assert source.notes == (
        "2 sets of 4 views among 6 views are listed, 2 of them for 'train'",
        "1 of the listed sets have more than 4 views, and give their first 4",
        "4 listed pairs and sets have fewer than 4 views and are left out",
    )
    names = [f"{tmp_path / f'v{number}.image.png'}" for number in range(4)]
    assert source.set_name(0) == f"{names[0]}, {names[1]}, {names[2]} and {names[3]}"
    for view, number in zip(source.read(1), (5, 4, 3, 2), strict=True):
        np.testing.assert_array_equal(view.image, views[number].image)
        np.testing.assert_allclose(view.cam2world, views[number].cam2world)


def test_lines_and_tables_write_sets_in_every_form(tmp_path, views):
    written = [write_view(tmp_path, name, view) for name, view in zip("abc", views, strict=False)]
    named = {"views": {"a": written[0], "b": written[1]}, "sets": [["a", "b", written[2]], {"views": [written[1], "a", written[2]]}]}
    (tmp_path / "pairs.json").write_text(json.dumps(named))
    assert sets_of(tmp_path, "train", 3) == [[0, 1, 2], [1, 0, 2]]
    (tmp_path / "pairs.json").unlink()
    a, b, c = written
    lines = [{"views": [a, b, c]}, {"view1": c, "view2": a}, [b, c], {"views": [c, b]}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert sets_of(tmp_path, "train", 3) == [[0, 1, 2]]
    assert sets_of(tmp_path, "train", 2) == [[0, 1], [2, 0], [1, 2], [2, 1]]
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / "pairs.json").write_text(json.dumps(lines))
    assert sets_of(tmp_path, "train", 3) == [[0, 1, 2]]
    assert sets_of(tmp_path, "train", 2) == [[0, 1], [2, 0], [1, 2], [2, 1]]


def test_every_tenth_set_of_views_is_held_out_in_any_order_unless_entries_say(tmp_path, views):
    around = [tuple((i + step) % 12 for step in range(4)) for i in range(12)]
    listed = write_pairs(tmp_path, views[:12], [], sets=[*around, *(one[::-1] for one in around)])
    # As sets of three, those of one view more are cut first: 9 10 11 0 and its reverse have other views.
    assert sets_of(tmp_path, "val", 4) == [[9, 10, 11, 0], [0, 11, 10, 9]]
    assert len(sets_of(tmp_path, "train", 4)) == 22
    assert all(set(one) != {9, 10, 11, 0} for one in sets_of(tmp_path, "train", 4))
    assert not set(map(frozenset, sets_of(tmp_path, "val", 3))) & set(map(frozenset, sets_of(tmp_path, "train", 3)))
    content = json.loads(listed.read_text())
    content["sets"] = [{"views": ["v0", "v1", f"v{i}"], "split": split} for i, split in ((2, "train"), (3, "val"), (4, "train"))]
    listed.write_text(json.dumps(content))
    assert [sets_of(tmp_path, split, 3) for split in ("train", "val")] == [[[0, 1, 2], [0, 1, 4]], [[0, 1, 3]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["sets"].append(["v0", "v1", "v9"]), "set 1, view3: there is no 'v9' in \"views\""),
        (lambda content: content["sets"].append(["v0"]), r'set 1 is not as expected: views: list should have at least 2.*{"views"'),
        (lambda content: content["sets"].append("v0"), r'set 1 is not as expected: .*; expected {"views": \[view, view'),
        (lambda content: content["sets"].append({"views": ["v0", "v1"], "splt": "val"}), "set 1 .*splt: unexpected"),
        (lambda content: content["sets"].append({"views": ["v0", "v1"], "split": "test"}), "set 1 .*'train' or 'val'"),
        (lambda content: content["sets"].append({"view1": "v0", "view2": "v1"}), "set 1 .*views: field required"),
        (lambda content: content["sets"].append({"views": ["v0", {"image": 3}]}), "set 1, view2 is not as expected: image"),
        (
            lambda content: content["sets"].append({"views": ["v0", "v1"], "split": "val"}),
            '2 sets have no "split" while others have one: give it to all or to none',
        ),
        (lambda content: content["pairs"].append(["v0", "v1", "v2"]), 'pair 1 is not as expected: .*; expected {"view1"'),
        (lambda content: content["pairs"].append({"views": ["v0", "v1"]}), "pair 1 is not as expected: .*view1: field required"),
        (lambda content: [content.pop("pairs"), content.pop("sets")], 'neither "pairs" nor "sets" is given; expected a list of pairs'),
        (lambda content: content.update(sets={}), "sets: input should be"),
    ],
)
def test_every_fault_of_a_set_is_named(tmp_path, views, change, message):
    listed = write_pairs(tmp_path, views[:3], [(0, 1)], sets=[(0, 1, 2)])
    content = json.loads(listed.read_text())
    change(content)
    listed.write_text(json.dumps(content))
    for number in (2, 3):
        with pytest.raises(UserError, match=message):
            open_sets("pairs", tmp_path, "train", number)


def test_faults_of_views_pairs_and_sets_are_reported_together(tmp_path, views):
    listed = write_pairs(tmp_path, views[:3], [(0, 1)], sets=[(0, 1, 2)])
    content = json.loads(listed.read_text())
    content["views"]["v1"]["K"][0][0] = -1
    content["pairs"].append(["v0", "w"])
    content["sets"].append(["v0", "x", "y"])
    listed.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        open_sets("pairs", tmp_path, "train", 3)
    found = [line.split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert found == ["view 'v1'", "pair 1, view2", "set 1, view2", "set 1, view3"]


def test_a_list_without_sets_of_so_many_views_says_what_it_has(tmp_path, views):
    write_pairs(tmp_path / "pairs", views[:3], [(0, 1), (1, 2)])
    with pytest.raises(UserError) as caught:
        open_sets("pairs", tmp_path / "pairs", "train", 4)
    assert str(caught.value) == (
        f"{tmp_path / 'pairs/pairs.json'}: expected sets of 4 views or more, found 2 pairs: "
        'list sets of 4 under "sets" (format: docs/data.md), or ask for --views 2'
    )
    write_pairs(tmp_path / "sets", views[:3], [(0, 1)], sets=[(0, 1, 2)])
    with pytest.raises(UserError, match="found 1 pairs and 1 sets, of at most 3 views: list sets of 4 .* or ask for --views 3$"):
        open_sets("pairs", tmp_path / "sets", "train", 4)


# All kinds


@pytest.fixture
def trees(tmp_path, views):
    write_co3d(tmp_path / "co3d", {"apple/a": views[:16]})
    write_blendedmvs(tmp_path / "blendedmvs", {KEY: views[:4]}, [(*KEY, 0, 1), (*KEY, 1, 2), (*KEY, 2, 3)])
    write_pairs(tmp_path / "pairs", views[:4], [(0, 1)], sets=[(0, 1, 2, 3)])
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_sets_are_cropped_to_one_shape_in_the_frame_of_camera_1s_place(trees, kind):
    source = open_sets(kind, trees / kind, "train", 4)
    raw = source.read(0)
    found = source.load(0, (32, 48), np.random.default_rng(0))
    assert source.views == len(raw) == len(found) == 4
    for view, given in zip(found, raw, strict=True):
        assert view.image.shape == (32, 48, 3) and view.depth.shape == (32, 48)
        np.testing.assert_allclose(view.cam2world[:3, 3], given.cam2world[:3, 3] - raw[0].cam2world[:3, 3], atol=1e-6)
        np.testing.assert_allclose(view.cam2world[:3, :3], given.cam2world[:3, :3], atol=1e-6)
    assert len({view.intrinsics[0, 0] for view in found}) > 1  # each view draws its own jitter


@pytest.mark.parametrize("kind", KINDS)
def test_one_damaged_view_makes_its_set_unreadable_and_is_named(trees, kind):
    source = open_sets(kind, trees / kind, "train", 4)
    last = source.listing.files(0)[-1].image
    last.write_bytes(b"nothing")
    with pytest.raises(UnreadableSet, match=last.name):
        source.read(0)
