"""The recogniser of probe checkpoints: many naming schemes, one plan; and everything it must not guess."""

import dataclasses
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.golden_cases import GOLDEN
from und3rstand_jax.convert.findings import Finding
from und3rstand_jax.convert.options import ProbeOptions
from und3rstand_jax.convert.parts import ConversionPlan, PartPlan
from und3rstand_jax.convert.probes.plan import find_probe_tensors, plan_probes
from und3rstand_jax.convert.sources.source import Source
from und3rstand_jax.convert.sources.tensor_files import TensorFiles, TensorInfo
from und3rstand_jax.model.dust3r.config import BackboneConfig
from und3rstand_jax.probes.config import ProbeConfig, ProbeGroup
from und3rstand_jax.support.errors import UserError

BACKBONE = BackboneConfig.dust3r_512_dpt()
PAPER = tuple(f"decoder.{block}.{step}" for block in range(12) for step in ("self_attn", "cross_attn", "mlp"))
WIDTHS = (768, 512, 512, 512, 512, 1024)
ACTIVATED = ("linear", "activation") * 4 + ("linear",)
Shapes = dict[str, tuple[int, ...]]


def linear(path: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{path}.weight": (outputs, inputs)} | ({f"{path}.bias": (outputs,)} if bias else {})


def norm(path: str, width: int, bias: bool = True) -> Shapes:
    return {f"{path}.weight": (width,)} | ({f"{path}.bias": (width,)} if bias else {})


def mlp(prefix: str, names: tuple[str, ...] = ("0", "2", "4", "6", "8"), widths: tuple[int, ...] = WIDTHS, bias: bool = True) -> Shapes:
    """A plain MLP whose linear layers are called `names`."""
    dot = f"{prefix}." if prefix else ""
    pairs = zip(names, widths, widths[1:], strict=False)
    return {key: shape for name, i, o in pairs for key, shape in linear(f"{dot}{name}", i, o, bias).items()}


class Headers(TensorFiles):
    """Names and shapes of a checkpoint that holds no values: the plan must not need them."""

    def read(self, name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read")

    def close(self) -> None:
        pass


def plan(
    tensors: Shapes, config: dict | None = None, mapping: object = None, probe_layers: tuple[str, ...] | None = None, **options: object
) -> PartPlan:
    """The plan of a probe checkpoint, checked; `mapping` is the content of a mapping file."""
    if probe_layers is not None:
        options["probe_layers"] = ",".join(probe_layers)
    table = {name: TensorInfo(tuple(shape), "float32") for name, shape in tensors.items()}
    source = Source("probes", "folder", None, config, None, Headers(table, ()))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        if mapping is not None:
            json.dump(mapping, file)
            file.flush()
            options["mapping"] = Path(file.name)
        found = plan_probes(source, tensors, BACKBONE, ProbeOptions(**options))  # type: ignore[arg-type]
    ConversionPlan((found,)).check()
    return dataclasses.replace(found, source=EMPTY)  # so that plans compare by what was found


EMPTY = Source("probes", "folder", None, None, None, Headers({}, ()))


def names(found: PartPlan) -> dict[str, tuple[tuple[str, ...], ...]]:
    """For every leaf its source names, [layer][view]."""
    views = 2 if isinstance(found.config, ProbeConfig) and found.config.views == "separate" else 1
    return {path: tuple(leaf.names[i : i + views] for i in range(0, len(leaf.names), views)) for path, leaf in found.leaves.items()}


def counted(pattern: str, count: int = 36, **how: object) -> Shapes:
    return {key: shape for i in range(count) for key, shape in mlp(pattern.format(i), **how).items()}  # type: ignore[arg-type]


def finding(found: PartPlan, field: str) -> Finding:
    (only,) = [f for f in found.findings if f.field == field]
    return only


def split(layer: str) -> tuple[str, int, str]:
    side, block, step = layer.split(".")
    return side, int(block), step


SHORT = {"self_attn": "sa", "cross_attn": "ca", "mlp": "ffn"}
TORCH = {"self_attn": "attn", "cross_attn": "cross_attn", "mlp": "mlp"}
NUMBER = {"self_attn": 0, "cross_attn": 1, "mlp": 2}

# How a layer's probe may be called: (scheme, how its layer is then known).
LAYER_SCHEMES: dict[str, tuple[Callable[[int, str], str], str]] = {
    "list": (lambda i, layer: f"probes.{i}", "inferred"),
    "list, net": (lambda i, layer: f"probes.{i}.net", "inferred"),
    "list, own mlp": (lambda i, layer: f"probes.{i}.mlp", "inferred"),
    "bare list": (lambda i, layer: f"{i}.layers", "inferred"),
    "wrapped": (lambda i, layer: f"module.model.probes.{i}._orig_mod.mlp", "inferred"),
    "attribute": (lambda i, layer: f"dust3r_probes.probe_{i}", "inferred"),
    "from 1": (lambda i, layer: f"layer{i + 1}.head", "inferred"),
    "dashes": (lambda i, layer: f"probes.layer-{i}.proj", "inferred"),
    "block and number": (lambda i, layer: f"blocks.{split(layer)[1]}.probes.{NUMBER[split(layer)[2]]}", "inferred"),
    "our ids nested": (lambda i, layer: f"probes.{layer}.net", "read"),
    "our ids, _": (lambda i, layer: f"probes.{layer.replace('.', '_')}", "read"),
    "our ids, -": (lambda i, layer: f"module.probes.{layer.replace('.', '-')}.net", "read"),
    "our ids, /": (lambda i, layer: f"probes.{layer.replace('.', '/')}.mlp", "read"),
    "short": (lambda i, layer: f"heads.dec{split(layer)[1]}_{SHORT[split(layer)[2]]}.net", "read"),
    "torch": (lambda i, layer: f"probes.dec_blocks_{split(layer)[1]}_{TORCH[split(layer)[2]]}", "read"),
    "no side": (lambda i, layer: "probes.block_{}_{}.net".format(*split(layer)[1:]), "inferred"),
    "step lists": (lambda i, layer: f"{SHORT[split(layer)[2]]}_probes.{split(layer)[1]}", "inferred"),
    "step dicts": (lambda i, layer: f"decoder.{split(layer)[2]}.{split(layer)[1]}", "read"),
    "blocks from 1": (lambda i, layer: f"probes.dec_{split(layer)[1] + 1}_{SHORT[split(layer)[2]]}", "inferred"),
    "long words": (
        lambda i, layer: "probes.decoder_{}_{}".format(
            split(layer)[1], {"self_attn": "self_attention", "cross_attn": "cross_attention", "mlp": "feed_forward"}[split(layer)[2]]
        ),
        "read",
    ),
    "index and id": (lambda i, layer: f"probes.{i}.{layer.replace('.', '_')}.net", "read"),
}

# How the second of two views may be told from the first: (prefix of a layer, view) -> prefix.
VIEW_SCHEMES: dict[str, Callable[[str, int], str]] = {
    "view1 inside": lambda prefix, view: f"{prefix}.view{view}",
    "v1 inside": lambda prefix, view: f"{prefix}.v{view}",
    "head1 inside": lambda prefix, view: f"{prefix}.head{view}",
    "pts3d1 inside": lambda prefix, view: f"{prefix}.pts3d{view}",
    "level of two inside": lambda prefix, view: f"{prefix}.{view - 1}.net",
    "view_1 outside": lambda prefix, view: f"view_{view}.{prefix}",
    "probes1 outside": lambda prefix, view: f"probes{view}.{prefix}",
    "bare and 2 outside": lambda prefix, view: f"head{'' if view == 1 else 2}.{prefix}",
}

# How an MLP's modules may be called: (names of linears, names and widths of norms, steps, how the steps are known).
STEP_SCHEMES: dict[str, tuple[tuple[str, ...], tuple[tuple[str, int], ...], tuple[str, ...], str]] = {
    "gaps": (("0", "2", "4", "6", "8"), (), ACTIVATED, "read"),
    "gaps with dropout": (("0", "3", "6", "9", "12"), (), ACTIVATED, "inferred"),
    "no activation at the end": (
        ("0", "2", "4", "6", "7"),
        (),
        (*("linear", "activation") * 3, "linear", "linear"),
        "read",
    ),
    "behind a Flatten": (("1", "3", "5", "7", "9"), (), ACTIVATED, "default"),
    "fc1…5": (("fc1", "fc2", "fc3", "fc4", "fc5"), (), ACTIVATED, "default"),
    "lin_0…4": (("lin_0", "lin_1", "lin_2", "lin_3", "lin_4"), (), ACTIVATED, "default"),
    "layers.N": (("layers.0", "layers.1", "layers.2", "layers.3", "layers.4"), (), ACTIVATED, "default"),
    "in, hidden, out": (("proj_in", "hidden.0", "hidden.1", "hidden.2", "proj_out"), (), ACTIVATED, "default"),
    "trunk and head": (("trunk.0", "trunk.2", "trunk.4", "trunk.6", "head"), (), ACTIVATED, "default"),
    "nested Sequential": (("net.0.0", "net.1.0", "net.2.0", "net.3.0", "net.4"), (), ACTIVATED, "default"),
    "linear, norm, gap": (
        ("0", "3", "6", "9", "12"),
        (("1", 512), ("4", 512), ("7", 512), ("10", 512)),
        ("linear", "norm", "activation") * 4 + ("linear",),
        "read",
    ),
    "linear, gap, norm": (
        ("0", "3", "6", "9", "12"),
        (("2", 512), ("5", 512), ("8", 512), ("11", 512)),
        ("linear", "activation", "norm") * 4 + ("linear",),
        "read",
    ),
    "gaps around norms": (
        ("0", "4", "8", "12", "16"),
        (("2", 512), ("6", 512), ("10", 512), ("14", 512)),
        ("linear", "norm", "activation") * 4 + ("linear",),
        "default",
    ),
    "input norm": (("1", "3", "5", "7", "9"), (("0", 768),), ("norm", *ACTIVATED), "read"),
    "named input norm": (("fc1", "fc2", "fc3", "fc4", "fc5"), (("norm", 768),), ("norm", *ACTIVATED), "default"),
    "fc and ln": (
        ("fc1", "fc2", "fc3", "fc4", "fc5"),
        (("ln1", 512), ("ln2", 512), ("ln3", 512), ("ln4", 512)),
        ("linear", "norm", "activation") * 4 + ("linear",),
        "default",
    ),
    "norm before each": (
        ("layers.0", "layers.1", "layers.2", "layers.3", "layers.4"),
        (("norms.0", 768), ("norms.1", 512), ("norms.2", 512), ("norms.3", 512), ("norms.4", 512)),
        ("norm", "linear", "norm", "activation", "linear", *("norm", "activation", "linear") * 3),
        "default",
    ),
    "blocks": (
        ("blocks.0.linear", "blocks.1.linear", "blocks.2.linear", "blocks.3.linear", "out"),
        (("blocks.0.norm", 512), ("blocks.1.norm", 512), ("blocks.2.norm", 512), ("blocks.3.norm", 512)),
        ("linear", "norm", "activation") * 4 + ("linear",),
        "default",
    ),
    "blocks, norm first": (
        ("blocks.0.linear", "blocks.1.linear", "blocks.2.linear", "blocks.3.linear", "out"),
        (("blocks.0.norm", 768), ("blocks.1.norm", 512), ("blocks.2.norm", 512), ("blocks.3.norm", 512)),
        ("norm", "linear", "activation") * 4 + ("linear",),
        "default",
    ),
    "final norm": (
        ("fc1", "fc2", "fc3", "fc4", "fc5"),
        (("final_norm", 512),),
        (*ACTIVATED[:7], "norm", "activation", "linear"),
        "default",
    ),
}


def build(layers: dict[str, tuple[str, ...]], steps: str) -> Shapes:
    linears, norms, _, _ = STEP_SCHEMES[steps]
    tensors: Shapes = {}
    for views in layers.values():
        for prefix in views:
            tensors |= mlp(prefix, linears)
            for name, width in norms:
                tensors |= norm(f"{prefix}.{name}", width)
    return tensors


def expected_names(layers: dict[str, tuple[str, ...]], steps: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    linears, norms, _, _ = STEP_SCHEMES[steps]
    kinds = (("linear", "kernel", linears), ("norm", "scale", [name for name, _ in norms]))
    return {
        f"group0/{kind}{i}/{leaf}": tuple(tuple(f"{prefix}.{name}.{source}" for prefix in views) for views in layers.values())
        for kind, weight, names in kinds
        for i, name in enumerate(names)
        for leaf, source in ((weight, "weight"), ("bias", "bias"))
    }


def check(layers: dict[str, tuple[str, ...]], steps: str, views: str) -> PartPlan:
    tensors = build(layers, steps)
    found = plan(tensors)
    order = STEP_SCHEMES[steps][2]
    norms = len(STEP_SCHEMES[steps][1])
    assert found.config == ProbeConfig((ProbeGroup(PAPER, WIDTHS, order, (True,) * 5, (True,) * norms),), views=views)  # type: ignore[arg-type]
    assert names(found) == expected_names(layers, steps)
    assert not found.unused
    assert sorted(name for leaf in names(found).values() for row in leaf for name in row) == sorted(tensors)
    assert finding(found, "steps").how == STEP_SCHEMES[steps][3]
    shuffled = list(tensors.items())
    random.Random(1).shuffle(shuffled)
    assert plan(dict(shuffled)) == found
    return found


@pytest.mark.parametrize("steps", ["gaps", "fc and ln"])
@pytest.mark.parametrize("scheme", LAYER_SCHEMES)
def test_layer_names(scheme: str, steps: str) -> None:
    name, how = LAYER_SCHEMES[scheme]
    found = check({layer: (name(i, layer),) for i, layer in enumerate(PAPER)}, steps, "shared")
    assert finding(found, "layer_ids").how == how


@pytest.mark.parametrize("steps", ["gaps", "fc and ln"])
@pytest.mark.parametrize("views", VIEW_SCHEMES)
@pytest.mark.parametrize("scheme", ["list", "our ids, _", "short", "step lists", "own mlp"])
def test_views(scheme: str, views: str, steps: str) -> None:
    name = (lambda i, layer: f"probes.{i}.mlp") if scheme == "own mlp" else LAYER_SCHEMES[scheme][0]
    layers = {layer: tuple(VIEW_SCHEMES[views](name(i, layer), view) for view in (1, 2)) for i, layer in enumerate(PAPER)}
    check(layers, steps, "separate")


def test_two_decoders_are_two_views() -> None:
    layers = {layer: tuple(f"probes.dec_blocks{view}_{'_'.join(layer.split('.')[1:])}.net" for view in ("", 2)) for layer in PAPER}
    assert finding(check(layers, "gaps", "separate"), "views").how == "inferred"


@pytest.mark.parametrize("steps", STEP_SCHEMES)
def test_steps(steps: str) -> None:
    check({layer: (f"probes.{i}",) for i, layer in enumerate(PAPER)}, steps, "shared")


def test_natural_order() -> None:
    found = plan(counted("probes.{}"))
    assert [row[0] for row in names(found)["group0/linear0/kernel"]] == [f"probes.{i}.0.weight" for i in range(36)]
    deep = tuple(str(i) for i in range(0, 24, 2))
    found = plan(counted("probes.{}", names=deep, widths=(768, *(512,) * 11, 1024)))
    assert names(found)["group0/linear5/kernel"][0] == ("probes.0.10.weight",)


def test_every_field_has_one_finding() -> None:
    found = plan(counted("probes.{}"))
    fields = [f.field for f in found.findings]
    assert len(fields) == len(set(fields)) and {f.name for f in dataclasses.fields(ProbeConfig)} - {"view_count"} <= set(fields)
    assert {f.field: f.how for f in found.findings} == {
        "groups": "read",
        "layer_ids": "inferred",
        "views": "read",
        "steps": "read",
        "patch_size": "inferred",
        "activation": "default",
        "norm": "default",
        "norm_epsilon": "default",
        "residual": "default",
        "output_layout": "default",
        "depth_mode": "default",
        "conf_mode": "default",
    }


def test_encoder_and_decoder_make_two_groups() -> None:
    tensors = mlp("probes.encoder_10_mlp", widths=(1024, 512, 1024), names=("0", "2"))
    tensors |= mlp("probes.encoder_9_mlp", widths=(1024, 512, 1024), names=("0", "2"))
    tensors |= mlp("probes.decoder_2_cross_attn", widths=(768, 512, 1024), names=("0", "2"))
    tensors |= mlp("probes.enc_norm", widths=(1024, 512, 1024), names=("0", "2"))
    tensors |= mlp("probes.decoder_embed", widths=(768, 512, 1024), names=("0", "2"))
    found = plan(tensors)
    assert [group.layer_ids for group in found.config.groups] == [
        ("encoder.9.mlp", "encoder.10.mlp", "encoder.norm"),
        ("decoder.embed", "decoder.2.cross_attn"),
    ]
    assert [group.widths for group in found.config.groups] == [(1024, 512, 1024), (768, 512, 1024)]
    assert names(found)["group1/linear1/bias"] == (("probes.decoder_embed.2.bias",), ("probes.decoder_2_cross_attn.2.bias",))
    assert found.table.count("\n") == 4


def test_width_tells_the_side() -> None:
    tensors = mlp("probes.block_0_self_attn", widths=(1024, 512, 1024)) | mlp("probes.block_1_mlp", widths=(768, 512, 1024))
    found = plan(tensors)
    assert found.config.layer_ids == ("encoder.0.self_attn", "decoder.1.mlp")


@pytest.mark.parametrize("hidden", [1024, 768, 512, 256])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_widths_that_chain_with_the_next_mlp(hidden: int, channels: int, side: str) -> None:
    width = {"encoder": 1024, "decoder": 768}[side]
    widths = (width, hidden, hidden, hidden, hidden, channels * 256)
    steps = ("fc1", "fc2", "fc3", "fc4", "fc5")
    tensors = {k: s for i in range(3) for k, s in mlp(f"probes.{side}_{i}_self_attn", names=steps, widths=widths).items()}
    found = plan(tensors)
    assert found.config.groups[0].widths == widths and len(found.config.layer_ids) == 3
    again = plan(counted("probes.{}.net", 3, widths=widths), probe_layers=found.config.layer_ids)
    assert again.config.groups[0].widths == widths and again.config.layer_ids == found.config.layer_ids


def test_biases_and_kinds_of_norm() -> None:
    tensors = counted("probes.{}", bias=False)
    group = plan(tensors).config.groups[0]
    assert group.biases == (False,) * 5
    assert not any(leaf.endswith("bias") for leaf in names(plan(tensors)))
    for name, bias, kind, how in [
        ("0", True, "layernorm", "inferred"),
        ("0", False, "rmsnorm", "default"),
        ("ln", False, "layernorm", "read"),
        ("rms_norm", False, "rmsnorm", "read"),
    ]:
        normed = counted("probes.{}.net", names=("1", "3", "5", "7", "9"))
        for i in range(36):
            normed |= norm(f"probes.{i}.net.{name}", 768, bias)
        found = plan(normed)
        assert (found.config.norm, finding(found, "norm").how) == (kind, how)
        assert found.config.norm_epsilon == (1e-5 if kind == "layernorm" else 2.0**-23)
        assert found.config.groups[0].norm_biases == (bias,)


def test_single_probe_at_the_root() -> None:
    found = plan(mlp(""), probe_layers=("decoder.3.mlp",))
    assert found.config.layer_ids == ("decoder.3.mlp",)
    assert names(found)["group0/linear0/kernel"] == (("0.weight",),)
    alone = plan({"weight": (1024, 768), "bias": (1024,)}, probe_layers=("decoder.3.mlp",))
    assert alone.config.groups[0].steps == ("linear",) and names(alone)["group0/linear0/bias"] == (("bias",),)


# --- what it must not guess ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensors",
    [
        counted("probes.{}", 12),
        counted("probes.{}", 13),
        counted("probes.{}", 72),
        counted("probes.{}.mlp", 12),
        counted("probes.{}.mlp.net", 12),
        counted("decoder.{}.mlp", 12),
        counted("probes.dec_{}", 12),
        counted("probes.{}", 1),
        counted("probes.{}", 36, widths=(1024, 512, 512, 512, 512, 1024)),
        {key.replace("probes.5.", "probes.36."): shape for key, shape in counted("probes.{}").items()},
        mlp("alpha") | mlp("beta"),
        mlp("probes.0") | mlp("probes.1"),
        mlp("probes.0.0") | mlp("probes.0.1") | mlp("probes.1.0") | mlp("probes.1.1"),
        mlp("probes.dec_0_sa") | mlp("probes.other"),
        mlp("fc1.dec_0_sa") | mlp("fc1.mlp"),
        mlp("probes.dec_12_sa") | mlp("probes.dec_0_sa"),
        mlp("probes.dec_0_sa.view1") | mlp("probes.dec_0_sa.view2") | mlp("probes.dec_1_sa.view1"),
        mlp("probes.dec_0_sa.view1") | mlp("probes.dec_1_sa.view1"),
        mlp("probes.dec_0_sa.a") | mlp("probes.dec_0_sa.b"),
    ],
)
def test_ambiguous_names_stop_with_the_table(tensors: Shapes) -> None:
    with pytest.raises(UserError) as stopped:
        plan(tensors)
    first, *table = str(stopped.value).splitlines()
    assert "--mapping FILE" in first or "view" in first
    assert table[0].split() == ["MLPs", "names", "layers", "view", "linear", "layers", "norms"]
    assert "768→512→512→512→512→1024" in table[1] or "1024→512" in table[1]


def test_options_settle_what_names_do_not() -> None:
    layers = tuple(f"decoder.{i}.mlp" for i in range(12))
    assert plan(counted("probes.{}", 12), probe_layers=layers).config.layer_ids == layers
    found = plan(counted("probes.{}", 12), probe_layers=layers[::-1])
    assert found.config.layer_ids == layers and finding(found, "layer_ids").how == "option"
    assert names(found)["group0/linear0/bias"][0] == ("probes.11.0.bias",)
    two = plan(mlp("probes.0.0") | mlp("probes.0.1") | mlp("probes.1.0") | mlp("probes.1.1"), probe_layers=layers[:4])
    assert two.config.views == "shared" and two.config.layer_ids == layers[:4]
    views = plan({k: s for v in (1, 2) for k, s in counted(f"probes{v}.{{}}", 12).items()}, probe_layers=layers)
    assert views.config.views == "separate"
    assert names(views)["group0/linear0/bias"][3] == ("probes1.3.0.bias", "probes2.3.0.bias")


def test_probe_layers_must_fit() -> None:
    with pytest.raises(UserError, match="states 2 layers; the checkpoint has probes for 12"):
        plan(counted("probes.{}", 12), probe_layers=("decoder.0.mlp", "decoder.1.mlp"))
    with pytest.raises(UserError, match="no layer matches 'decoder.0.mpl'; the nearest are decoder.0.mlp"):
        plan(counted("probes.{}", 1), probe_layers=("decoder.0.mpl",))
    with pytest.raises(UserError, match="states decoder.0.mlp more than once"):
        plan(counted("probes.{}", 2), probe_layers=("decoder.0.mlp", "decoder.0.mlp"))
    with pytest.raises(UserError, match="probes.0 reads 768 channels; encoder.0.mlp has 1024"):
        plan(counted("probes.{}", 2), probe_layers=("encoder.0.mlp", "encoder.1.mlp"))


def test_every_setting_by_option() -> None:
    found = plan(
        counted("probes.{}"),
        {"activation": "relu"},
        activation="silu",
        norm="rmsnorm",
        norm_epsilon=1e-6,
        residual=True,
        output_layout="channels_last",
        depth_mode="square",
        conf_mode="exp,0,inf",
    )
    config = found.config
    assert (config.activation, config.norm, config.norm_epsilon, config.residual) == ("silu", "rmsnorm", 1e-6, True)
    assert (config.output_layout, config.depth_mode[0], config.conf_mode[1]) == ("channels_last", "square", 0.0)
    for field in ("activation", "norm", "norm_epsilon", "residual", "output_layout", "depth_mode", "conf_mode"):
        assert finding(found, field).how == "option"


# --- broken and contradictory checkpoints --------------------------------------------------------------------------


def test_wrong_widths_are_named() -> None:
    tensors = counted("probes.{}.net") | {"probes.7.net.4.weight": (512, 300)}
    with pytest.raises(UserError, match=r"probes.7.net does not chain: 2.weight \(512, 512\) is followed by 4.weight \(512, 300\)"):
        plan(tensors)
    with pytest.raises(UserError, match="none from 1024 or 768 inputs to 1024 or 768 outputs"):
        plan(counted("probes.{}", widths=(768, 512, 512, 512, 512, 1000)))
    with pytest.raises(UserError, match=r"probes.3 reads 700 channels \(0.weight \(512, 700\)\); expected a layer's width, 1024 or 768"):
        plan(counted("probes.{}") | {"probes.3.0.weight": (512, 700)})
    with pytest.raises(UserError, match=r"probes.3 ends in 1000 outputs .* expected a patch's, 1024 or 768"):
        plan(counted("probes.{}") | {"probes.3.8.weight": (1000, 512), "probes.3.8.bias": (1000,)})
    with pytest.raises(UserError, match=r"probes.3.0 has a bias of shape \(5,\) beside a weight of shape \(512, 768\)"):
        plan(counted("probes.{}") | {"probes.3.0.bias": (5,)})


def test_missing_tensors_are_named() -> None:
    def without(*names: str) -> Shapes:
        return {name: shape for name, shape in counted("probes.{}").items() if name not in names}

    with pytest.raises(UserError, match="probes.4 lacks 2.bias; expected the tensors of its 35 siblings"):
        plan(without("probes.4.2.bias"))
    with pytest.raises(UserError, match="probes.4 lacks 2.bias, 2.weight"):
        plan(without("probes.4.2.bias", "probes.4.2.weight"))
    with pytest.raises(UserError, match=r"probes.4.2 has a bias \(512,\) but no weight"):
        plan(without("probes.4.2.weight"))
    with pytest.raises(UserError, match="probes.4 reads 512 channels"):
        plan(without("probes.4.0.bias", "probes.4.0.weight"))
    with pytest.raises(UserError, match=r"probes.4 lacks 2.bias, 2.weight and alone has 2.bias \(norm\), 2.weight \(norm\)"):
        plan(counted("probes.{}") | {"probes.4.2.weight": (512,)})
    separate = counted("probes1.{}") | counted("probes2.{}")
    with pytest.raises(UserError, match="probes1.9 has no counterpart for the other view"):
        plan({name: shape for name, shape in separate.items() if not name.startswith("probes2.9.")})


def test_all_complaints_at_once() -> None:
    tensors = counted("probes.{}") | {"probes.7.4.weight": (512, 300), "probes.8.4.scale": (512,), "stray.weight": (3, 4)}
    del tensors["probes.9.0.bias"]
    with pytest.raises(UserError) as stopped:
        plan(tensors, {"hidden_dim": 256, "activation": "geglu", "num_layers": 4})
    message = str(stopped.value)
    for part in (
        "probes.7 does not chain",
        "probes.8.4.scale is part of a probe",
        "stray (3, 4) belongs to no MLP",
        "probes.9 lacks 0.bias",
        "the config's hidden_dim is 256, but the tensors say 512",
        "the config's activation 'geglu' is not supported; expected one of gelu, gelu_tanh",
        "the config's num_layers is 4, but the tensors say 5",
    ):
        assert part in message


def test_foreign_modules_are_refused_by_name() -> None:
    tensors = counted("probes.{}.net")
    batch = {f"probes.{i}.net.1.{leaf}": s for i in range(36) for leaf, s in (("running_mean", (512,)), ("num_batches_tracked", ()))}
    with pytest.raises(UserError, match=r"probes.0.net.1 \(and 35 more like it\) is a BatchNorm"):
        plan(tensors | batch)
    convolution = {name: (*shape, 1, 1) if len(shape) == 2 else shape for name, shape in tensors.items()}
    with pytest.raises(UserError, match=r"probes.0.net.0 \(and .* more like it\) has a weight of shape \(512, 768, 1, 1\), a convolution"):
        plan(convolution)
    stacked = {"probes.w0.weight": (36, 512, 768), "probes.w0.bias": (36, 512)}
    with pytest.raises(UserError, match="a convolution kernel or a stack"):
        plan(stacked)
    with pytest.raises(UserError, match="there is no probe"):
        plan({})


def test_split_heads_are_not_taken_for_a_shorter_mlp() -> None:
    tensors: Shapes = {}
    for i in range(36):
        tensors |= mlp(f"probes.{i}.net", names=("0", "2", "4", "6"), widths=(768, 1024, 1024, 1024, 1024))
        tensors |= linear(f"probes.{i}.pts", 1024, 768) | linear(f"probes.{i}.conf", 1024, 256)
    with pytest.raises(UserError, match=r"probes.0.conf \(and 35 more like it\) ends in 256 outputs"):
        plan(tensors)


def test_unclear_orders_stop() -> None:
    same = counted("probes.{}", names=("a", "b", "c", "d", "e"), widths=(768, 512, 512, 512, 512, 1024))
    with pytest.raises(UserError, match="'b' and 'c' of one shape, and neither name says which runs first"):
        plan(same)
    by_width = counted("probes.{}", names=("up", "mid", "down"), widths=(768, 512, 256, 1024))
    assert [names(plan(by_width))[f"group0/linear{i}/kernel"][0][0] for i in range(3)] == [
        "probes.0.up.weight",
        "probes.0.mid.weight",
        "probes.0.down.weight",
    ]
    swapped = {k: s for i in range(36) for k, s in (linear(f"probes.{i}.fc2", 768, 512) | linear(f"probes.{i}.fc1", 512, 1024)).items()}
    with pytest.raises(UserError, match="belongs to no MLP"):
        plan(swapped)
    lonely = counted("probes.{}", names=("fc1", "fc2", "fc3", "fc4", "fc5"))
    for i in range(36):
        lonely |= norm(f"probes.{i}.norm", 512)
    with pytest.raises(UserError, match="a norm 'norm' of width 512 whose place .* cannot be determined"):
        plan(lonely)


def test_views_of_different_shapes() -> None:
    tensors = mlp("dec_0_sa.view1") | mlp("dec_0_sa.view2", widths=(768, 256, 256, 256, 256, 1024))
    with pytest.raises(UserError, match="has a different shape from view 1's dec_0_sa.view1"):
        plan(tensors)


def test_unused_tensors_are_listed() -> None:
    found = plan(counted("probes.{}") | {"probes.mean": (3,), "step": ()})
    assert tuple(found.unused) == ("probes.mean", "step")
    assert "unused: 1 × probes.mean (3,)" in found.table


# --- the config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"probe": {"activation": "ReLU"}}, "activation", "relu"),
        ({"act_layer": "torch.nn.SiLU"}, "activation", "silu"),
        ({"act": "<class 'torch.nn.modules.activation.GELU'>"}, "activation", "gelu"),
        ({"mlp": {"act-fn": "leaky_relu"}}, "activation", "leaky_relu"),
        ({"norm_eps": 1e-6}, "norm_epsilon", 1e-6),
        ({"probe_config": {"use_skip": True}}, "residual", True),
        ({"output_layout": "channels_last"}, "output_layout", "channels_last"),
        ({"conf_mode": ["exp", 0, "inf"]}, "conf_mode", ("exp", 0.0, math.inf)),
        ({"depth_mode": ["exp", -math.inf, math.inf]}, "depth_mode", ("exp", -math.inf, math.inf)),
        ({"probe": {"patch_size": 16}}, "patch_size", 16),
        ({"activation": "relu", "probe": {"activation": "tanh"}}, "activation", "tanh"),
    ],
)
def test_config_states_fields(config: dict, field: str, value: object) -> None:
    found = plan(counted("probes.{}"), config)
    assert getattr(found.config, field) == value and finding(found, field).how == "read"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"hidden_dims": [512, 512, 512, 256]}, r"hidden_dims is \[512, 512, 512, 256\], but the tensors say 512"),
        ({"probe": {"depth": 6}}, "probe.depth is 6, but the tensors say 5"),
        ({"in_dim": 1024}, "in_dim is 1024, but the tensors say 768"),
        ({"out_dim": 768}, "out_dim is 768, but the tensors say 1024"),
        ({"patch_size": 14}, "patch_size is 14, but the tensors say 16"),
        ({"bias": False}, "bias is False, but the tensors say True"),
        ({"norm": "layernorm"}, "norm is 'layernorm', but the tensors hold no norm"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm', but the tensors hold no norm"),
        ({"residual": "yes"}, "residual 'yes' is not supported; expected true or false"),
        ({"norm_eps": "tiny"}, "norm_eps 'tiny' is not supported; expected a number"),
        ({"depth_mode": ["exp", 0, "inf"]}, "bounds on the depth are not supported"),
        ({"conf_mode": "exp"}, r"conf_mode 'exp' is not supported; expected \(name, lower bound, upper bound\)"),
        ({"output_layout": "interleaved"}, "'interleaved' is not supported; expected one of channels_first, channels_last"),
        ({"act": "relu", "activation": "gelu"}, "'relu' and activation 'gelu' disagree; set activation with an option"),
        ({"layer_ids": ["decoder.0.mlp"]}, "the config's layer_ids states 1 layers; the checkpoint has probes for 36"),
        ({"layer_ids": ["somewhere"]}, "layer_ids states layers that cannot be determined: no layer matches 'somewhere'"),
    ],
)
def test_config_contradictions(config: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        plan(counted("probes.{}"), config)


def test_true_statements_pass_and_unknown_keys_are_listed() -> None:
    config = {
        "probe": {"hidden_dim": 512, "depth": 5, "in_dim": 768, "out_dim": 1024, "bias": True, "norm": None, "dropout": 0.1, "magic": 3},
        "num_layers": 36,
        "layers": 5,
        "backbone": {"activation": "none of ours", "depth": 24},
        "enc_depth": 24,
        "head_type": "dpt",
        "lr": 1e-4,
    }
    found = plan(counted("probes.{}"), config)
    assert finding(found, "config keys not understood").value == "probe.magic, lr"


@pytest.mark.parametrize("key", ["layer_ids", "probed_layers", "probe_layers", "hooks", "layers"])
@pytest.mark.parametrize(
    "ids",
    [
        ["decoder.3.mlp", "decoder.1.self_attn"],
        ["dec_blocks.3.mlp", "dec_blocks.1.attn"],
        ["decoder_3_ffn", "decoder_1_sa"],
        ["dec_blocks.3.mlp", "dec_blocks2.3.mlp", "dec_blocks.1.attn", "dec_blocks2.1.attn"],
    ],
)
def test_config_states_layers(key: str, ids: list[str]) -> None:
    found = plan(counted("probes.{}", 2), {"model": {key: ids}})
    assert found.config.layer_ids == ("decoder.1.self_attn", "decoder.3.mlp")
    assert names(found)["group0/linear0/bias"] == (("probes.1.0.bias",), ("probes.0.0.bias",))
    assert finding(found, "layer_ids").how == "read"


def test_config_layers_by_pattern_and_against_names() -> None:
    assert plan(counted("probes.{}", 12), {"layers": "decoder.*.mlp"}).config.layer_ids == PAPER[2::3]
    named = mlp("probes.decoder_0_mlp") | mlp("probes.decoder_1_self_attn")
    assert plan(named, {"layers": ["decoder.1.self_attn", "decoder.0.mlp"]}).config.layer_ids == ("decoder.0.mlp", "decoder.1.self_attn")
    with pytest.raises(UserError, match="the names disagree on decoder.1.mlp, decoder.1.self_attn"):
        plan(named, {"layers": ["decoder.1.mlp", "decoder.0.mlp"]})


# --- the mapping file ----------------------------------------------------------------------------------------------


def test_mapping_file() -> None:
    tensors = mlp("x.alpha", ("0", "2"), (768, 512, 1024)) | mlp("x.beta", ("0", "2"), (768, 512, 1024)) | {"aux.weight": (3, 3)}
    mapping = {
        "layers": {"decoder.4.mlp": "x.beta", "decoder.0.self_attn": "x.alpha."},
        "unused": ["aux"],
        "activation": "relu",
        "conf_mode": ["exp", 0, "inf"],
        "steps": ["linear", "linear"],
    }
    found = plan(tensors, mapping=mapping)
    assert found.config.groups == (
        ProbeGroup(("decoder.0.self_attn", "decoder.4.mlp"), (768, 512, 1024), ("linear", "linear"), (True, True)),
    )
    assert names(found)["group0/linear1/bias"] == (("x.alpha.2.bias",), ("x.beta.2.bias",))
    assert (found.config.activation, found.config.conf_mode) == ("relu", ("exp", 0.0, math.inf))
    assert tuple(found.unused) == ("aux.weight",) and "unused: 1 × aux.weight (3, 3): left out by the mapping file" in found.table
    assert {finding(found, field).how for field in ("layer_ids", "views", "steps", "activation", "conf_mode")} == {"option"}
    assert plan(tensors, mapping=mapping, activation="tanh").config.activation == "tanh"


def test_mapping_file_with_two_views_and_norms() -> None:
    tensors: Shapes = {}
    for view in ("left", "right"):
        tensors |= mlp(f"p.{view}", ("fc1", "fc2", "fc3"), (768, 512, 512, 1024)) | norm(f"p.{view}.norm", 512)
    mapping = {"layers": {"decoder.0.mlp": ["p.right", "p.left"]}, "steps": ["linear", "linear", "norm", "activation", "linear"]}
    found = plan(tensors, mapping=mapping)
    assert found.config.views == "separate" and found.config.groups[0].steps == tuple(mapping["steps"])
    assert names(found)["group0/norm0/scale"] == (("p.right.norm.weight", "p.left.norm.weight"),)


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ({"layer": {}}, "has an unknown key 'layer'; known are layers, steps"),
        ({"layers": {"decoder.0.mlp": "x.gamma"}}, "gives decoder.0.mlp 'x.gamma', below which there is no linear layer"),
        ({"layers": {"decoder.99.mlp": "x.alpha"}}, "no layer matches 'decoder.99.mlp'"),
        ({"layers": {"decoder.*.mlp": "x.alpha"}}, "a pattern; expected one layer id"),
        ({"layers": {"decoder.0.mlp": "x.alpha", "decoder.1.mlp": "x.alpha"}}, "uses the tensors below 'x.alpha' and 'x.alpha' twice"),
        ({"layers": {"decoder.0.mlp": "x.alpha", "decoder.1.mlp": ["x.beta", "x.beta"]}}, "layers different numbers of prefixes"),
        ({"layers": {"decoder.0.mlp": 3}}, "expected a prefix or a list of them"),
        ({"layers": ["x.alpha"]}, "expected an object of layer id: prefix"),
        ({"layers": {"decoder.0.mlp": "x.alpha"}}, r"x.beta.0 \(512, 768\) belongs to no MLP"),
        ({"layers": {"encoder.0.mlp": "x.alpha"}}, "x.alpha reads 768 channels; encoder.0.mlp has 1024"),
        ({"steps": ["linear", "dance"]}, "expected a list of linear, norm, activation"),
        ({"steps": ["linear"]}, "has 2 linear layers and 0 norms, which the stated steps do not fit"),
        ({"unused": ["nothing"]}, "leaves out 'nothing', below which there is no tensor"),
        ({"unused": "x"}, "expected a list of prefixes"),
        (["x"], "input should be an object"),
    ],
)
def test_bad_mapping_files(mapping: object, complaint: str) -> None:
    tensors = mlp("x.alpha", ("0", "2"), (768, 512, 1024)) | mlp("x.beta", ("0", "2"), (768, 512, 1024))
    with pytest.raises(UserError, match=complaint):
        plan(tensors, mapping=mapping)


