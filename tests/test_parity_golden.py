"""The original's own outputs, layer by layer, through a real file: save -> `python -m convert` -> load -> compare."""

import pytest

import und3rstand_jax as u3d
from tests.conversion import converted, save_pth
from tests.golden_cases import FULL_CASE, SMALL_CASES, load_golden
from tests.make_checkpoint import save_hub_folder
from tests.parity import error_ratios
from tests.with_torch import needs_torch

pytestmark = pytest.mark.optimised


@pytest.mark.parametrize("layout", ["hub", pytest.param("pth", marks=needs_torch)])
@pytest.mark.parametrize("name", SMALL_CASES)
def test_every_array_of_the_small_cases_is_within_twice_the_original_float32_error(name, layout, tmp_path):
    golden = load_golden(name)
    save, place = {"hub": (save_hub_folder, tmp_path / "hub"), "pth": (save_pth, tmp_path / "model.pth")}[layout]
    checkpoint = converted(save(place, golden.state_dict, golden.config), tmp_path / "jax")
    ratios = error_ratios(golden, u3d.load_backbone(checkpoint))
    assert ratios.keys() == golden.arrays.keys()
    assert {array: ratio for array, ratio in ratios.items() if not ratio <= 2.0} == {}


@pytest.mark.slow
def test_every_array_of_the_full_size_model_is_within_two_and_a_half_times_the_original_float32_error(tmp_path):
    golden = load_golden(FULL_CASE)
    source = save_hub_folder(tmp_path / "hub", {k: v for k, v in golden.state_dict.items() if ".layer_rn." not in k}, golden.config)
    golden.state_dict.clear()
    checkpoint = converted(source, tmp_path / "jax")
    ratios = error_ratios(golden, u3d.load_backbone(checkpoint))
    assert ratios.keys() == golden.arrays.keys()
    assert {array: ratio for array, ratio in ratios.items() if not ratio <= 2.5} == {}
