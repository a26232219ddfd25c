"""VGGT against the original's own outputs, layer by layer, through a real file."""

import gc

import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden_vggt import FULL_CASE, SMALL_CASE, load_vggt_case
from tests.make_checkpoint import save_hub_folder, vggt_config
from tests.vggt_golden_models import error_ratios, golden, golden_backbone


def excessive(case, backbone):
    """Array -> our error over the original's own in float32, where that is above 2."""
    ratios = error_ratios(case, backbone)
    assert ratios.keys() == case.arrays.keys()
    return {name: ratio for name, ratio in ratios.items() if not ratio <= 2}


@pytest.mark.parametrize("compiled", ["quickly", pytest.param("as users do", marks=[pytest.mark.slow, pytest.mark.optimised])])
def test_every_array_of_the_small_case_is_within_twice_the_original_float32_error(compiled):
    case = golden(SMALL_CASE)
    assert excessive(case, golden_backbone()) == {}


@pytest.mark.slow
@pytest.mark.optimised
def test_every_array_of_the_full_size_model_is_within_twice_the_original_float32_error(tmp_path):
    case = load_vggt_case(FULL_CASE)
    source = save_hub_folder(tmp_path / "hub", case.state_dict, vggt_config(case.config).to_hub_config())
    case.state_dict.clear()
    gc.collect()
    backbone = u3d.load_backbone(converted(source, tmp_path / "jax"))
    assert excessive(case, backbone) == {}