def test_mapping_and_probe_layers_exclude_each_other() -> None:
    with pytest.raises(UserError, match="expected one of the two"):
        plan(mlp("x"), mapping={"layers": {"decoder.0.mlp": "x"}}, probe_layers=("decoder.0.mlp",))


# --- backbones in the same file ------------------------------------------------------------------------------------


def backbone_names() -> Iterator[str]:
    for variant in ("224_linear", "512_dpt"):
        lines = (GOLDEN / f"DUSt3R_ViTLarge_BaseDecoder_{variant}.keys.tsv").read_text().splitlines()[1:]
        yield from (line.split("\t")[0] for line in lines)


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.", "module.backbone.", "anything.at.all."])
def test_backbone_names_are_told_apart(prefix: str) -> None:
    names = [prefix + name for name in backbone_names()] + [f"{prefix}prediction_head.weight"]
    probes = list(counted("probes.{}.net", 3)) + ["probes.decoder_embed.0.weight", "probes.dec_blocks.3.mlp.net.0.weight"]
    assert find_probe_tensors([*names, *probes]) == tuple(probes)
    assert find_probe_tensors(names) == ()


# --- known names ---------------------------------------------------------------------------------------------------


def trained(views: int, linears: tuple[str, ...], with_norm: bool) -> tuple[Shapes, dict]:
    """Probes as training here names and exports them, layers in no particular order."""
    layers = ("decoder.1.mlp", "encoder.norm", "decoder.0.self_attn")
    tensors: Shapes = {}
    for number, layer in enumerate(layers):
        width = BACKBONE.layer_width(layer)
        for view in range(1, views + 1):
            prefix = f"probes.{number}.view{view}.mlp" if views == 2 else f"probes.{number}.mlp"
            tensors |= mlp(prefix, linears, (width, *[512] * (len(linears) - 1), 1024))
            tensors |= norm(f"{prefix}.0", width) if with_norm else {}
    return tensors, {"layer_ids": list(layers), "activation": "silu", "residual": False}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("linears", "with_norm"), [(("0", "2", "4"), False), (("1", "3", "5"), True), (("1",), True), (("0",), False)])
