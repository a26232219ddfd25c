import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_sets import make_views, write_blendedmvs, write_co3d, write_pairs, write_view
from und3rstand_jax.data.files.file_sets import KINDS, open_sets
from und3rstand_jax.data.records import UnreadableSet
from und3rstand_jax.support.errors import UserError

SHAPE = (48, 64)


@pytest.fixture(scope="module")
def views():
    return make_views(12, (48, 64))


@pytest.fixture
def own(tmp_path, views):
    """Two views, one pair for each order."""
    write_pairs(tmp_path, views[:2], [(0, 1), (1, 0)])
    return tmp_path


def edit(path, change):
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_view(found, written, depth_atol, image_atol):
    np.testing.assert_allclose(found.depth, written.depth, atol=depth_atol)
    np.testing.assert_allclose(found.intrinsics, written.intrinsics, rtol=1e-6)
    np.testing.assert_allclose(found.cam2world, written.cam2world, atol=1e-6)
    assert found.image.shape == written.image.shape and found.image.dtype == np.uint8
    assert np.abs(found.image.astype(int) - written.image).mean() <= image_atol


# Co3D


def test_a_co3d_tree_gives_back_what_was_written(tmp_path, views):
    write_co3d(tmp_path, {"apple/a_1": views}, first_frame=7)
    source = open_sets("co3d", tmp_path, "train")
    frames = [[int(files.image.stem[-6:]) - 7 for files in source.listing.files(index)] for index in range(len(source))]
    assert source.name == f"co3d:{tmp_path}"
    for index in (0, len(source) - 1):
        pair = source.read(index)
        for view, position in zip(pair, frames[index], strict=True):
            assert_view(view, views[position], depth_atol=views[position].depth.max() / 65535, image_atol=2)


def test_co3d_pairs_are_those_of_the_rule_in_both_orders(tmp_path):
    lengths = {"apple/short": 4, "apple/some": 23, "ball/long": 130, "ball/none": 0, "ball/six": 6}
    selected: dict = {}
    for name, length in lengths.items():
        category, sequence = name.split("/")
        (tmp_path / name).mkdir(parents=True)
        selected.setdefault(category, {})[sequence] = [3 * position + 2 for position in range(length)]
    (tmp_path / "selected_seqs_train.json").write_text(json.dumps(selected))
    source = open_sets("co3d", tmp_path, "train")
    found = sorted(
        (str(one.folder.relative_to(tmp_path)), one.frame, two.frame)
        for one, two in (source.listing.files(index) for index in range(len(source)))
    )
    expected = sorted(
        (name, 3 * i + 2, 3 * j + 2)
        for name, length in lengths.items()
        for i in range(min(length, 100))
        for j in range(min(length, 100))
        if abs(i - j) in (5, 10, 15, 20, 25, 30)
    )
    assert found == expected
    assert source.notes == (
        "5 sequences of 2 categories",
        "2 sequences have fewer than 6 frames and give no pairs",
        "1 sequences have more than 100 frames; the first 100 are used",
    )


def test_co3d_depth_outside_the_mask_is_unknown(tmp_path, views):
    masked = [view._replace(depth=np.where(np.arange(64) < 40, view.depth, 0)) for view in views]
    write_co3d(tmp_path, {"apple/a": masked})
    found = open_sets("co3d", tmp_path, "train").read(0)[0].depth
    assert not found[:, 40:].any() and (found[:, :40] > 0.5).all()


def test_a_co3d_mask_counts_above_a_tenth(tmp_path, views):
    write_co3d(tmp_path, {"apple/a": views})
    mask = np.full((48, 64), 25, np.uint8)
    mask[:, 10:] = 26
    for path in (tmp_path / "apple/a/masks").iterdir():
        Image.fromarray(mask).save(path)
    found = open_sets("co3d", tmp_path, "train").read(0)[0].depth
    assert not found[:, :10].any() and found[:, 10:].all()


