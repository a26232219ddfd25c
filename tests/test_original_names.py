"""The names and shapes that test checkpoints are made of are the original's, in its order."""

import json

import pytest

from tests.golden_cases import FULL_CASE, GOLDEN, SMALL_CASES
from tests.original_names import original_shapes
from tests.tiny import CONFIG, DPT_CONFIG, MAST3R_CONFIG
from tests.with_torch import needs_torch

FULL_SIZE = {"enc_embed_dim": 1024, "enc_depth": 24, "dec_embed_dim": 768, "dec_depth": 12}


VARIANTS = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": {"head_type": "linear"},
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": {"head_type": "dpt"},
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": MAST3R_CONFIG,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_those_of_the_published_checkpoints(variant):
    rows = [line.split("\t") for line in (GOLDEN / f"{variant}.keys.tsv").read_text().splitlines()[1:]]
    shapes = original_shapes(VARIANTS[variant] | FULL_SIZE)
    assert [[name, "x".join(map(str, shape))] for name, shape in shapes.items()] == rows


@pytest.mark.parametrize("name", [*SMALL_CASES, FULL_CASE])
def test_they_are_those_that_the_golden_cases_were_computed_with(name):
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    assert [(name, list(shape)) for name, shape in original_shapes(case["config"]).items()] == list(case["state_dict"].items())


@needs_torch
@pytest.mark.parametrize("config", [CONFIG, DPT_CONFIG, MAST3R_CONFIG, {key: value for key, value in CONFIG.items() if key != "head_type"}])
def test_they_are_the_pytorch_references(config):
    import torch

    from tests.torch_reference import DUSt3RReference

    with torch.device("meta"):
        expected = DUSt3RReference(config).state_dict()
    assert list(original_shapes(config).items()) == [(name, tuple(tensor.shape)) for name, tensor in expected.items()]
