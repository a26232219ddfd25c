"""Licences: found where a source states them, recorded at conversion, and never made freer."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.tiny import save_backbone, save_probes
from und3rstand_jax.checkpoint.format import sealed
from und3rstand_jax.convert.export import export_checkpoint
from und3rstand_jax.convert.licences import Licence, header_of, licence_to_publish, licences_of_source, restricts_no_less, strictest
from und3rstand_jax.convert.model_card import base_models
from und3rstand_jax.convert.sources.source import open_source
from und3rstand_jax.train.trained import write_trained_backbone


def licence(id: str, name: str | None = None) -> Licence:
    return Licence(id=id, name=name, link=None, found="a test")


DUST3R = "DUSt3R_ViTLarge_BaseDecoder_512_dpt"
OTHER = {"license": "other", "license_name": "mine"}


@pytest.mark.parametrize(
    ("name", "card", "expected"),
    [
        ("someone/model", {"license": "MIT"}, "mit"),
        ("someone/model", {"license": ["mit", "apache-2.0"]}, ""),
        ("someone/model", {"license": "ask me first, please"}, ""),
        ("someone/model", {}, ""),
        (f"naver/{DUST3R}", {}, "cc-by-nc-sa-4.0"),
        (f"{DUST3R}.pth", {}, "cc-by-nc-sa-4.0"),
        ("CroCo_V2_ViTLarge_BaseDecoder.pth", {}, "cc-by-nc-sa-4.0"),
        ("my-dust3r", {}, ""),
        (f"naver/{DUST3R}", {"license": "mit"}, "cc-by-nc-sa-4.0"),
        ("facebook/VGGT-1B", {"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
        ("facebook/VGGT-1B-Commercial", {"license": "other", "license_name": "vggt"}, "other"),
        ("facebook/VGGT-1B", {"license": "cc-by-nc-sa-4.0"}, "cc-by-nc-sa-4.0"),
        # The card demands to be kept as it is, and lacks a condition all the same.
        (f"naver/{DUST3R}", {"license": "cc-by-sa-4.0"}, "cc-by-nc-sa-4.0"),
        # Whoever else has them.
        (f"someone/{DUST3R}", {"license": "mit"}, "cc-by-nc-sa-4.0"),
        ("someone/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", {"license": "apache-2.0"}, "cc-by-nc-sa-4.0"),
        ("someone/CroCo_V2_ViTBase_SmallDecoder/backbone", {"license": "mit"}, "cc-by-nc-sa-4.0"),
        ("someone/VGGT-1B", {"license": "mit"}, "cc-by-nc-4.0"),
        ("someone/VGGT-1B-bf16", {"license": "mit"}, "cc-by-nc-4.0"),
        ("someone/VGGT-1Bigger", {"license": "mit"}, "mit"),
        # What nobody can compare.
        (f"naver/{DUST3R}", {"license": "cc-by-nc-nd-4.0"}, "cc-by-nc-nd-4.0 cc-by-nc-sa-4.0"),
        ("facebook/VGGT-1B", {"license": "cc-by-sa-4.0"}, "cc-by-sa-4.0 cc-by-nc-4.0"),
        (f"someone/{DUST3R}", OTHER, "other cc-by-nc-sa-4.0"),
    ],
)
def test_where_a_licence_is_found(name: str, card: dict, expected: str) -> None:
    found = licences_of_source((name,), card=card, card_name="the card")
    assert " ".join(licence["id"] for licence in found) == expected


def test_a_base_model_counts_since_the_source_may_hold_its_weights() -> None:
    card = {"license": "mit"}
    (found,) = licences_of_source(("someone/probes",), bases=("someone/mine", f"naver/{DUST3R}"), card=card, card_name="the card")
    assert found["id"] == "cc-by-nc-sa-4.0" and found["found"].endswith(f"their weights under ({DUST3R})")
    (found,) = licences_of_source(("someone/probes",), bases=(f"/home/me/{DUST3R}",), card=card, card_name="the card")
    assert found["id"] == "cc-by-nc-sa-4.0" and "/home" not in found["found"]
    assert licences_of_source(("someone/probes",), bases=("someone/mine",), card=card, card_name="the card")[0]["id"] == "mit"


def test_the_header_of_a_file_counts_as_a_card_does() -> None:
    header = {"format": "pt", "license": "cc-by-nc-4.0"}
    (found,) = licences_of_source(("m",), header=header, header_name="the header")
    assert found == Licence(id="cc-by-nc-4.0", name=None, link=None, found="the header")
    (found,) = licences_of_source(("m",), card={"license": "mit"}, card_name="the card", header=header, header_name="the header")
    assert found["id"] == "cc-by-nc-4.0"
    assert licences_of_source(("m",), header={"base_model": f"a/b, naver/{DUST3R}"})[0]["id"] == "cc-by-nc-sa-4.0"
    for licences in (
        (),
        (Licence(id="other", name="a", link="b", found="x"),),
        (licence("mit"),),
        (licence("cc-by-sa-4.0"), licence("openrail")),
    ):
        again = licences_of_source(("m",), header=header_of(licences), header_name="x")
        assert [one["id"] for one in again] == [one["id"] for one in licences]
        assert len(again) != 1 or (again[0]["name"], again[0]["link"]) == (licences[0]["name"], licences[0]["link"])


@pytest.mark.parametrize(
    ("given", "source", "may"),
    [
        ("cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0", True),
        ("mit", "cc-by-nc-sa-4.0", False),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", False),
        ("cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", False),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", True),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", False),
        ("apache-2.0", "cc-by-nc-4.0", False),
        ("cc-by-nc-4.0", "apache-2.0", True),
        ("cc0-1.0", "mit", False),
        ("mit", "cc0-1.0", True),
        ("openrail", "cc-by-nc-4.0", False),
        ("mit", "openrail", False),
        ("openrail", "openrail", True),
    ],
)
def test_what_may_take_the_place_of_what(given: str, source: str, may: bool) -> None:
    assert restricts_no_less(licence(given), licence(source)) == may


def test_several_licences_are_joined_in_the_one_that_restricts_most_or_not_at_all() -> None:
    assert strictest(map(licence, ("mit", "cc-by-nc-sa-4.0", "cc-by-nc-4.0")))["id"] == "cc-by-nc-sa-4.0"
    with pytest.raises(u3d.OptionError, match="licences that cannot be combined: cc-by-nc-4.0 .*, cc-by-sa-4.0"):
        strictest(map(licence, ("cc-by-nc-4.0", "cc-by-sa-4.0")))
    assert not restricts_no_less(licence("other", "a"), licence("other", "b"))
    assert restricts_no_less(licence("other", "a"), licence("other", "a"))


def test_an_other_licence_without_a_name_is_no_other_ones_equal() -> None:
    assert not restricts_no_less(licence("other"), licence("other"))
    with pytest.raises(u3d.OptionError, match="cannot be combined: other .*, other .*; publish parts with different licences separately"):
        strictest([licence("other"), licence("other")])
    # Alone, it stays what it is.
    assert licence_to_publish({"backbone": record(licence=licence("other"))}, None)["id"] == "other"
    with pytest.raises(u3d.OptionError, match="mit may not take the place of other .* leave --license out$"):
        licence_to_publish({"backbone": record(licence=licence("other"))}, "mit")


def test_of_a_source_that_contradicts_itself_nothing_is_guessed() -> None:
    torn = {"backbone": record(licence=None, licences=[licence("cc-by-nc-4.0"), licence("cc-by-sa-4.0")])}
    for given in (None, "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-nc-sa-4.0"):
        with pytest.raises(u3d.OptionError, match="cannot be combined: .*; if one source states both, find out which it is"):
            licence_to_publish(torn, given)


def record(kind: str = "hub", source: str = "someone/model", **more: object) -> dict:
    return {"kind": kind, "source": source, **more}


def test_what_a_checkpoint_may_be_published_under() -> None:
    backbone, probes = record(licence=licence("cc-by-nc-sa-4.0")), record(source="someone/probes", licence=licence("mit"))
    both = {"backbone": backbone, "probes": probes}
    assert licence_to_publish(both, None)["id"] == "cc-by-nc-sa-4.0"
    with pytest.raises(u3d.OptionError, match=r"--license mit may not take the place of cc-by-nc-sa-4.0 \(a test\): .* not become freer"):
        licence_to_publish(both, "mit")
    # A checkpoint of an earlier version has no record of it: its source's name may say it.
    assert licence_to_publish({"backbone": record(source="facebook/VGGT-1B")}, None)["id"] == "cc-by-nc-4.0"
    # Probes that were trained on a backbone add nothing; a backbone is what its training started from.
    assert licence_to_publish({"backbone": backbone, "probes": record("training", "trained")}, None)["id"] == "cc-by-nc-sa-4.0"
    started = record("training", "trained", start=record(source="naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"))
    assert licence_to_publish({"backbone": started}, None)["id"] == "cc-by-nc-sa-4.0"
    with pytest.raises(u3d.OptionError, match="not become freer"):
        licence_to_publish({"backbone": started}, "apache-2.0")


def test_what_was_trained_further_goes_by_what_the_first_training_started_from() -> None:
    scratch = record("training", "trained", start=record("training", "trained", licence=None))
    with pytest.raises(u3d.OptionError, match="known for the backbone, which was trained from random parameters; it is not guessed"):
        licence_to_publish({"backbone": scratch}, None)
    assert licence_to_publish({"backbone": scratch}, "mit")["id"] == "mit"
    further = record("training", "trained", start=record("training", "trained", licence=None, start=record(source="someone/mine")))
    with pytest.raises(u3d.OptionError, match="no licence is known for the backbone, which came from someone/mine, whose model card"):
        licence_to_publish({"backbone": further}, None)
    further = record("training", "trained", start=record("training", "trained", licence=licence("cc-by-nc-4.0")))
    assert licence_to_publish({"backbone": further}, None)["id"] == "cc-by-nc-4.0"


@pytest.mark.parametrize("unknown", [record(), record("training", "trained")])
def test_an_unknown_licence_is_asked_for_and_not_guessed(unknown: dict) -> None:
    with pytest.raises(u3d.OptionError, match="no licence is known for the backbone, which .* it is not guessed: state the one"):
        licence_to_publish({"backbone": unknown}, None)
    assert licence_to_publish({"backbone": unknown}, "apache-2.0")["id"] == "apache-2.0"
    with pytest.raises(u3d.OptionError, match="--license 'free for all' is not the hub's ID for a licence"):
        licence_to_publish({"backbone": unknown}, "free for all")
    with pytest.raises(u3d.OptionError, match="not become freer"):
        licence_to_publish({"backbone": unknown, "probes": record(licence=licence("cc-by-nc-4.0"))}, "apache-2.0")


def test_a_conversion_records_the_licence_of_its_source(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "m")
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    info = u3d.read_checkpoint_info(converted(source, tmp_path / "jax"))
    assert info.provenance["backbone"]["licence"] == Licence(id="cc-by-nc-4.0", name=None, link=None, found="the model card of m")


def test_a_trained_backbone_keeps_what_all_of_its_trainings_started_from(tmp_path: Path) -> None:
    folder = converted(save_backbone(tmp_path / "mine"), tmp_path / "start")
    loaded = u3d.load_backbone(folder)
    for number in (1, 2):
        before, folder = folder, tmp_path / str(number)
        write_trained_backbone(folder, loaded.config, loaded.params, {}, before)
    with pytest.raises(u3d.OptionError, match="known for the backbone, which came from mine, whose model card and name state none"):
        licence_to_publish(u3d.read_checkpoint_info(folder).provenance, None)


def test_a_file_goes_by_its_folder_and_an_export_in_folders_by_the_folder_around(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / DUST3R)
    info = u3d.read_checkpoint_info(converted(source / "model.safetensors", tmp_path / "jax"))
    assert info.provenance["backbone"]["licence"]["id"] == "cc-by-nc-sa-4.0"
    for place, licences in ((tmp_path / "plain", []), (tmp_path / "around" / DUST3R / "backbone", ["cc-by-nc-sa-4.0"])):
        opened = open_source(str(shutil.copytree(source, place)))
        opened.tensors.close()
        assert [one["id"] for one in opened.licences] == licences


@pytest.mark.parametrize("card", ["license: cc-by-nc-sa-4.0", "license: other\nlicense_name: mine\nlicense_link: https://example.org"])
def test_an_export_carries_the_licence_to_the_next_conversion(card: str, tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "m")
    (source / "README.md").write_text(f"---\n{card}\n---\n")
    checkpoint = converted(source, tmp_path / "jax")
    plain = export_checkpoint(checkpoint, tmp_path / "torch")[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(plain / name, alone / name)
    for again in (plain, alone / "model.safetensors"):
        back = converted(again, tmp_path / "again", "--overwrite")
        first, second = (u3d.read_checkpoint_info(folder).provenance["backbone"]["licence"] for folder in (checkpoint, back))
        assert (first["id"], first["name"], first["link"]) == (second["id"], second["name"], second["link"])
        with pytest.raises(
            u3d.OptionError, match=f"--license mit may not take the place of {first['id']} \\(the header of model.safetensors"
        ):
            u3d.push_to_hub(back, "someone/m", license="mit", dry_run=True, progress=False)


def test_exported_probes_that_were_trained_here_carry_their_backbones_licence_and_base_model(tmp_path: Path) -> None:
    checkpoint = converted(save_probes(tmp_path / "probes", save_backbone(tmp_path / "m")), tmp_path / "jax")
    content = json.loads((checkpoint / "config.json").read_text())
    content["provenance"]["backbone"] |= {"kind": "hub", "source": f"naver/{DUST3R}"}
    content["provenance"]["probes"] |= {"kind": "training", "source": "trained"}
    (checkpoint / "config.json").write_text(sealed(json.dumps(content)))
    for folder in export_checkpoint(checkpoint, tmp_path / "torch"):
        with safe_open(folder / "model.safetensors", "numpy") as file:
            header = file.metadata()
        assert (header["license"], header["base_model"]) == ("cc-by-nc-sa-4.0", f"naver/{DUST3R}")
    again = u3d.read_checkpoint_info(converted(tmp_path / "torch", tmp_path / "again"))
    assert {record["licence"]["id"] for record in again.provenance.values()} == {"cc-by-nc-sa-4.0"}
    assert base_models(again.provenance) == [f"naver/{DUST3R}"]
