"""The PyTorch reference against the original's own outputs and against values worked out by hand."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from tests.golden_cases import FULL_CASE, GOLDEN, SMALL_CASES, GoldenCase, load_golden, relative_error, subsample
from tests.tiny import MAST3R_CONFIG
from tests.with_torch import HAS_TORCH, needs_torch
from und3rstand_jax.model.layer_ids import layer_ids
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup

if HAS_TORCH:
    import torch

    from tests.torch_reference import DUSt3RReference, ProbeReference, ReferenceOutput, load_reference
    from tests.torch_reference.heads import confidence, pointmap
    from tests.torch_reference.probes import patches_to_image

pytestmark = needs_torch

INF = math.inf
# Golden arrays are float64 results rounded to float32: 2**-25 relative is all that may be left.
STORAGE_ERROR = 6e-8

golden = functools.cache(load_golden)


def run(case: GoldenCase, model: DUSt3RReference, dtype: torch.dtype, record: bool = True) -> ReferenceOutput:
    view1, view2 = (torch.from_numpy(image).permute(0, 3, 1, 2).to(dtype) for image in case.images)
    with torch.inference_mode():
        return model.to(dtype)(view1, view2, record=record)


def named_arrays(output: ReferenceOutput) -> dict[str, np.ndarray]:
    arrays = {f"{layer}/view{v}": t.numpy() for layer, views in output.activations.items() for v, t in enumerate(views, start=1)}
    heads = {f"head.{key}/view{v}": t.numpy() for v, pred in enumerate(output[1:], start=1) for key, t in pred.items()}
    return arrays | heads


def errors(case: GoldenCase, output: ReferenceOutput) -> dict[str, float]:
    arrays = named_arrays(output)
    assert arrays.keys() == case.arrays.keys()
    return {name: relative_error(subsample(array, name, case.case), case.arrays[name]) for name, array in arrays.items()}


def excessive(found: dict[str, float], case: GoldenCase, factor: float) -> dict[str, float]:
    """Ratios to the original's own float32 error that exceed `factor`."""
    yardstick = case.case["torch_float32_relative_error"]
    return {name: error / yardstick[name] for name, error in found.items() if error > factor * yardstick[name]}


@pytest.mark.parametrize("name", SMALL_CASES)
def test_golden_in_float64(name: str) -> None:
    case = golden(name)
    found = errors(case, run(case, load_reference(case.config, case.state_dict), torch.float64))
    assert {k: e for k, e in found.items() if e > STORAGE_ERROR} == {}


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
@pytest.mark.parametrize("name", SMALL_CASES)
def test_golden_in_float32(name: str, attention: str) -> None:
    case = golden(name)
    found = errors(case, run(case, load_reference(case.config, case.state_dict, attention), torch.float32))
    assert excessive(found, case, 2.0) == {}


@pytest.mark.slow
def test_golden_full_size() -> None:
    case = load_golden(FULL_CASE)
    found = errors(case, run(case, load_reference(case.config, case.state_dict), torch.float32))
    assert excessive(found, case, 2.0) == {}


def test_layers_are_recorded_in_network_order() -> None:
    case = golden("tiny_linear")
    output = run(case, load_reference(case.config, case.state_dict), torch.float32)
    expected = ("patch_embed", *layer_ids(case.config["enc_depth"], case.config["dec_depth"]))
    assert tuple(output.activations) == expected


@pytest.mark.parametrize("name", SMALL_CASES)
def test_sdpa_equals_plain(name: str) -> None:
    case = golden(name)
    plain, sdpa = (
        named_arrays(run(case, load_reference(case.config, case.state_dict, attention), torch.float64)) for attention in ("plain", "sdpa")
    )
    assert max(relative_error(sdpa[key], plain[key]) for key in plain) < 1e-12


@pytest.mark.parametrize("name", SMALL_CASES)
def test_recording_changes_nothing(name: str) -> None:
    case = golden(name)
    model = load_reference(case.config, case.state_dict)
    recorded, bare = run(case, model, torch.float32), run(case, model, torch.float32, record=False)
    assert bare.activations == {}
    assert torch.equal(recorded.pred2["pts3d"], bare.pred2["pts3d"])