def test_the_validation_split_of_co3d_is_its_test_list(tmp_path, views):
    write_co3d(tmp_path, {"apple/a": views[:6]}, "train")
    write_co3d(tmp_path, {"apple/b": views[:7]}, "test")
    assert {files.folder.name for files in open_sets("co3d", tmp_path, "val").listing.files(0)} == {"b"}
    assert (len(open_sets("co3d", tmp_path, "train")), len(open_sets("co3d", tmp_path, "val"))) == (2, 4)


def test_a_big_co3d_source_is_quick_to_send_to_a_worker(tmp_path):
    (tmp_path / "apple").mkdir()
    selected = {"apple": {f"{number}_{number * 7}": list(range(1, 103)) for number in range(2000)}}
    (tmp_path / "selected_seqs_train.json").write_text(json.dumps(selected))
    source = open_sets("co3d", tmp_path, "train")
    sent = pickle.dumps(source)
    assert len(source) == 2000 * 990
    assert len(sent) < 1_000_000
    assert pickle.loads(sent).listing.files(1_234_567) == source.listing.files(1_234_567)


def test_a_co3d_category_without_a_folder_fails(tmp_path, views):
    write_co3d(tmp_path, {"apple/a": views[:6]})
    edit(tmp_path / "selected_seqs_train.json", lambda selected: selected.update(pear={"x": [1, 2]}, plum={}))
    with pytest.raises(UserError, match="selected_seqs_train.json lists categories without a folder: pear$"):
        open_sets("co3d", tmp_path, "train")


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", '{"apple": [1]}', '{"apple": {"a": ["1"]}}', '{"apple": {"a": 3}}', "{", '{"apple": {"a": [-1]}}', "[" * 9999]
    + [f'{{"apple": {{"a": [{number}]}}}}' for number in ("true", "1.5", 2**31, "9" * 5000)],
)
def test_a_co3d_list_of_another_form_fails(tmp_path, content):
    (tmp_path / "apple").mkdir()
    (tmp_path / "selected_seqs_train.json").write_text(content)
    with pytest.raises(UserError, match=r"^\S*selected_seqs_train.json is not as expected: .*; expected \{.category[^\n]*$"):
        open_sets("co3d", tmp_path, "train")


# BlendedMVS

TRAIN, VAL, AWAY = (0x5A, 0x1234567890ABCDEF), (0xFFFFFFFF, 120), (1, 3)


def blendedmvs(root, views):
    listed = [(*TRAIN, 0, 1), (*AWAY, 0, 1), (*VAL, 1, 0), (*TRAIN, 2, 0), (*AWAY, 1, 0), (*AWAY, 1, 2)]
    return write_blendedmvs(root, {TRAIN: views[:3], VAL: views[3:5]}, listed)


def test_a_blendedmvs_tree_gives_back_what_was_written(tmp_path, views):
    blendedmvs(tmp_path, views)
    source = open_sets("blendedmvs", tmp_path, "train")
    assert [files.image.relative_to(tmp_path).as_posix() for files in source.listing.files(0)] == [
        "0000005a1234567890abcdef/00000000.jpg",
        "0000005a1234567890abcdef/00000001.jpg",
    ]
    pair = source.read(1)
    assert_view(pair[0], views[2], depth_atol=1e-6, image_atol=2)
    assert_view(pair[1], views[0], depth_atol=1e-6, image_atol=2)


def test_blendedmvs_is_split_by_sequence_and_counts_what_has_no_folder(tmp_path, views):
    blendedmvs(tmp_path, views)
    train, val = open_sets("blendedmvs", tmp_path, "train"), open_sets("blendedmvs", tmp_path, "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.notes == ("1 sequences", "1 more listed sequences have no folder: their 3 pairs are left out")
    assert val.notes == ("1 sequences",)
    assert_view(val.read(0)[0], views[4], depth_atol=1e-6, image_atol=2)


def test_infinite_and_negative_depth_is_unknown(tmp_path, views):
    odd = views[0].depth.copy()
    odd[0, :3] = np.inf, np.nan, -1
    write_blendedmvs(tmp_path, {TRAIN: [views[0]._replace(depth=odd), views[1]]}, [(*TRAIN, 0, 1)])
    found = open_sets("blendedmvs", tmp_path, "train").read(0)[0].depth
    assert not found[0, :3].any() and found[0, 3:].all() and found[1:].all()


def test_a_blendedmvs_list_without_the_fields_fails(tmp_path):
    np.save(tmp_path / "blendedmvs_pairs.npy", np.zeros(3, [("seq_low", np.uint64), ("img1", np.int32)]))
    with pytest.raises(
        UserError, match="expected the fields seq_high, seq_low, img1, img2, integers, found an array of fields seq_low, img1 of shape"
    ):
        open_sets("blendedmvs", tmp_path, "train")


def test_blendedmvs_without_any_of_its_folders_fails(tmp_path, views):
    blendedmvs(tmp_path / "full", views)
    (tmp_path / "bare").mkdir()
    (tmp_path / "full/blendedmvs_pairs.npy").rename(tmp_path / "bare/blendedmvs_pairs.npy")
    expected = "each sequence in blendedmvs_pairs.npy, such as 000000010000000000000003; the folder contains blendedmvs_pairs.npy"
    with pytest.raises(UserError, match=expected):
        open_sets("blendedmvs", tmp_path / "bare", "train")


# pairs.json


def test_the_five_documented_lines_write_a_list_that_can_be_read(tmp_path, monkeypatch, views):
    documentation = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"## Your own data in five lines\n\n```python\n(.*?)```", documentation, re.DOTALL)
    assert lines.count("\n") == 5
    monkeypatch.chdir(tmp_path)
    Path("my_data").mkdir()
    for name in "ab":
        Image.new("RGB", (640, 480)).save(f"my_data/{name}.jpg")
        Image.fromarray(np.full((480, 640), 1500, np.uint16)).save(f"my_data/{name}.png")
    exec(lines, {"pose_of_b": views[1].cam2world})
    pair = open_sets("pairs", Path("my_data"), "train").load(0, (384, 512), None)
    np.testing.assert_allclose(pair[0].depth, 1.5)
    np.testing.assert_allclose(pair[1].intrinsics, [[420, 0, 255.5], [0, 420, 191.5], [0, 0, 1]])
    np.testing.assert_allclose(np.linalg.inv(pair[0].cam2world) @ pair[1].cam2world, views[1].cam2world, atol=1e-6)


@pytest.mark.parametrize("depth", ["png", "npy"])
def test_own_pairs_give_back_what_was_written(tmp_path, views, depth):
    write_pairs(tmp_path, views[:3], [(2, 1)], depth)
    pair = open_sets("pairs", tmp_path, "train").read(0)
    for view, written in zip(pair, (views[2], views[1]), strict=True):
        assert_view(view, written, depth_atol=5.1e-4 if depth == "png" else 1e-6, image_atol=0)


def test_all_three_forms_of_the_list_mean_the_same(tmp_path, views):
    first, second = (write_view(tmp_path, name, view) for name, view in zip("ab", views, strict=False))
    entries = [{"view1": first, "view2": second}, {"view1": second, "view2": first}]
    forms = {
        "list/pairs.json": json.dumps(entries),
        "lines/pairs.jsonl": "\n".join(map(json.dumps, entries)) + "\n\n",
        "table/pairs.json": json.dumps({"views": {"a": first}, "pairs": [["a", second], {"view1": second, "view2": "a"}]}),
    }
    for name, text in forms.items():
        path = tmp_path / name
        path.parent.mkdir()
        for file in tmp_path.glob("[ab].*"):
            (path.parent / file.name).hardlink_to(file)
        path.write_text(text)
        source = open_sets("pairs", path.parent, "train")
        assert source.notes == ("2 pairs of 2 views are listed, 2 of them for 'train'",)
        pair = source.read(1)
        assert_view(pair[0], views[1], 5.1e-4, 0)
        assert_view(pair[1], views[0], 5.1e-4, 0)


def test_depth_scale_is_the_unit_per_stored_step(tmp_path, views):
    write_pairs(tmp_path / "png", views[:2], [(0, 1)], "png", {"depth_scale": 0.25})
    write_pairs(tmp_path / "npy", views[:2], [(0, 1)], "npy", {"depth_scale": 3})
    stored = np.asarray(Image.open(tmp_path / "png/v0.png")).astype(float)
    np.testing.assert_allclose(open_sets("pairs", tmp_path / "png", "train").read(0)[0].depth, 0.25 * stored, rtol=1e-6)
    np.testing.assert_allclose(open_sets("pairs", tmp_path / "npy", "train").read(0)[0].depth, 3 * views[0].depth, rtol=1e-6)


def test_every_tenth_two_views_are_held_out_in_either_order_unless_entries_say(tmp_path, views):
    around = [(i % 12, (i + 1) % 12) for i in range(12)]
    listed = write_pairs(tmp_path, views, [*around, *(pair[::-1] for pair in around)])
    found = {split: open_sets("pairs", tmp_path, split).listing.sets.tolist() for split in ("train", "val")}
    assert found["val"] == [[9, 10], [10, 9]]
    assert len(found["train"]) == 22 and not any(sorted(pair) == [9, 10] for pair in found["train"])
    edit(
        listed, lambda content: content.update(pairs=[{"view1": "v0", "view2": f"v{i}", "split": s} for i, s in ((1, "train"), (2, "val"))])
    )
    assert [open_sets("pairs", tmp_path, split).listing.sets.tolist() for split in ("train", "val")] == [[[0, 1]], [[0, 2]]]


def faulty_view(**changes):
    return lambda content: content["views"]["v0"].update(changes)


IDENTITY = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["views"]["v0"].pop("K"),
            "view 'v0' is not as expected: K: field required; a view has image, depth, K",
        ),
        (faulty_view(intrinsics=1), "view 'v0' .*intrinsics: unexpected"),
        (faulty_view(K=[[50, 0, 1], [0, 50, 1]]), r"K: list should have at least 3 items"),
        (faulty_view(K=[[50, 0, 1], [0, 50]]), r"K\[1\]: list should have at least 3 items after validation, not 2"),
        (faulty_view(K=[[50, 0, 0], [0, 50, 0], [32, 24, 1]]), "this looks transposed"),
        (faulty_view(K=[[-50, 0, 32], [0, 50, 24], [0, 0, 1]]), "has focal lengths -50 and 50, which must be positive"),
        (faulty_view(K=[[50, 2, 32], [0, 50, 24], [0, 0, 1]]), "has a skew of 2"),
        (faulty_view(K=[[50, 0, float("nan")], [0, 50, 24], [0, 0, 1]]), "not finite"),
        (faulty_view(cam2world=np.eye(3).tolist()), r"cam2world\[0\]: list should have at least 4 items"),
        (faulty_view(cam2world=(np.eye(4) + np.eye(4, k=-3)).tolist()), "this looks transposed"),
        (faulty_view(cam2world=np.diag([1.0, -1, 1, 1]).tolist()), "cam2world mirrors"),
        (faulty_view(cam2world=np.diag([2.0, 2, 2, 1]).tolist()), "has no valid rotation"),
        (faulty_view(depth_scale=0), "depth_scale: input should be greater than 0"),
        (faulty_view(depth_scale=True), "depth_scale: input should be a valid number"),
        (faulty_view(image="gone.png"), "there is no image .*gone.png"),
        (faulty_view(depth="v0.exr"), "depth v0.exr is neither .png .* nor .npy"),
        (faulty_view(image=3), "image: input should be a valid string"),
        (lambda content: content["views"].update(v0=[1]), "view 'v0' is not as expected: input should be"),
        (lambda content: content["pairs"].append(["v0", "v9"]), "pair 2, view2: there is no 'v9' in \"views\""),
        (lambda content: content["pairs"].append(["v0"]), 'pair 2 is not as expected: .*; expected {"view1"'),
        (lambda content: content["pairs"].append({"view1": "v0", "view2": "v1", "splt": "val"}), "pair 2 .*splt: unexpected"),
        (
            lambda content: content["pairs"].append({"view1": "v0", "view2": "v1", "split": "test"}),
            "split: input should be 'train' or 'val'",
        ),
        (
            lambda content: content["pairs"].append({"view1": "v0", "view2": "v1", "split": "val"}),
            '2 pairs have no "split" while others have one',
        ),
        (lambda content: content.update(extra=1), "expected a list of pairs"),
        (lambda content: content.pop("pairs"), "expected a list of pairs"),
    ],
)
def test_every_fault_of_a_list_is_named(own, change, message):
    edit(own / "pairs.json", change)
    with pytest.raises(UserError, match=message):
        open_sets("pairs", own, "train")


