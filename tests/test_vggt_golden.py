"""VGGT against the original's own outputs, layer by layer, through a real file."""

import gc

import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.golden_cases import relative_error
from tests.golden_vggt import FULL_CASE, SMALL_CASE, load_vggt_case
from tests.make_checkpoint import save_hub_folder, vggt_config
from tests.vggt_golden_models import golden, golden_backbone, named_arrays, views_of

EVERYTHING = ("*", "camera.*", "pose_enc.*", "depth_head.*", "point_head.*")


def excessive(case, output):
    """Array -> our error over the original's own in float32, where that is above 2."""
    arrays = named_arrays(output)
    assert arrays.keys() == case.arrays.keys()
    ratios = {name: relative_error(case.stored(name, arrays[name]), case.arrays[name]) / case.float32_error(name) for name in arrays}
    return {name: ratio for name, ratio in ratios.items() if not ratio <= 2}


@pytest.mark.parametrize("compiled", ["quickly", pytest.param("as users do", marks=[pytest.mark.slow, pytest.mark.optimised])])
def test_every_array_of_the_small_case_is_within_twice_the_original_float32_error(compiled):
    case = golden(SMALL_CASE)
    assert excessive(case, golden_backbone()(*views_of(case), capture=EVERYTHING)) == {}


@pytest.mark.slow
@pytest.mark.optimised
def test_every_array_of_the_full_size_model_is_within_twice_the_original_float32_error(tmp_path):
    case = load_vggt_case(FULL_CASE)
    source = save_hub_folder(tmp_path / "hub", case.state_dict, vggt_config(case.config).to_hub_config())
    case.state_dict.clear()
    gc.collect()
    backbone = u3d.load_backbone(converted(source, tmp_path / "jax"))
    assert excessive(case, backbone(*views_of(case), capture=EVERYTHING)) == {}