def test_known_names_are_read_directly_and_as_the_recogniser_reads_them(views, linears, with_norm, monkeypatch) -> None:
    tensors, config = trained(views, linears, with_norm)
    recognised = "und3rstand_jax.convert.probes.plan.recognise"
    with monkeypatch.context() as patch:
        patch.setattr(recognised, lambda *_: pytest.fail("recognised"))
        known = plan(tensors, config)
    monkeypatch.setattr("und3rstand_jax.convert.probes.plan.read_known_names", lambda *_: None)
    assert known.config.layer_ids == ("encoder.norm", "decoder.0.self_attn", "decoder.1.mlp")
    assert dataclasses.replace(known, table="") == dataclasses.replace(plan(tensors, config), table="")


def test_known_names_are_read_directly_beside_a_mapping_file_of_settings_alone(monkeypatch) -> None:
    tensors, config = trained(1, ("0", "2", "4"), False)
    monkeypatch.setattr("und3rstand_jax.convert.probes.plan.recognise", lambda *_: pytest.fail("recognised"))
    found = plan(tensors | {"loss.weight": (3, 3)}, config, mapping={"activation": "tanh", "unused": ["loss"]})
    assert found.config.activation == "tanh" and found.config.layer_ids == ("encoder.norm", "decoder.0.self_attn", "decoder.1.mlp")


