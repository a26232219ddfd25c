"""Licences: found where a source states them, recorded at conversion, and never made freer."""

from pathlib import Path

import pytest

import und3rstand_jax as u3d
from tests.conversion import converted
from tests.tiny import save_backbone
from und3rstand_jax.convert.licences import Licence, licence_of_source, licence_to_publish, restricts_no_less, strictest


def licence(id: str, name: str | None = None) -> Licence:
    return Licence(id=id, name=name, link=None, found="a test")


@pytest.mark.parametrize(
    ("name", "card", "expected"),
    [
        ("someone/model", {"license": "MIT"}, "mit"),
        ("someone/model", {"license": ["mit", "apache-2.0"]}, None),
        ("someone/model", {"license": "ask me first, please"}, None),
        ("someone/model", {}, None),
        ("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", {}, "cc-by-nc-sa-4.0"),
        ("DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth", {}, "cc-by-nc-sa-4.0"),
        ("CroCo_V2_ViTLarge_BaseDecoder.pth", {}, "cc-by-nc-sa-4.0"),
        ("my-dust3r", {}, None),
        ("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", {"license": "mit"}, "cc-by-nc-sa-4.0"),
        ("facebook/VGGT-1B", {"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
        ("facebook/VGGT-1B-Commercial", {"license": "other", "license_name": "vggt"}, "other"),
        ("facebook/VGGT-1B", {"license": "cc-by-nc-sa-4.0"}, "cc-by-nc-sa-4.0"),
    ],
)
def test_where_a_licence_is_found(name: str, card: dict, expected: str | None) -> None:
    found = licence_of_source(name, card, "the card")
    assert (None if found is None else found["id"]) == expected


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
    with pytest.raises(u3d.OptionError, match="licences that cannot be joined: cc-by-nc-4.0 .*, cc-by-sa-4.0"):
        strictest(map(licence, ("cc-by-nc-4.0", "cc-by-sa-4.0")))
    assert not restricts_no_less(licence("other", "a"), licence("other", "b"))


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


@pytest.mark.parametrize("unknown", [record(), record("training", "trained")])
def test_an_unknown_licence_is_asked_for_and_not_guessed(unknown: dict) -> None:
    with pytest.raises(u3d.OptionError, match="the licence is not known of the backbone, which .* it is not guessed: state what"):
        licence_to_publish({"backbone": unknown}, None)
    assert licence_to_publish({"backbone": unknown}, "apache-2.0")["id"] == "apache-2.0"
    with pytest.raises(u3d.OptionError, match="--license 'free for all' is not the hub's word for a licence"):
        licence_to_publish({"backbone": unknown}, "free for all")
    with pytest.raises(u3d.OptionError, match="not become freer"):
        licence_to_publish({"backbone": unknown, "probes": record(licence=licence("cc-by-nc-4.0"))}, "apache-2.0")


def test_a_conversion_records_the_licence_of_its_source(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "m")
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    info = u3d.read_checkpoint_info(converted(source, tmp_path / "jax"))
    assert info.provenance["backbone"]["licence"] == Licence(id="cc-by-nc-4.0", name=None, link=None, found="the model card of m")
