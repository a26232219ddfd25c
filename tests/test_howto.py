"""The how-to pages: what they say that commands print, they print, and their files work."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import und3rstand_jax as u3d
import und3rstand_jax.commands.convert as convert
from tests.make_checkpoint import save_hub_folder
from tests.test_docs import ROOT, code
from tests.tiny import probe_tensors, save_backbone

UNKNOWN = (ROOT / "docs" / "howto" / "unknown_probes.md").read_text()
LAYERS = ("decoder.0.mlp", "decoder.1.self_attn", "decoder.1.mlp")


@pytest.fixture
def unknown(tmp_path):
    """The page's checkpoint, but for its widths: four MLPs whose names do not say what they read. The words of a conversion of it."""
    backbone = save_backbone(tmp_path / "backbone")
    probes = save_hub_folder(tmp_path / "probes", probe_tensors("heads.{layer}.fc.{step}", layers=4), {})
    return ["--repo", str(probes), "--backbone", str(backbone)]


def without_widths(text):
    """Lines whose words are one space apart, without the widths of layers, in which the page's model is the published one."""
    return [" ".join(re.sub(r"\d+(→\d+)+|\(\d+, \d+\)", "", line).split()) for line in text.splitlines()]


def mapping(tmp_path, **without):
    """The page's mapping file."""
    (block,) = re.findall(r"^```json\n(.*?)^```", UNKNOWN, re.MULTILINE | re.DOTALL)
    file = tmp_path / "mapping.json"
    file.write_text(json.dumps(json.loads(block) | without))
    return ["--mapping", str(file)]


def test_inspect_says_of_unknown_probes_what_the_page_shows(unknown, capsys):
    assert convert.main([*unknown, "--inspect"]) == 2
    said = without_widths(capsys.readouterr().err)
    (shown,) = (without_widths(text) for text in code(UNKNOWN) if "error: probe checkpoint" in text)
    assert said == shown


def test_probes_are_given_layers_in_the_order_of_the_table(unknown, capsys):
    (layers,) = re.findall(r"--probe-layers (decoder\S+)", UNKNOWN)
    assert convert.main([*unknown, "--inspect", "--probe-layers", layers]) == 0
    assert re.search(r"layer_ids +decoder\.0\.mlp … decoder\.1\.mlp \(4\) +option +--probe-layers", capsys.readouterr().out)


def test_the_mapping_file_gives_each_layer_its_mlp_and_an_export_takes_it_again(unknown, tmp_path, capsys):
    assert convert.main([*unknown, "--inspect", *mapping(tmp_path, unused=[])]) == 2
    assert re.search(r"heads\.3\.fc\.0 \(\d+, \d+\) belongs to no MLP", capsys.readouterr().err)
    out = tmp_path / "jax"
    assert convert.main([*unknown, "--out", str(out), "--verify", *mapping(tmp_path)]) == 0
    config = u3d.read_checkpoint_info(out).probes
    assert config is not None and sorted(config.layer_ids) == sorted(LAYERS)
    _, probes = u3d.load_backbone_and_probe(out)
    source = load_file(tmp_path / "probes" / "model.safetensors")
    for layer, prefix in zip(LAYERS, ("heads.2.fc", "heads.1.fc", "heads.0.fc"), strict=True):
        kernel = probes.params["group0"]["linear0"]["kernel"][config.layer_ids.index(layer)]
        np.testing.assert_array_equal(kernel, source[f"{prefix}.0.weight"].T)

    exported = tmp_path / "torch"
    assert convert.main(["--repo", str(out), "--to-torch", str(exported)]) == 0
    again = tmp_path / "again"
    parts = ["--repo", str(exported / "probes"), "--backbone", str(exported / "backbone")]
    assert convert.main([*parts, "--out", str(again), *mapping(tmp_path)]) == 0
    assert u3d.read_checkpoint_info(again).probes == config


def test_the_preprocessings_give_the_sizes_that_the_page_on_sizes_gives():
    page = (ROOT / "docs" / "howto" / "sizes.md").read_text()
    rows = re.findall(r'^\| `"([\w-]+)"`(?: \(default\))?(?:, `size=(\d+)`)? \|.*\| (\d+)×(\d+) \| (\d+)×(\d+) \|$', page, re.MULTILINE)
    assert [row[0] for row in rows] == ["probe", "dust3r", "dust3r", "vggt", "vggt-pad"]
    for preprocessing, size, *sides in rows:
        for photo, (width, height) in (((4000, 3000), sides[:2]), ((3000, 4000), sides[2:])):
            image = u3d.load_image(Image.new("RGB", photo), preprocessing, int(size) if size else None)
            assert image.shape == (1, int(height), int(width), 3), (preprocessing, photo)