def test_stated_steps_apply_to_known_names_too() -> None:
    tensors, config = trained(1, ("0", "2", "4"), False)
    found = plan(tensors, config, mapping={"steps": ["linear", "linear", "activation", "linear"]})
    assert {group.steps for group in found.config.groups} == {("linear", "linear", "activation", "linear")}


def without(tensors: Shapes, *names: str) -> Shapes:
    return {name: shape for name, shape in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "config", "complaint"),
    [
        (lambda t: without(t, "probes.2.mlp.1.bias"), {}, "probes.2.mlp lacks 1.bias"),
        (lambda t: without(t, "probes.1.mlp.5.bias", "probes.1.mlp.5.weight"), {}, "probes.1.mlp ends in 512 outputs"),
        (lambda t: t | {"probes.1.mlp.3.scale": (512,)}, {}, "probes.1.mlp.3.scale is part of a probe"),
        (lambda t: t | {"stray.weight": (3, 4)}, {}, r"stray \(3, 4\) belongs to no MLP"),
        (lambda t: t, {"layer_ids": ["decoder.1.mlp", "encoder.norm"]}, "states 2 layers; the checkpoint has probes for 3"),
        (lambda t: t, {"layer_ids": ["decoder.1.mlp", "decoder.2.mlp", "encoder.norm"]}, "reads 1024 channels; decoder.2.mlp has 768"),
        (lambda t: t, {"hidden_dim": 256}, "hidden_dim is 256, but the tensors say 512"),
    ],
)
def test_known_names_are_taken_as_strictly_as_unknown_ones(change, config, complaint) -> None:
    tensors, stated = trained(1, ("1", "3", "5"), True)
    with pytest.raises(UserError, match=complaint):
        plan(change(tensors), stated | config)