def test_all_faults_of_a_list_are_reported_together_and_the_first_twenty_shown(tmp_path, views):
    listed = write_pairs(tmp_path, views[:2], [(0, 1)])

    def spoil(content):
        content["views"]["v0"]["K"][0][0] = -1
        del content["views"]["v1"]["cam2world"]
        content["pairs"] += [["v0", f"w{number}"] for number in range(30)]

    edit(listed, spoil)
    with pytest.raises(UserError) as caught:
        open_sets("pairs", tmp_path, "train")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("has 32 faults:")
    assert lines[1].startswith("view 'v0': K has focal lengths")
    assert lines[2].startswith("view 'v1' is not as expected: cam2world: field required")
    assert len(lines) == 22 and lines[-1] == "… and 12 more"


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('\n{"view1": \n')
    with pytest.raises(UserError, match="pairs.jsonl: line 2 is not as expected: invalid JSON"):
        open_sets("pairs", tmp_path, "train")


def test_two_lists_are_one_too_many(own):
    (own / "pairs.jsonl").write_text("")
    with pytest.raises(UserError, match="expected pairs.json or pairs.jsonl .*; both are in"):
        open_sets("pairs", own, "train")


def test_a_split_without_pairs_fails(tmp_path, views):
    write_pairs(tmp_path, views[:2], [(0, 1)])
    with pytest.raises(UserError, match=r"has no pairs for the split 'val' \(.*0 of them for 'val'\); name other data .* --val-data"):
        open_sets("pairs", tmp_path, "val")