def test_without_a_head_it_is_the_trunk() -> None:
    case = golden("tiny_linear")
    config = {key: value for key, value in case.config.items() if key != "head_type"}
    trunk = {key: value for key, value in case.state_dict.items() if not key.startswith("downstream_head")}
    output = run(case, load_reference(config, trunk), torch.float64)
    assert output.pred1 is None and output.pred2 is None
    assert relative_error(output.activations["decoder.norm"][1], case.arrays["decoder.norm/view2"]) < STORAGE_ERROR


def test_bfloat16_trunk_with_float32_heads() -> None:
    case = golden("tiny_dpt")
    model = load_reference(case.config, case.state_dict).bfloat16()
    model.downstream_head1.float(), model.downstream_head2.float()
    view1, view2 = (torch.from_numpy(image).permute(0, 3, 1, 2).bfloat16() for image in case.images)
    with torch.inference_mode():
        output = model(view1, view2)
    tokens, conf = output.activations["decoder.norm"][0], output.pred1["conf"]
    assert (tokens.dtype, conf.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(tokens.float(), case.arrays["decoder.norm/view1"]) < 0.05


def test_dpt_takes_odd_grids_and_views_of_different_sizes() -> None:
    """5×3 and 3×4 patches: the coarsest level is rounded up and cropped back."""
    case = golden("tiny_dpt")
    torch.manual_seed(0)
    with torch.inference_mode():
        output = load_reference(case.config, case.state_dict)(torch.randn(1, 3, 80, 48), torch.randn(1, 3, 48, 64))
    assert output.pred1["pts3d"].shape == (1, 80, 48, 3) and output.pred2["conf"].shape == (1, 48, 64)
    assert output.pred1["pts3d"].isfinite().all() and (output.pred2["conf"] > 1).all()


VARIANTS = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": {"head_type": "linear"},
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": {"head_type": "dpt"},
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": MAST3R_CONFIG,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_shapes_and_order_are_the_originals(variant: str) -> None:
    config = golden("tiny_linear").config | VARIANTS[variant]
    config |= {"enc_embed_dim": 1024, "enc_depth": 24, "enc_num_heads": 16, "dec_embed_dim": 768, "dec_depth": 12, "dec_num_heads": 12}
    with torch.device("meta"):
        model = DUSt3RReference(config)
    rows = [line.split("\t") for line in (GOLDEN / f"{variant}.keys.tsv").read_text().splitlines()[1:]]
    assert [(name, "x".join(map(str, t.shape))) for name, t in model.state_dict().items()] == [(name, shape) for name, shape in rows]


@pytest.mark.parametrize("name", SMALL_CASES)
def test_state_dict_comes_back(name: str) -> None:
    case = golden(name)
    ours = load_reference(case.config, case.state_dict).state_dict()
    assert ours.keys() == case.state_dict.keys()
    assert all(np.array_equal(ours[key].numpy(), array) for key, array in case.state_dict.items())


def test_second_names_are_one_parameter_and_may_be_missing() -> None:
    case = golden("tiny_dpt")
    hub = {key: array for key, array in case.state_dict.items() if ".layer_rn." not in key}
    assert len(case.state_dict) - len(hub) == 8
    model = load_reference(case.config, hub)
    scratch = model.downstream_head1.dpt.scratch
    assert scratch.layer3_rn.weight is scratch.layer_rn[2].weight
    assert model.state_dict().keys() == case.state_dict.keys()


def test_croco_checkpoint_gets_its_second_decoder_from_the_first() -> None:
    case = golden("tiny_linear")
    config = case.config | {"head_type": None}
    croco = {key: array for key, array in case.state_dict.items() if not key.startswith(("dec_blocks2.", "downstream_head"))}
    model = load_reference(config, croco | {"prediction_head.weight": np.zeros(3)})
    first, second = model.dec_blocks[1].cross_attn.projk.weight, model.dec_blocks2[1].cross_attn.projk.weight
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()


def test_a_missing_tensor_is_refused() -> None:
    case = golden("tiny_linear")
    with pytest.raises(RuntimeError, match="enc_norm.bias"):
        load_reference(case.config, {key: array for key, array in case.state_dict.items() if key != "enc_norm.bias"})


@pytest.mark.parametrize(
    ("mode", "factor"),
    [("exp", math.expm1(3.0) / 3.0), ("square", 3.0), ("linear", 1.0)],
)
def test_depth_modes(mode: str, factor: float) -> None:
    xyz = torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)  # distances 3 and 0
    expected = torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64) * factor
    torch.testing.assert_close(pointmap(xyz, (mode, -INF, INF)), expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (("exp", 1, INF), [1.5, 2.0, 5.0]),
        (("exp", 0, INF), [0.5, 1.0, 4.0]),
        (("exp", 1, 3), [1.5, 2.0, 3.0]),
        (("sigmoid", 0, 1), [1 / 3, 0.5, 0.8]),
        (("sigmoid", 1, 4), [2.0, 2.5, 3.4]),
    ],
)
def test_confidence_modes(mode: tuple[str, float, float], expected: list[float]) -> None:
    raw = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64).log()
    torch.testing.assert_close(confidence(raw, mode), torch.tensor(expected, dtype=torch.float64))


