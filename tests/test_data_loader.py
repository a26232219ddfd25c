"""Which sets of views a batch holds: decided by the seed and the batch's number, whatever the hosts, workers and interruptions."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.data_sets import make_views, write_co3d, write_pairs
from und3rstand_jax.data import loader
from und3rstand_jax.data.example import assemble
from und3rstand_jax.data.files.file_sets import FileSets
from und3rstand_jax.data.loader import Feed, open_sources, shape_of_step
from und3rstand_jax.data.records import NOT_RENDERED, UnreadableSet, View
from und3rstand_jax.data.specification import DataSpec, parse_data
from und3rstand_jax.data.synthetic.render import render_sets
from und3rstand_jax.support.errors import UserError

SHAPES = ((32, 48), (48, 32), (16, 16))


@dataclasses.dataclass(frozen=True)
class Numbered(FileSets):
    """Sets whose depth is their index (and a thousand more in each further view), and whose focal length is the first number of the
    crop jitter.
    """

    name: str = "numbered"
    listing: object = None
    count: int = 10
    broken: frozenset[int] = frozenset()

    def __len__(self):
        return self.count

    def load(self, index, shape, rng):
        if index in self.broken:
            raise UnreadableSet(f"frame{index}.jpg is not an image")
        jitter = 0.0 if rng is None else rng.random()
        image, intrinsics = np.zeros((*shape, 3), np.uint8), np.eye(3, dtype=np.float32) * jitter
        return tuple(View(image, np.full(shape, index + 1000 * view, np.float32), intrinsics, np.eye(4)) for view in range(self.views))


@pytest.fixture
def numbered(monkeypatch):
    opened = {}

    def open_sets(kind, root, split, views):
        return dataclasses.replace(opened.get(str(root), Numbered()), views=views)

    monkeypatch.setattr(loader, "open_sets", open_sets)
    return opened


def feed(*data, views=2, **changes):
    options = {"specs": parse_data(data, views=views), "shapes": ((16, 16),), "batch_size": 4, "seed": 3} | changes
    return Feed(**options)


def training_batches(config, start):
    return loader.training_batches(config, open_sources(config.specs, "train"), start)


def validation_batches(config, pairs):
    sources = open_sources(config.specs, "val")
    return loader.validation_batches(config, sources, loader.held_out(config, sources, pairs))


def take(batches, count):
    return list(itertools.islice(batches, count))


def indices(deliveries):
    return [int(depth[0, 0]) for delivery in deliveries for depth in delivery.batch.views[0].depth]


def equal(one, other):
    return all(
        np.array_equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip([*jax.tree.leaves(x.batch), x.shape], [*jax.tree.leaves(y.batch), y.shape], strict=True)
    )


def test_every_pair_comes_once_before_any_comes_again(numbered):
    numbers = indices(take(training_batches(feed("pairs:a", batch_size=5), 0), 6))
    rounds = [numbers[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in rounds)
    assert rounds[0] != rounds[1] and rounds[0] != list(range(10))


def test_the_order_is_the_seeds(numbered):
    orders = [tuple(indices(take(training_batches(feed("pairs:a", seed=seed), 0), 5))) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_two_hosts_together_read_what_one_reads(numbered):
    whole = take(training_batches(feed("pairs:a", shapes=SHAPES), 0), 6)
    halves = [take(training_batches(feed("pairs:a", shapes=SHAPES, host=host, hosts=2), 0), 6) for host in (0, 1)]
    for full, *parts in zip(whole, *halves, strict=True):
        assert [len(part.batch.position) for part in parts] == [2, 2]
        assert np.array_equal(full.batch.position, np.concatenate([part.batch.position for part in parts]))
        depths = [part.batch.views[1].depth for part in parts]
        assert np.array_equal(full.batch.views[1].depth, np.concatenate(depths))
        jitters = [part.batch.views[0].intrinsics for part in parts]
        assert np.array_equal(full.batch.views[0].intrinsics, np.concatenate(jitters))


@pytest.mark.parametrize("hosts", [1, 2])
def test_resuming_at_batch_n_gives_what_an_uninterrupted_run_gets(numbered, hosts):
    config = feed("pairs:a", "0.5*synthetic", shapes=SHAPES, hosts=hosts, host=hosts - 1)
    assert equal(take(training_batches(config, 7), 3), take(training_batches(config, 0), 10)[7:])


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_worker_processes_change_nothing(tmp_path, number):
    # Spawned workers open real files: a monkeypatched source would not reach them.
    views = make_views(4, (48, 64))
    write_pairs(tmp_path, views, [], sets=list(itertools.permutations(range(4), number)))
    config = feed(f"pairs:{tmp_path}", views=number, shapes=SHAPES)
    with_workers = take(training_batches(dataclasses.replace(config, workers=2), 2), 3)
    assert equal(with_workers, take(training_batches(config, 2), 3))
    assert len(with_workers[0].batch.views) == number and with_workers[0].batch.views[-1].depth.max() > 0


@pytest.mark.slow
@pytest.mark.quick
def test_three_views_of_files_and_scenes_become_one_example(tmp_path):
    write_pairs(tmp_path, make_views(6, (48, 64)), [], sets=list(itertools.permutations(range(6), 3)))
    config = feed(f"pairs:{tmp_path}", "synthetic", views=3, shapes=((32, 48),))
    [delivery] = take(training_batches(config, 1), 1)
    batch, scenes = delivery.batch, config.specs[1].scenes
    example = jax.jit(lambda batch: assemble(batch, 3, (32, 48), scenes, False))(batch)
    rendered = jax.device_get(jax.jit(lambda scene: render_sets(3, scene, (32, 48), scenes))(np.maximum(batch.scene, 0)))
    is_scene = batch.scene != NOT_RENDERED
    assert is_scene.sum() == 2 and len(example.images) == len(example.targets) == len(example.intrinsics) == 3
    for number, (scene, read) in enumerate(zip(rendered, batch.views, strict=True)):
        expected = jax.tree.map(lambda one, two: np.where(is_scene.reshape(-1, *[1] * (one.ndim - 1)), one, two), scene, read)
        difference = np.abs(np.asarray(example.images[number]) * 127.5 + 127.5 - expected.image)
        assert np.mean(difference < 1.01) > 0.999
        np.testing.assert_allclose(example.intrinsics[number], expected.intrinsics, rtol=1e-5)
        np.testing.assert_allclose(example.targets[number].cam2world, expected.cam2world, atol=1e-5)
        assert np.mean(np.asarray(example.targets[number].valid) == (expected.depth > 0)) > 0.999


def test_a_mixture_has_the_weights_shares_and_renders_the_rest(numbered):
    numbered["a"] = Numbered(count=1000)
    batches = take(training_batches(feed("0.7*pairs:a", "0.3*synthetic", batch_size=10), 0), 20)
    scenes = np.concatenate([delivery.batch.scene for delivery in batches])
    assert (scenes != NOT_RENDERED).sum() == pytest.approx(60, abs=1)
    assert np.array_equal(scenes[scenes != NOT_RENDERED], np.arange((scenes != NOT_RENDERED).sum()))
    files = np.concatenate([delivery.batch.views[0].intrinsics[:, 0, 0] for delivery in batches])
    assert np.array_equal(files == 1, scenes != NOT_RENDERED)  # blanks where a scene is to be rendered, jitter elsewhere


def test_scenes_alone_need_no_arrays_and_never_repeat():
    batches = take(training_batches(feed("synthetic"), 5), 3)
    assert all(delivery.batch.views is None for delivery in batches)
    assert np.concatenate([delivery.batch.scene for delivery in batches]).tolist() == list(range(20, 32))


def test_three_views_of_files_and_scenes_fill_a_batch_with_blanks_where_scenes_will_be(numbered):
    numbered["a"] = Numbered(count=1000)
    batches = take(training_batches(feed("0.5*pairs:a", "0.5*synthetic", views=3), 0), 6)
    for step, (batch, shape, skipped) in enumerate(batches):
        assert batch.position.tolist() == list(range(4 * step, 4 * step + 4)) and skipped == ()
        assert len(batch.views) == 3
        rendered = batch.scene != NOT_RENDERED
        for number, view in enumerate(batch.views):
            assert [array.shape for array in view] == [(4, *shape, 3), (4, *shape), (4, 3, 3), (4, 4, 4)]
            assert not view.image[rendered].any() and not view.depth[rendered].any()
            np.testing.assert_array_equal(view.depth[~rendered], batch.views[0].depth[~rendered] + 1000 * number)
            np.testing.assert_array_equal(view.intrinsics[rendered], np.tile(np.eye(3), (rendered.sum(), 1, 1)))
    assert np.concatenate([batch.scene[batch.scene != NOT_RENDERED] for batch, *_ in batches]).tolist() == list(range(12))


def test_hosts_and_interruptions_change_no_set_of_three_views(numbered):
    numbered["a"] = Numbered(count=7, broken=frozenset({3}))
    config = feed("pairs:a", "0.5*synthetic", shapes=SHAPES, views=3)
    whole = take(training_batches(config, 0), 6)
    halves = [take(training_batches(dataclasses.replace(config, host=host, hosts=2), 3), 3) for host in (0, 1)]
    for full, *parts in zip(whole[3:], *halves, strict=True):
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(part.batch for part in parts))
        assert equal([full], [full._replace(batch=joined)])
        assert full.skipped == parts[0].skipped + parts[1].skipped
    assert any(delivery.skipped for delivery in whole)


def test_larger_sets_come_in_the_order_of_pairs(numbered):
    pairs, sets = (indices(take(training_batches(feed("pairs:a", views=views), 0), 5)) for views in (2, 3))
    assert pairs == sets


def test_a_batch_has_one_shape_and_all_shapes_come(numbered):
    config = feed("pairs:a", shapes=SHAPES)
    batches = take(training_batches(config, 0), 30)
    assert {delivery.shape for delivery in batches} == set(SHAPES)
    for step, delivery in enumerate(batches):
        assert delivery.batch.views[0].image.shape == (4, *delivery.shape, 3)
        assert delivery.shape == shape_of_step(config, step)


def test_an_unreadable_pair_is_replaced_and_reported(numbered):
    numbered["a"] = Numbered(broken=frozenset({2, 7}))
    batches = take(training_batches(feed("pairs:a", batch_size=5), 0), 4)
    skipped = [message for delivery in batches for message in delivery.skipped]
    assert set(indices(batches)) == set(range(10)) - {2, 7}
    assert {source for source, _ in skipped} == {"numbered"}
    # Each comes up twice in two rounds, and now and then as a replacement.
    assert [sum(f"frame{n}.jpg" in text for _, text in skipped) >= 2 for n in (2, 7)] == [True, True]
    assert len(skipped) < 12


def test_unreadable_pairs_end_the_run_if_asked_to(numbered):
    numbered["a"] = Numbered(broken=frozenset(range(10)))
    with pytest.raises(UserError, match=r"frame\d.jpg is not an image.*--unreadable skip"):
        take(training_batches(feed("pairs:a", unreadable="fail"), 0), 1)
    for views, things in ((2, "pairs"), (3, "sets of 3 views")):
        with pytest.raises(UserError, match=f"numbered: 20 {things} in a row could not be read, the last because frame"):
            take(training_batches(feed("pairs:a", views=views), 0), 1)


def test_validation_takes_each_sources_share_evenly_spaced_without_jitter(numbered):
    numbered["a"], numbered["b"] = Numbered(count=100), Numbered(count=40)
    batches = list(validation_batches(feed("pairs:a", "3*pairs:b", crop_jitter=False), 16))
    assert indices(batches) == [0, 25, 50, 75, *[int(i * 40 / 12) for i in range(12)]]
    assert all((delivery.batch.views[0].intrinsics == 0).all() for delivery in batches)


def test_validation_takes_no_pair_twice_and_fills_the_last_batch_up(numbered):
    numbered["a"] = Numbered(count=6)
    (first, last) = validation_batches(feed("pairs:a"), 50)
    assert indices([first, last]) == [0, 1, 2, 3, 4, 5, 0, 1]
    assert last.batch.position.tolist() == [4, 5, 6, 7]


def test_validation_scenes_are_not_training_scenes():
    held_out = np.concatenate([delivery.batch.scene for delivery in validation_batches(feed("synthetic"), 8)])
    trained = np.concatenate([delivery.batch.scene for delivery in take(training_batches(feed("synthetic"), 0), 100)])
    assert len(set(held_out)) == 8 and not set(held_out) & set(trained) and held_out.min() >= 2**30


def test_a_batch_that_does_not_divide_among_hosts_is_refused():
    with pytest.raises(UserError, match="4 pairs cannot be divided among 3 hosts"):
        take(training_batches(feed("synthetic", hosts=3), 0), 1)
    with pytest.raises(UserError, match="4 sets of 5 views cannot be divided among 3 hosts"):
        take(training_batches(feed("synthetic", views=5, hosts=3), 0), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cod3:x", "there is no source 'cod3'"),
        ("co3d", r"needs a folder: co3d:DIR"),
        ("co3d:", r"needs a folder"),
        ("-1*synthetic", "expected a positive number as weight"),
        ("x*synthetic", "expected a positive number as weight"),
        ("nan*synthetic", "expected a positive number as weight"),
        ("", r"is not \[WEIGHT\*\]KIND"),
        ("synthetic:overlap=2-3", "overlap"),
    ],
)
def test_a_faulty_source_is_refused_by_name(text, message):
    with pytest.raises(UserError, match=message):
        parse_data([text])


def test_sources_are_read_as_documented():
    co3d, scenes = parse_data(["0.7*co3d:/data/co3d:v2", "0.3*synthetic:overlap=0.5-0.9"])
    assert co3d == DataSpec("co3d", Path("/data/co3d:v2"), None, 0.7)
    assert (scenes.weight, scenes.scenes.overlap, scenes.root) == (0.3, (0.5, 0.9), None)
    with pytest.raises(UserError, match="twice"):
        parse_data(["synthetic", "synthetic"])


def test_all_sources_have_so_many_views():
    specs = parse_data(["co3d:a", "synthetic:baseline=0.1-1"], views=4)
    assert [spec.views for spec in specs] == [4, 4] and specs[1].scenes.views == 4
    for views in (-1, 0, 1, 257):
        with pytest.raises(UserError, match=f"--views {views}: expected 2 to 256 views in a set"):
            parse_data(["co3d:a"], views=views)


BYTES = os.fsdecode(b"caf\xe9\x1b")


def test_a_pair_whose_name_is_not_utf8_is_skipped_with_a_printable_line(tmp_path):
    views = make_views(6, (48, 64))
    root = tmp_path / BYTES
    root.mkdir()
    write_co3d(root, {f"apple/a{number}": views for number in range(2)})
    for photo in (root / "apple/a0/images").glob("*.jpg"):
        photo.write_bytes(b"nothing")
    deliveries = training_batches(feed(f"co3d:{root}"), 0)
    source, reason = next(skip for delivery in deliveries for skip in delivery.skipped)
    for text in (source, reason):
        text.encode("utf-8")
        assert "caf\\xe9\\x1b" in text and text.isprintable()
    assert reason.endswith("convert it to PNG or JPEG")


def test_workers_leave_no_shared_memory_behind(tmp_path):
    views = make_views(6, (48, 64))
    write_pairs(tmp_path, views, [(i, j) for i in range(6) for j in range(6) if i != j])
    program = f"""
from und3rstand_jax.data import loader
from und3rstand_jax.data.specification import parse_data
def train():
    feed = loader.Feed(parse_data([{f"pairs:{tmp_path}"!r}]), ((16, 16),), 4, 0, workers=2)
    batches = loader.training_batches(feed, loader.open_sources(feed.specs, "train"), 0)
    print(len(next(batches).batch.position))
if __name__ == "__main__":
    train()
"""
    script = tmp_path / "train.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