# All kinds


@pytest.mark.parametrize(
    ("kind", "listed"), [("co3d", "selected_seqs_train.json"), ("blendedmvs", "blendedmvs_pairs.npy"), ("pairs", "pairs.json")]
)
def test_a_wrong_root_says_what_was_expected_and_what_is_there(tmp_path, kind, listed):
    cases = {
        tmp_path / "nowhere": "there is no such folder",
        tmp_path / "file": "that is a file",
        tmp_path / "empty": "the folder is empty",
    }
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/sub").mkdir(parents=True)
    (tmp_path / "other/a.txt").write_text("")
    cases[tmp_path / "other"] = "the folder contains a.txt, sub/"
    for root, found in cases.items():
        with pytest.raises(UserError, match=f"{kind}:{root}: expected {listed}.*; {found}$"):
            open_sets(kind, root, "train")


def test_an_unknown_kind_fails(tmp_path):
    assert KINDS == ("co3d", "blendedmvs", "pairs")
    with pytest.raises(UserError, match="'scannet' is not a kind of data set; expected one of co3d, blendedmvs, pairs"):
        open_sets("scannet", tmp_path, "train")


@pytest.fixture
def trees(tmp_path, views):
    write_co3d(tmp_path / "co3d", {"apple/a": views[:6]})
    blendedmvs(tmp_path / "blendedmvs", views)
    write_pairs(tmp_path / "pairs", views[:2], [(0, 1), (0, 1)])
    write_pairs(tmp_path / "npy", views[:2], [(0, 1)], "npy")
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def as_text(path):
    path.write_text("not what it seems")