LAYOUT_INDEX = {
    "channels_first": lambda channel, row, column, p, channels: channel * p * p + row * p + column,
    "channels_last": lambda channel, row, column, p, channels: (row * p + column) * channels + channel,
}


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("layout", LAYOUT_INDEX)
def test_patches_land_where_the_layout_says(layout: str, channels: int) -> None:
    h, w, p = 2, 3, 2
    patches = torch.arange(2 * h * w * channels * p * p).reshape(2, h * w, channels * p * p)
    image = patches_to_image(patches, (h, w), p, layout)
    assert image.shape == (2, channels, h * p, w * p)
    for b, channel, y, x in np.ndindex(*image.shape):
        token = (y // p) * w + x // p
        assert image[b, channel, y, x] == patches[b, token, LAYOUT_INDEX[layout](channel, y % p, x % p, p, channels)]


NUMPY_ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "identity": lambda x: x,
}


def numpy_norm(x: np.ndarray, norm: str, eps: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    if norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def numpy_probe(x: np.ndarray, state: dict[str, np.ndarray], prefix: str, residual: bool, config: ProbeConfig) -> np.ndarray:
    """Linear 6→8, norm, activation, linear 8→8, norm, activation, linear 8→16."""

    def w(step: int, name: str) -> np.ndarray:
        return state.get(f"{prefix}{step}.{name}", np.zeros(1))

    def hidden(y: np.ndarray, step: int) -> np.ndarray:
        y = y @ w(step, "weight").T + w(step, "bias")
        y = numpy_norm(y, config.norm, config.norm_epsilon, w(step + 1, "weight"), w(step + 1, "bias"))
        return NUMPY_ACTIVATIONS[config.activation](y)

    x = hidden(x, 0)
    x = hidden(x, 3) + (x if residual else 0)
    return x @ w(6, "weight").T + w(6, "bias")


STEPS = ("linear", "norm", "activation", "linear", "norm", "activation", "linear")
LAYERS = ("decoder.0.mlp", "decoder.1.self_attn")


def random_probes(**options: object) -> tuple[ProbeReference, dict[str, np.ndarray]]:
    group = ProbeGroup(LAYERS, (6, 8, 8, 16), STEPS, biases=(True, False, True), norm_biases=(False, True))
    torch.manual_seed(0)
    probes = ProbeReference(ProbeConfig((group,), patch_size=2, norm_epsilon=0.1, **options)).double()
    with torch.no_grad():
        for parameter in probes.parameters():
            parameter.normal_()
    return probes, {name: t.numpy() for name, t in probes.state_dict().items()}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("views", ["shared", "separate"])
@pytest.mark.parametrize("activation", NUMPY_ACTIVATIONS)
def test_probe_equals_numpy(activation: str, views: str, norm: str, residual: bool) -> None:
    probes, state = random_probes(
        activation=activation, views=views, norm=norm, residual=residual, depth_mode=("linear", -INF, INF), conf_mode=("sigmoid", 0.0, 2.0)
    )
    sizes = ((4, 6), (6, 2))
    rng = np.random.default_rng(0)
    features = {layer: tuple(rng.normal(size=(2, h * w // 4, 6)) for h, w in sizes) for layer in reversed(LAYERS)}
    with torch.no_grad():
        outputs = probes({layer: tuple(map(torch.from_numpy, tokens)) for layer, tokens in features.items()}, sizes)
    for k, layer in enumerate(LAYERS):
        for v, (height, width) in enumerate(sizes):
            prefix = f"probes.{k}." + (f"view{v + 1}." if views == "separate" else "")
            tokens = numpy_probe(features[layer][v], state, prefix, residual, probes.config)
            tiles = tokens.reshape(2, height // 2, width // 2, 4, 2, 2)
            image = np.einsum("bhwcij->bhiwjc", tiles).reshape(2, height, width, 4)
            np.testing.assert_allclose(outputs[k][v]["pts3d"], image[..., :3], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(outputs[k][v]["conf"], 2 / (1 + np.exp(-image[..., 3])), rtol=1e-12)


def test_first_linear_layer_of_equal_widths_has_a_skip_and_the_last_has_none() -> None:
    group = ProbeGroup(("encoder.norm",), (12, 12, 12), ("norm", "linear", "activation", "linear"), (False, False), (False,))
    config = ProbeConfig((group,), patch_size=2, residual=True, activation="relu", norm="rmsnorm", depth_mode=("linear", -INF, INF))
    probes = ProbeReference(config).double()
    assert list(probes.state_dict()) == ["probes.0.0.weight", "probes.0.1.weight", "probes.0.3.weight"]
    eye = torch.eye(12, dtype=torch.float64)
    probes.load_state_dict({"probes.0.0.weight": torch.full((12,), 3.0), "probes.0.1.weight": -2 * eye, "probes.0.3.weight": 5 * eye})
    tokens = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(6).reshape(1, 1, 12)  # mean square 1
    with torch.no_grad():
        ((pred1, pred2),) = probes({"encoder.norm": (tokens, tokens)}, ((2, 2), (2, 2)))
    # normed to -3, 3; times -2 and ReLU: 6, 0; plus the skip: 3, 3; times 5 without a skip: 15.
    assert pred1.keys() == {"pts3d"}
    np.testing.assert_allclose(pred1["pts3d"], np.full((1, 2, 2, 3), 15.0), rtol=1e-4)
    assert torch.equal(pred1["pts3d"], pred2["pts3d"])


def test_linear_head_and_probe_of_the_same_weights_agree() -> None:
    """A probe of one linear layer on decoder.norm is DUSt3R's linear head, activations included."""
    case = golden("tiny_linear")
    group = ProbeGroup(("decoder.norm",), (48, 1024), ("linear",), (True,))
    probes = ProbeReference(ProbeConfig((group,), views="separate"))
    state = {f"probes.0.view{v}.0.{p}": case.state_dict[f"downstream_head{v}.proj.{p}"] for v in (1, 2) for p in ("weight", "bias")}
    probes.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    tokens = tuple(torch.from_numpy(case.arrays[f"decoder.norm/view{v}"]) for v in (1, 2))
    with torch.no_grad():
        ((pred1, pred2),) = probes({"decoder.norm": tokens}, ((64, 64), (64, 64)))
    assert relative_error(pred1["pts3d"], case.arrays["head.pts3d/view1"]) < 1e-6
    assert relative_error(pred2["conf"], case.arrays["head.conf/view2"]) < 1e-6
