"""What the report's page carries of heads, tokens that are not seen, and the lens; and that it stays small."""

import numpy as np
import pytest

from tests.browser import Page
from tests.page_cases import make_report, small_page, small_report
from tests.use_cases import make_lens, make_use, small_page_of_uses, small_use
from und3rstand_jax.analysis.true_place_attention import TruePlaces
from und3rstand_jax.report.page import LARGEST_PAGE, page_text
from und3rstand_jax.report.page_attention import pooled_marks
from und3rstand_jax.report.page_geometry import STEPS_PER_UNIT
from und3rstand_jax.report.page_use import use_numbers


def test_the_page_has_every_heads_numbers_and_the_costliest_heads_points():
    use, page = small_use(), Page(small_page_of_uses())
    values, arrays = page.values(), page.arrays()
    for attention, numbers in values["use"]["numbers"].items():
        np.testing.assert_allclose(numbers["cost"], use.cost[attention], atol=1e-6)
        np.testing.assert_allclose(numbers["sink"], use.sink[attention], atol=1e-6)
    np.testing.assert_allclose(values["use"]["numbers"]["cross_attn"]["mass"], use.mass, atol=1e-6)
    assert values["use"]["numbers"]["self_attn"]["mass"] is None and values["use"]["measure"] == "error"
    count = len(small_report().layers)
    assert arrays["points1"].shape[0] == count + 3 and arrays["confidence1"].shape[0] == count
    for index, one in enumerate(use.without):
        head = values["use"]["without"][index]
        assert (head["attention"], head["view"], head["block"], head["head"]) == one.head
        for view, geometry in enumerate(one.views, start=1):
            stored = np.moveaxis(arrays[f"points{view}"][count + index], 0, -1) / STEPS_PER_UNIT
            ratio = np.linalg.norm(geometry.points, axis=-1) / np.linalg.norm(stored, axis=-1)
            np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.01)


def test_self_attention_comes_back_within_its_bound():
    arrays, info = Page(small_page_of_uses()).arrays(), Page(small_page_of_uses()).values()["use"]["attention"]
    for index, block in enumerate(small_use().self_attention):
        for view, given in ((1, block.weights[0]), (2, block.weights[1])):
            peaks = arrays[f"self_peaks{view}"][index][..., None]
            back = peaks * (arrays[f"self_weights{view}"][index] / info["levels"]) ** 2
            assert (np.abs(back - given) <= peaks * (1 / info["levels"] + 1 / (4 * info["levels"] ** 2)) + 1e-7).all()


def test_without_ground_truth_points_without_a_head_keep_the_unedited_scale():
    report = make_report((32, 48), 1, 2, has_truth=False)
    page = Page(page_text(report, make_use(report), {}))
    stored, count = page.arrays()["points1"], len(report.layers)
    moved = (stored[count].astype(float) - stored[count - 1]) / STEPS_PER_UNIT * page.values()["layers"][-1]["scale"]
    np.testing.assert_allclose(moved, 0.1, atol=0.01)
    assert page.values()["use"]["measure"] == "displacement" and page.values()["attention"]["marks"] is None


def test_lens_errors_are_on_the_page_and_what_is_not_finite_is_null():
    assert Page(small_page_of_uses()).values()["lens"] == {layer: [1.0, None] for layer in make_lens(small_report())}
    assert Page(small_page()).values()["lens"] == {} and Page(small_page()).values()["use"] is None


def test_tokens_that_are_not_seen_and_true_places_are_marked_by_cell():
    # 2×4 tokens in cells of 2×2; of the first cell one token is seen, in the second all are.
    token = np.array([3, -1, 5, 1, -1, -1, 7, 2], np.int32)
    place = TruePlaces(np.zeros((8, 8), bool), token >= 0, token)
    (one, other) = pooled_marks(({2: place}, {1: place}), ((2, 4), (2, 4)), 2)
    assert one == {"hidden": [0], "places": {"2": [-1, 1]}} and other == {"hidden": [0], "places": {"1": [-1, 1]}}
    assert pooled_marks(({2: place}, {1: place}), ((2, 4), (2, 4)), 1)[0] == {"hidden": [1, 4, 5], "places": {"2": token.tolist()}}


def test_marks_are_there_without_uses_wherever_there_is_a_truth():
    marks = Page(small_page()).values()["attention"]["marks"]
    places = [marks[0]["places"]["2"], marks[1]["places"]["1"]]
    assert list(map(len, places)) == [24, 24]
    for view, of_view in zip(marks, places, strict=True):
        assert set(view["hidden"]) == {cell for cell, place in enumerate(of_view) if place < 0}


def test_numbers_for_other_programs_are_explained():
    numbers = use_numbers(small_use())
    assert len(numbers["heads"]) == 4 * 3 * 2
    explained = {name for names in numbers["meaning"] for name in names.split(", ")}
    assert {name for record in numbers["heads"] for name in record} <= explained
    record = next(one for one in numbers["heads"] if (one["attention"], one["view"], one["block"], one["head"]) == ("cross_attn", 2, 1, 0))
    assert record["mass"] == small_use().mass[1, 1, 0] and record["cost"] == small_use().cost["cross_attn"][1, 1, 0].tolist()


def test_a_pocket_sized_page_with_a_dozen_heads_keeps_every_pixel_and_token_below_10_megabytes():
    report = make_report((128, 128), 8, 4)
    page = page_text(report, make_use(report, kept=12), make_lens(report))
    values = Page(page).values()
    assert len(page) <= LARGEST_PAGE < 10_000_000
    assert values["geometry"]["stride"] == values["attention"]["pool"] == values["use"]["attention"]["pool"] == 1


@pytest.mark.slow
def test_a_full_size_page_with_a_dozen_heads_fits():
    report = make_report((384, 512), 12, 12)
    page = page_text(report, make_use(report, kept=12), make_lens(report))
    values = Page(page).values()
    assert len(page) <= LARGEST_PAGE and len(values["use"]["without"]) == 12
    assert values["geometry"]["stride"] <= 4 and values["attention"]["pool"] <= 3 and values["use"]["attention"]["pool"] <= 4