def smaller(path):
    if path.suffix == ".npy":
        np.save(path, np.load(path)[:-1])
    else:
        with Image.open(path) as image:
            cropped = image.crop((0, 0, image.width, image.height - 1))
        cropped.save(path)


PICTURES = (
    "co3d/apple/a/images/frame000001.jpg",
    "co3d/apple/a/depths/frame000001.jpg.geometric.png",
    "co3d/apple/a/masks/frame000001.png",
    "blendedmvs/0000005a1234567890abcdef/00000000.jpg",
    "pairs/v0.image.png",
    "pairs/v0.png",
    "npy/v0.npy",
)
OTHERS = (
    "co3d/apple/a/images/frame000001.npz",
    "blendedmvs/0000005a1234567890abcdef/00000000.npz",
    "blendedmvs/0000005a1234567890abcdef/00000000.exr",
)


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        *((file, harm, "") for file in PICTURES + OTHERS for harm in (truncate, empty, as_text)),
        *((file, Path.unlink, "there is no such file") for file in PICTURES + OTHERS),
        *((file, smaller, "they must have the same size") for file in PICTURES),
    ],
)
def test_a_missing_or_damaged_file_makes_its_pair_unreadable_and_is_named(trees, file, harm, message):
    root, kind = trees / file.split("/")[0], "pairs" if file.startswith("npy") else file.split("/")[0]
    source = open_sets(kind, root, "train")
    source.load(0, SHAPE, None)
    harm(trees / file)
    with pytest.raises(UnreadableSet, match=f"{re.escape(file)}.*{message}"):
        source.load(0, SHAPE, None)