def test_what_the_caller_states_goes_before_known_names() -> None:
    tensors, config = trained(1, ("0", "2"), False)
    order = ("decoder.5.mlp", "encoder.norm", "decoder.4.mlp")
    assert set(plan(tensors, config, probe_layers=order).config.layer_ids) == set(order)
    steps = {"steps": ["linear", "linear"]}
    assert {group.steps for group in plan(tensors, config, mapping=steps).config.groups} == {("linear", "linear")}


def test_full_checkpoint_is_planned_quickly() -> None:
    tensors = counted("probes1.{}.net") | counted("probes2.{}.net")
    start = time.perf_counter()
    plan(tensors)
    assert time.perf_counter() - start < 1


def garbled(rng: random.Random) -> Shapes:
    """A small checkpoint of three probes, with up to three things done to its names and shapes."""
    tensors: Shapes = {}
    linears, norms, _, _ = STEP_SCHEMES[rng.choice(list(STEP_SCHEMES))]
    for i in range(3):
        tensors |= mlp(f"probes.dec_{i}_sa", linears)
        for name, width in norms:
            tensors |= norm(f"probes.dec_{i}_sa.{name}", width)
    words = ["", "0", "1", "10", "dec_0_sa", "enc", "mlp", "view1", "norm", "fc1", "head", "é²", "ln_in", "weight", "scale", "dec_blocks2"]
    for _ in range(rng.randint(0, 3)):
        name = rng.choice(list(tensors))
        parts = name.split(".")
        match rng.randint(0, 4):
            case 0:
                del tensors[name]
            case 1:
                tensors[name] = tuple(rng.choices([512, 768, 1024, 0], k=rng.randint(0, 3)))
            case 2:
                parts[rng.randrange(len(parts))] = rng.choice(words)
                tensors[".".join(parts)] = tensors.pop(name)
            case 3:
                parts.insert(rng.randrange(len(parts)), rng.choice(words))
                tensors[".".join(parts)] = tensors.pop(name)
            case _:
                old, new = rng.choice(parts), rng.choice(words)
                tensors = {key.replace(old, new): shape for key, shape in tensors.items()}
    return tensors


