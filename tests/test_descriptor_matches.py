"""Matching by descriptors: pair for pair what the original finds, and what the definition says."""

import numpy as np
import pytest

import und3rstand_jax as u3d
from tests.golden_cases import GOLDEN
from und3rstand_jax.geometry import nearest
from und3rstand_jax.geometry.descriptor_matches import _walked, seed_places
from und3rstand_jax.geometry.nearest import Descriptors
from und3rstand_jax.model.output import BackboneOutput

KINDS = {
    "seeds8": {"seeds": 8},
    "seeds4": {"seeds": 4},
    "seeds1": {"seeds": 1},
    "seeds4_tolerance1": {"seeds": 4, "tolerance": 1},
    "seeds4_tolerance2": {"seeds": 4, "tolerance": 2},
    "both_ways8": {"seeds": 8, "both_ways": True},
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "matching.npz") as file:
        return dict(file)


def output_of(desc1, desc2, conf1=None, conf2=None) -> BackboneOutput:
    """What a model returns, of one pair."""
    preds = []
    for desc, conf in ((desc1, conf1), (desc2, conf2)):
        preds.append({"desc": desc[None]} | ({} if conf is None else {"desc_conf": conf[None]}))
    return BackboneOutput({}, (desc1.shape[:2], desc2.shape[:2]), preds)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = rng.standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_the_originals(golden, kind):
    found = u3d.match(output_of(golden["desc1"], golden["desc2"], golden["conf1"], golden["conf2"]), **KINDS[kind])
    np.testing.assert_array_equal(found.pixels1, golden[f"{kind}/xy1"])
    np.testing.assert_array_equal(found.pixels2, golden[f"{kind}/xy2"])
    if f"{kind}/conf" in golden:
        np.testing.assert_array_equal(found.confidence, golden[f"{kind}/conf"])