def rewrite(path, **changes):
    with np.load(path) as stored:
        arrays = {**stored, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intrinsics": None}, "expected the arrays intrinsics, R_cam2world, t_cam2world, found R_cam2world, t_cam2world"),
        ({"t_cam2world": np.zeros(4)}, r"expected t_cam2world of shape \(3,\), found an array of float64 of shape \(4,\)"),
        ({"R_cam2world": np.diag([1.0, 1, -1])}, "the cam2world pose mirrors"),
        ({"R_cam2world": np.full((3, 3), np.nan)}, "the cam2world pose has numbers that are not finite"),
        ({"intrinsics": np.diag([0.0, 50, 1])}, "the intrinsics matrix has focal lengths 0 and 50"),
        ({"intrinsics": np.full((3, 3), "text")}, r"expected intrinsics of shape \(3, 3\), found an array of <U4 of shape \(3, 3\)"),
    ],
)
def test_an_invalid_camera_makes_its_pair_unreadable(tmp_path, views, changes, message):
    write_blendedmvs(tmp_path, {TRAIN: views[:2]}, [(*TRAIN, 0, 1)])
    rewrite(tmp_path / "0000005a1234567890abcdef/00000001.npz", **changes)
    with pytest.raises(UnreadableSet, match=f"00000001.*{message}"):
        open_sets("blendedmvs", tmp_path, "train").load(0, SHAPE, None)


def save_eight_bit_depth(root):
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(root / "v0.png")


def save_sixteen_bit_photo(root):
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(root / "v0.image.png")


def save_turned_photo(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "v0.image.png", exif=exif)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (save_eight_bit_depth, "v0.png: expected depth in a 16-bit greyscale PNG, found pixels of mode L"),
        (save_sixteen_bit_photo, "v0.image.png: expected an 8-bit photo, found pixels of mode I;16"),
        (save_turned_photo, r"v0.image.png: an EXIF tag rotates the photo \(orientation 6\)"),
    ],
)
def test_a_file_of_another_kind_makes_its_pair_unreadable(own, harm, message):
    harm(own)
    with pytest.raises(UnreadableSet, match=message):
        open_sets("pairs", own, "train").load(0, SHAPE, None)