def test_any_names_and_shapes_give_a_plan_or_a_user_error() -> None:
    """What comes from a file must never end in another exception, and a plan uses every tensor once."""
    rng = random.Random(0)
    planned = 0
    for _ in range(600):
        tensors = garbled(rng)
        try:
            found = plan(tensors, rng.choice([None, {"layers": 5, "norm": rng.choice([True, None, "ln"])}]))
        except UserError:
            continue
        planned += 1
        used = [name for leaf in names(found).values() for row in leaf for name in row]
        assert sorted([*used, *found.unused]) == sorted(tensors)
        shapes = [tensors[name] for leaf, rows in names(found).items() for row in rows for name in row if leaf.endswith("kernel")]
        assert len(shapes) == sum(len(g.layer_ids) * len(g.biases) for g in found.config.groups) * (1 + (found.config.views == "separate"))
    assert 100 < planned < 500


def test_linear_probes_of_tokens_as_wide_as_their_output_are_no_chain():
    tensors = {key: shape for i in range(3) for key, shape in mlp(f"probes.{i}.mlp", ("0",), (1024, 1024)).items()}
    layers = ("encoder.3.mlp", "encoder.7.mlp", "encoder.norm")
    config = plan(tensors, probe_layers=layers).config
    assert config.layer_ids == layers
    assert [group.widths for group in config.groups] == [(1024, 1024)]