@pytest.mark.parametrize("block", [7, 512, 4096])
def test_nearest_pixels_are_the_originals_whatever_the_blocks(golden, block, monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", block)
    nearest._nearest.clear_cache()
    one, two = (Descriptors(golden[f"desc{view}"]) for view in (1, 2))
    np.testing.assert_array_equal(two.nearest(one.of(np.arange(40 * 56))), golden["nearest1"])
    np.testing.assert_array_equal(one.nearest(two.of(np.arange(48 * 36))), golden["nearest2"])
    nearest._nearest.clear_cache()


def test_of_equals_the_first_is_nearest():
    same = np.tile(unit(np.random.default_rng(0), 1, 1, 4), (40, 40, 1))
    assert Descriptors(same).nearest(Descriptors(same).of(np.array([0, 1599]))).tolist() == [0, 0]


def test_no_matrix_of_all_pairs_is_in_memory():
    rows = np.zeros((nearest._BLOCK * 128, 24), np.float32)
    compiled = nearest._nearest.lower(np.zeros((4096, 24), np.float32), rows, np.ones(len(rows), bool)).compile()
    # A block of similarities, and the places looked up in it: 4096·65536 of them would take a GiB.
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_both_orders_are_united_as_the_definition_says():
    rng = np.random.default_rng(1)
    of_view = {name: unit(rng, *shape, 6) for name, shape in (("a1", (9, 12)), ("b1", (8, 10)), ("a2", (9, 12)), ("b2", (8, 10)))}
    # In part alike, so that both orders find some pairs.
    of_view["a2"][:5], of_view["b2"][:6] = of_view["a1"][:5], of_view["b1"][:6]
    conf = {name: rng.uniform(0.1, 3, of_view[name].shape[:2]).astype(np.float32) for name in of_view}
    first = output_of(of_view["a1"], of_view["b1"], conf["a1"], conf["b1"])
    second = output_of(of_view["b2"], of_view["a2"], conf["b2"], conf["a2"])
    found = u3d.match(first, seeds=3, swapped=second)

    expected: dict[tuple[int, int], float] = {}
    for order in ("1", "2"):
        a, b = (of_view[f"{view}{order}"].reshape(-1, 6) for view in "ab")
        similarity = a @ b.T
        walks = [(seed_places((9, 12), 3), similarity, False), (seed_places((8, 10), 3), similarity.T, True)]
        for seeds, table, turned in walks:
            for p, q in (walk for seed in seeds if (walk := walked(seed, table)) is not None):
                pair = (q, p) if turned else (p, q)
                strength = conf[f"a{order}"].ravel()[pair[0]] * conf[f"b{order}"].ravel()[pair[1]]
                expected.setdefault(pair, float(np.sqrt(strength)))
    assert len(expected) > 10
    flat = [(y1 * 12 + x1, y2 * 10 + x2) for (x1, y1), (x2, y2) in zip(found.pixels1, found.pixels2, strict=True)]
    assert flat == sorted(expected)
    np.testing.assert_allclose(found.confidence, [expected[pair] for pair in flat], rtol=1e-6)


def walked(seed: int, similarity: np.ndarray) -> tuple[int, int] | None:
    """The pair in which a walk ends, by the definition."""
    here, before = int(seed), -1
    for _ in range(10):
        there = int(similarity[here].argmax())
        if there == before:
            return here, there
        back = int(similarity[:, there].argmax())
        if back == here:
            return here, there
        here, before = back, there
    return None


def test_a_walk_of_more_than_ten_rounds_matches_nothing():
    # Along a line, every pixel's partner is a step ahead of it, so that a walk from the first goes on to the last.
    angles = np.cumsum(1 / np.arange(1, 25.0)) / 4
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    one, two = points[None, ::2], points[None, 1::2]
    first, second = Descriptors(one), Descriptors(two)
    assert walked(1, one[0] @ two[0].T) is None and walked(2, one[0] @ two[0].T) == (11, 11)
    for seed, ends in ((11, [11]), (2, [11]), (1, []), (0, [])):  # 1, 10, 11 and 12 rounds
        found, partners = _walked(first, second, np.array([seed]))
        assert (found.tolist(), partners.tolist()) == (ends, ends)


def test_descriptors_that_are_not_finite_match_nothing():
    rng = np.random.default_rng(2)
    one, two = unit(rng, 8, 8, 4), unit(rng, 8, 8, 4)
    one[0, :], two[:, 0] = np.nan, np.nan
    found = u3d.match(output_of(one, two), seeds=1)
    assert len(found) and (found.pixels1[:, 1] > 0).all() and (found.pixels2[:, 0] > 0).all()
    blank = np.full_like(two, np.nan)
    for some in (output_of(one, blank), output_of(blank, two), output_of(blank, blank)):
        assert len(u3d.match(some, seeds=1, both_ways=True)) == 0


def test_a_pair_of_a_batch_and_the_border():
    rng = np.random.default_rng(3)
    desc = [unit(rng, 2, 16, 16, 8) for _ in range(2)]
    batch = BackboneOutput({}, ((16, 16), (16, 16)), ({"desc": values} for values in desc))
    alone = u3d.match(output_of(desc[0][1], desc[1][1]), seeds=2)
    found = u3d.match(batch, pair=1, seeds=2)
    np.testing.assert_array_equal(found.pixels2, alone.pixels2)
    inner = u3d.match(batch, pair=1, seeds=2, border=3)
    both = np.concatenate([alone.pixels1, alone.pixels2], axis=-1)
    kept = ((both >= 3) & (both < 13)).all(axis=-1)
    assert 0 < kept.sum() < len(alone)
    np.testing.assert_array_equal(np.concatenate([inner.pixels1, inner.pixels2], axis=-1), both[kept])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds of at least 1"),
        ({"tolerance": 0}, "a tolerance above 0"),
        ({"border": -1}, "a border of at least 0"),
        ({"tolerance": 2, "both_ways": True}, "a tolerance applies to seeds of view 1 without a walk"),
        ({"pair": 1}, "has 1 pairs, 0 to 0; found pair=1"),
    ],
)
def test_what_cannot_be_matched_is_refused(options, message):
    desc = unit(np.random.default_rng(4), 8, 8, 4)
    with pytest.raises(u3d.OptionError, match=message):
        u3d.match(output_of(desc, desc), **options)


def test_an_output_without_descriptors_or_of_another_pair_is_refused():
    desc = unit(np.random.default_rng(5), 2, 8, 8, 4)
    batch = BackboneOutput({}, ((8, 8), (8, 8)), ({"desc": desc}, {"desc": desc}))
    with pytest.raises(u3d.OptionError, match="has 2 pairs; say which with pair=0 to 1"):
        u3d.match(batch)
    with pytest.raises(u3d.OptionError, match="the output has no descriptors; expected that of a model with local features"):
        u3d.match(BackboneOutput({}, ((8, 8), (8, 8))))
    with pytest.raises(u3d.OptionError, match="swapped: expected views of"):
        u3d.match(output_of(desc[0], desc[1][:4]), swapped=output_of(desc[0], desc[1][:4]))