def test_a_photo_in_grey_or_with_transparency_is_read(own, views):
    Image.fromarray(views[0].image).convert("L").save(own / "v0.image.png")
    Image.fromarray(np.dstack([views[1].image, np.zeros((48, 64), np.uint8)])).save(own / "v1.image.png")
    pair = open_sets("pairs", own, "train").read(0)
    assert (pair[0].image[..., 0] == pair[0].image[..., 2]).all() and pair[0].image.std() > 10
    np.testing.assert_array_equal(pair[1].image, views[1].image)


def test_depth_of_another_shape_is_refused(tmp_path, views):
    write_pairs(tmp_path, views[:2], [(0, 1)], "npy")
    np.save(tmp_path / "v0.npy", views[0].depth[None])
    with pytest.raises(
        UnreadableSet, match=r"v0.npy: expected depth of shape \(height, width\), found an array of float64 of shape \(1, 48, 64\)"
    ):
        open_sets("pairs", tmp_path, "train").read(0)


def test_a_principal_point_far_off_the_centre_is_read_but_not_cropped(own):
    edit(own / "pairs.json", lambda content: content["views"]["v1"].update(K=[[50, 0, 11], [0, 50, 24], [0, 0, 1]]))
    source = open_sets("pairs", own, "train")
    assert source.read(0)[1].intrinsics[0, 2] == 11
    with pytest.raises(UnreadableSet, match=r"v1.image.png: the principal point \(11, 24\) .* centre of the photo's 64×48 pixels"):
        source.load(0, SHAPE, None)


def test_a_crop_without_any_known_depth_is_refused(tmp_path, views):
    only_above = views[1]._replace(depth=np.where(np.arange(48)[:, None] < 4, views[1].depth, 0))
    write_pairs(tmp_path, [views[0], only_above], [(0, 1), (0, 1)])
    source = open_sets("pairs", tmp_path, "train")
    source.load(0, (48, 64), None)
    with pytest.raises(UnreadableSet, match="v1.image.png: no pixel of its crop to 64×16 has a known depth"):
        source.load(0, (16, 64), None)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_gives_the_shape_asked_for_in_single_precision_and_depends_on_its_arguments_alone(trees, kind):
    source = pickle.loads(pickle.dumps(open_sets(kind, trees / kind, "train")))
    pair = source.load(0, (32, 80), np.random.default_rng(4))
    again = open_sets(kind, trees / kind, "train").load(0, (32, 80), np.random.default_rng(4))
    other = source.load(0, (32, 80), np.random.default_rng(5))
    for view, same in zip(pair, again, strict=True):
        assert [(array.shape, array.dtype) for array in view] == [
            ((32, 80, 3), np.uint8),
            ((32, 80), np.float32),
            ((3, 3), np.float32),
            ((4, 4), np.float32),
        ]
        for one, two in zip(view, same, strict=True):
            np.testing.assert_array_equal(one, two)
    assert pair[0].intrinsics[0, 0] != pair[1].intrinsics[0, 0]  # each view draws its own jitter
    assert pair[0].intrinsics[0, 0] != other[0].intrinsics[0, 0]


def test_the_world_moves_to_camera_1_so_that_large_coordinates_lose_nothing(tmp_path, views):
    far = [view._replace(cam2world=view.cam2world + np.eye(4, k=3) * 6_400_000) for view in views[:2]]
    write_pairs(tmp_path, far, [(0, 1), (0, 1)])
    pair = open_sets("pairs", tmp_path, "train").load(0, SHAPE, None)
    found = np.linalg.inv(pair[0].cam2world.astype(float)) @ pair[1].cam2world
    np.testing.assert_allclose(found, np.linalg.inv(views[0].cam2world) @ views[1].cam2world, atol=1e-6)
    np.testing.assert_allclose(pair[0].cam2world[:3, 3], 0)


def test_reading_needs_no_jax():
    readers = "und3rstand_jax.data.inspect.inspection, und3rstand_jax.data.files.file_sets"
    code = f"import sys, {readers}; sys.exit(any(name.split('.')[0] == 'jax' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
